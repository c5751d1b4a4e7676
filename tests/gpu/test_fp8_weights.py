"""Weights that are kept in FP8 begin and stay as what the checkpoint has, not as what FP8 makes of it."""

import pytest
import torch

from tests.tiny import write_llama

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("one_process")]


def test_the_optimizer_begins_with_the_checkpoints_weights(tmp_path):
    """megatron-core keeps the first random values of such weights for the optimizer; a checkpoint must take their place."""
    from latxa_megatron.convert.importer import import_hf
    from latxa_megatron.convert.torch_dist_reader import TorchDistReader
    from latxa_megatron.model.gpt import build_model
    from latxa_megatron.model.layout import Layout, Precision
    from latxa_megatron.model.llama import LlamaShape
    from latxa_megatron.sections import OptimizerSection
    from latxa_megatron.train import checkpoint
    from latxa_megatron.train.optimizer import build_optimizer, wrap

    hf = write_llama(tmp_path / "hf", hidden_size=256, intermediate_size=512, vocab_size=512)
    import_hf(hf, tmp_path / "imported")
    source = checkpoint.resolve(tmp_path / "imported")
    precision = Precision(fp8="tensorwise", fp8_params=True, fp8_head=True)
    chunks = build_model(LlamaShape.from_hf(hf), Layout(), precision)
    checkpoint.load_weights(source, chunks)
    optimizer = build_optimizer(OptimizerSection(), wrap(chunks, precision))
    reader, compared = TorchDistReader(source), 0
    (part,) = optimizer.chained_optimizers
    main = {id(model): group for model, group in part.model_param_group_index_map.items()}
    for name, weight in chunks[0].named_parameters():
        if name.startswith("decoder.layers.") and name.endswith("linear_fc1.weight"):
            layer, key = int(name.split(".")[2]), name.replace(f"layers.{name.split('.')[2]}", "layers")
            expected = reader.read(key, layer).to(torch.bfloat16).float()
            group, order = main[id(weight)]
            found = part.optimizer.param_groups[group]["params"][order].view_as(expected)
            assert torch.equal(found.cpu(), expected)
            in_fp8 = weight.dequantize().float().cpu()
            assert 1e-3 < ((in_fp8 - expected).norm() / expected.norm()).item() < 5e-2
            compared += 1
    assert compared > 1
