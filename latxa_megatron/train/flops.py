"""The arithmetic that a model's training asks for, whatever an implementation does: what model TFLOP/s counts."""

import numpy as np
import numpy.typing as npt

from latxa_megatron.model.llama import LlamaShape

PEAK = {"H100 PCIe": 756, "H100 NVL": 835, "H100": 989, "H200": 989, "A100": 312, "GB200": 2500, "B200": 2250}
"""Dense bf16 TFLOP/s of NVIDIA's datasheets, by a part of the name that the driver gives; the first that fits."""


def utilization(tflops: float, gpu: str) -> float | None:
    """MFU: model TFLOP/s as a share of the peak in bf16, also where products are in FP8; None for a GPU that is not in PEAK."""
    peak = next((peak for name, peak in PEAK.items() if name in gpu), None)
    return tflops / peak if peak else None


def matrix_parameters(shape: LlamaShape) -> int:
    """Parameters that take part in a product for every token: all but the embedding and the norms. Tied heads count."""
    attention = shape.hidden * shape.head_dim * (2 * shape.heads + 2 * shape.kv_heads)
    return shape.layers * (attention + 3 * shape.hidden * shape.ffn) + shape.hidden * shape.vocab


def training_flops(shape: LlamaShape, positions: npt.NDArray[np.int64]) -> float:
    """Forward and backward over documents of so many positions each: 6 for each parameter and position, and attention.

    Causal attention inside a document of n positions is 6 n^2 times layers, heads and head size; padding and activations that
    are computed again do not count.
    """
    n = positions.astype(np.float64)
    attention = 6 * shape.layers * shape.heads * shape.head_dim * float(np.square(n).sum())
    return 6 * matrix_parameters(shape) * float(n.sum()) + attention
