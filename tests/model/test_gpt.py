"""megatron-core's configuration for settings that change no result, and so show in no loss."""

import pytest
import torch

from latxa_megatron.errors import LatxaError
from latxa_megatron.model.gpt import transformer_config
from latxa_megatron.model.layout import Layout, Precision
from latxa_megatron.model.llama import LlamaShape
from tests.tiny import write_llama


@pytest.mark.parametrize(
    ("recompute", "expected"),
    [("none", (None, None, None)), ("selective", ("selective", None, None)), (2, ("full", "block", 2))],
)
def test_recompute(recompute, expected, tmp_path):
    shape = LlamaShape.from_hf(write_llama(tmp_path / "hf"))
    config = transformer_config(shape, Layout(), Precision(torch.float32), recompute)
    assert (config.recompute_granularity, config.recompute_method, config.recompute_num_layers) == expected


def test_messages_beside_products_need_a_gpu(tmp_path):
    with pytest.raises(LatxaError, match=r"parallel\.tp_overlap: needs GPUs"):
        transformer_config(
            LlamaShape.from_hf(write_llama(tmp_path / "hf")), Layout(tp=2, tp_overlap=True), Precision(torch.float32)
        )
