"""An import is loaded into Transformer Engine's layers by megatron-core's own load, which wants all that these ask for."""

import pytest
import torch

from tests.tiny import write_llama

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("one_process")]


@pytest.mark.parametrize("fp8", ["none", "tensorwise"])
@pytest.mark.parametrize("family", ["Llama", "Qwen3"])
def test_stock_load(family, fp8, tmp_path):
    from megatron.core import dist_checkpointing

    from latxa_megatron.convert.importer import import_hf
    from latxa_megatron.model.gpt import build_model
    from latxa_megatron.model.layout import Layout, Precision
    from latxa_megatron.model.llama import LlamaShape
    from latxa_megatron.train import checkpoint

    hf = write_llama(tmp_path / "hf", hidden_size=256, intermediate_size=512, vocab_size=512, family=family, head_dim=64)
    directory = import_hf(hf, tmp_path / "imported")
    ours, stock = (build_model(LlamaShape.from_hf(hf), Layout(), Precision(fp8=fp8)) for _ in range(2))
    checkpoint.load_weights(directory, ours)
    found = dist_checkpointing.load({"model": stock[0].sharded_state_dict()}, str(directory))
    stock[0].load_state_dict(found["model"])
    expected = dict(ours[0].named_parameters())
    for name, weight in stock[0].named_parameters():
        assert torch.equal(weight, expected[name]), name
