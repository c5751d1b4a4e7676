"""Model FLOPs against torch's own counter on transformers' model."""

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from latxa_megatron.model.llama import LlamaShape
from latxa_megatron.train.flops import training_flops, utilization
from tests.tiny import load_llama, write_llama


@pytest.mark.parametrize("tied", [False, True])
def test_training_flops_are_those_that_torch_counts(tied, tmp_path):
    """transformers' eager attention computes the whole square of scores; a causal one needs half of it."""
    hf = write_llama(tmp_path / "hf", tied=tied)
    model, shape = load_llama(hf), LlamaShape.from_hf(hf)
    counted = square = 0.0
    lengths = [5, 40, 128]
    for n in lengths:
        with FlopCounterMode(display=False) as counter:
            model(torch.randint(0, 128, (1, n))).logits.sum().backward()
        counted += counter.get_total_flops()
        square += 6 * shape.layers * shape.heads * shape.head_dim * n * n
    assert training_flops(shape, np.array(lengths)) == pytest.approx(counted - square, rel=1e-3)


def test_utilization():
    assert utilization(494.5, "NVIDIA H100 80GB HBM3") == 0.5
    assert utilization(989.0, "NVIDIA H200") == 1.0
    assert utilization(78.0, "NVIDIA A100-SXM-64GB") == 0.25
    assert utilization(378.0, "NVIDIA H100 PCIe") == 0.5
    assert utilization(1250.0, "NVIDIA GB200") == 0.5
    assert utilization(1.0, "Some other GPU") is None
