"""The plan's weights, gradients and optimizer state against the tensors that megatron-core really makes, rank by rank.

One process stands for each rank in turn: torch's fake process groups, whose messages do nothing, are as many as a job's.
"""

import contextlib

import pytest
import torch.distributed as dist
from megatron.core import parallel_state
from torch.testing._internal.distributed.fake_pg import FakeStore

from latxa_megatron.config import load_run
from latxa_megatron.model.gpt import build_model
from latxa_megatron.model.llama import LlamaShape
from latxa_megatron.plan.estimate import run_memory
from latxa_megatron.train.check import layout, precision
from latxa_megatron.train.distributed import spread
from latxa_megatron.train.optimizer import _parts, allocate_state, build_optimizer, wrap
from tests.plan.conftest import write_model

SIZES = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 8, "num_attention_heads": 16, "vocab_size": 8192}


@contextlib.contextmanager
def rank_of(ranks, rank, monkeypatch):
    """This process as one of so many."""
    create = parallel_state.create_group
    monkeypatch.setattr(parallel_state, "create_group", lambda *a, **more: create(*a, **{**more, "backend": "fake"}))
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=ranks)
    try:
        yield
    finally:
        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()


def size(tensors):
    return sum(each.numel() * each.element_size() for each in tensors)


def made(run):
    """Bytes of the parameters, of the gradients, and of the optimizer's state with its fp32 copy of bf16 parameters."""
    spread(layout(run), 1)
    model = wrap(build_model(LlamaShape.from_hf(run.model.hf), layout(run), precision(run)), precision(run))
    optimizer = build_optimizer(run.optimizer, model)
    allocate_state(optimizer)
    state = []
    for part in _parts(optimizer):
        for own in (each for group in part.optimizer.param_groups for each in group["params"]):
            state += [own] if run.precision.dtype == "bf16" else []
            state += [each for each in part.optimizer.state[own].values() if each.dim()]
    parameters = [each for chunk in model for each in chunk.parameters()]
    return size(parameters), size(buffer.grad_data for chunk in model for buffer in chunk.buffers), size(state)


@pytest.mark.parametrize(
    ("ranks", "overrides"),
    [
        (8, ["parallel.tp=2", "parallel.pp=2"]),
        (4, ["parallel.pp=2", "parallel.vp=2", "parallel.stages=[1,3,3,1]", "precision.gradients=bf16"]),
        (2, ["parallel.pp=2", "precision.dtype=fp32"]),
    ],
)
@pytest.mark.parametrize("tied", [False, True])
def test_what_megatron_core_makes(run_file, tmp_path, monkeypatch, ranks, overrides, tied):
    hf = write_model(tmp_path / "small", **SIZES, tie_word_embeddings=tied)
    run = load_run(run_file, [f"model.hf={hf}", "train.global_batch=8", *overrides])
    pp = run.parallel.pp
    _, planned = run_memory(run, LlamaShape.from_hf(hf), ranks)
    for stage in range(pp):
        with rank_of(ranks, stage * ranks // pp, monkeypatch):
            found = made(run)
        said = planned[stage]
        assert [each / 2**30 for each in found] == pytest.approx([said.weights, said.gradients, said.optimizer], rel=5e-3)
