"""Tensor-parallel messages beside the products that they belong to, by Transformer Engine's userbuffers.

A product is cut into pieces, and while one is computed the messages of another go over NVLink. All tensor-parallel ranks are on
one node. Importing this needs Transformer Engine.
"""

import os

from transformer_engine.pytorch.module import base

from latxa_megatron.model.layout import Precision


def prepare(positions: int, hidden: int, tp: int, precision: Precision) -> None:
    """Set up the buffers for a microbatch of so many positions, in place of those of an earlier run. All ranks call it.

    Where NCCL is told to leave NVLink's multicast alone (NCCL_NVLS_ENABLE=0), so are they.
    """
    if os.environ.get("NCCL_NVLS_ENABLE") == "0":
        os.environ.setdefault("UB_SKIPMC", "1")
    modes = base.UserBufferQuantizationMode
    wanted = [modes.NONE] if precision.fp8 == "none" else [modes.FP8]
    if precision.fp8 != "none" and any(precision.bf16_layers):
        wanted.append(modes.NONE)
    base.destroy_ub()
    base.initialize_ub(
        shape=[positions, hidden],
        tp_size=tp,
        quantization_modes=wanted,
        dtype=precision.dtype,
        bootstrap_backend="nccl",
    )
