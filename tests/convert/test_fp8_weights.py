"""Of a run that keeps weights in FP8 those of the optimizer are exported: the others have FP8's rounding in them."""

import pytest
import torch
from safetensors.torch import load_file

from latxa_megatron.config import RunConfig
from latxa_megatron.convert.exporter import export_hf
from latxa_megatron.convert.importer import import_hf
from latxa_megatron.convert.verify import verify
from latxa_megatron.errors import LatxaError
from latxa_megatron.files import write_json
from latxa_megatron.model.gpt import build_model
from latxa_megatron.model.layout import Layout, Precision
from latxa_megatron.model.llama import LlamaShape
from latxa_megatron.sections import PrecisionSection
from latxa_megatron.train import checkpoint
from latxa_megatron.train.distributed import connected, spread
from tests.tiny import write_llama

PRECISION = PrecisionSection(fp8="tensorwise", fp8_params=True)


def write_facts(directory, hf):
    """run.json as training writes it."""
    run = RunConfig(name="run", model={"hf": hf}, data={}, precision=PRECISION)
    facts = {"run": run.model_dump(mode="json"), "plan": "a plan's", "step": 10, "latxa_megatron": "0.1.0"}
    write_json(directory / checkpoint.RUN_FILE, facts)


@pytest.mark.parametrize("tied", [False, True])
def test_the_optimizers_weights_are_exported(tied, tmp_path):
    """Saved by megatron-core: two models of one shape, the second under the names of the optimizer's weights."""
    from megatron.core import dist_checkpointing
    from megatron.core.dist_checkpointing.utils import extract_sharded_tensors_and_factories

    rounded, trained = (write_llama(tmp_path / str(seed), tied=tied, seed=seed) for seed in (1, 2))
    directory = tmp_path / "iter_0000010"
    directory.mkdir()
    with connected(), torch.no_grad():
        spread(Layout(), seed=1)
        state = {}
        for hf, prefix in ((rounded, ""), (trained, "optimizer.state.param.")):
            model = build_model(LlamaShape.from_hf(hf), Layout(), Precision(torch.float32))[0]
            checkpoint.load_weights(import_hf(hf, tmp_path / f"import {hf.name}"), [model])
            whole = model.sharded_state_dict(prefix=prefix, metadata=dict(checkpoint.CONTENT))
            state[prefix] = extract_sharded_tensors_and_factories(whole)[0] if prefix else whole
        dist_checkpointing.save(state, str(directory), content_metadata=checkpoint.CONTENT)
    write_facts(directory, trained)
    with connected():
        spread(Layout(), seed=1)
        begun = build_model(LlamaShape.from_hf(trained), Layout(), Precision(torch.bfloat16))[0]
        checkpoint.load_weights(directory, [begun])
    expected = dict(model.named_parameters())
    assert all(torch.equal(weight, expected[name].bfloat16()) for name, weight in begun.named_parameters())
    export_hf(directory, tmp_path / "out", like=trained)
    expected, found = (load_file(path / "model.safetensors") for path in (trained, tmp_path / "out"))
    assert expected.keys() == found.keys()
    assert all(torch.equal(tensor.bfloat16(), found[key]) for key, tensor in expected.items())
    assert verify(tmp_path / "out", directory).tensors == len(expected)


def test_without_them_there_is_no_export(tmp_path):
    hf = write_llama(tmp_path / "hf")
    directory = import_hf(hf, tmp_path / "import")
    write_facts(directory, hf)
    with pytest.raises(LatxaError, match="its weights are rounded to FP8"):
        export_hf(directory, tmp_path / "out", like=hf)
