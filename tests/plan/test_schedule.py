"""The plan's bubble and the activations that it counts, against megatron-core's schedules played through."""

from dataclasses import replace

import pytest

from latxa_megatron.config import load_run
from latxa_megatron.model.layout import Layout
from latxa_megatron.plan.estimate import estimate
from latxa_megatron.plan.gpus import find_gpu
from latxa_megatron.plan.memory import stage_memory
from latxa_megatron.plan.stages import layer_bytes, stages
from latxa_megatron.train.check import precision
from tests.plan.conftest import write_model
from tests.plan.schedule import kept, play
from tests.plan.test_plan import LLAMA_8B

SPREADS = [
    (4, 1, 16, None),
    (4, 1, 2, None),
    (4, 1, 16, (7, 9, 10, 6)),
    (4, 2, 16, None),
    (4, 2, 4, None),
    (2, 4, 8, None),
    (2, 2, 16, (8, 12, 8, 4)),
    (2, 2, 2, (4, 12, 12, 4)),
    (4, 2, 12, (2, 5, 5, 4, 6, 3, 4, 3)),
]


@pytest.mark.parametrize(("pp", "vp", "microbatches", "division"), SPREADS)
def test_what_each_rank_keeps(pp, vp, microbatches, division):
    layers = list(division or [32 // (pp * vp)] * (pp * vp))
    found = stages(LLAMA_8B, Layout(pp=pp, vp=vp, stages=division), microbatches)
    for rank, stage in enumerate(found):
        assert stage.kept([float(each) for each in stage.chunks]) == kept(pp, vp, microbatches, rank, layers)


def test_recomputed_layers_keep_their_inputs_in_each_chunk(run_file):
    """PP2 VP2 in stages of 8, 12, 8 and 4 layers, of each of which six are computed again, where there are so many."""
    run = load_run(run_file, ["parallel.pp=2", "parallel.vp=2", "parallel.stages=[8,12,8,4]", "train.recompute=6"])
    found = stages(LLAMA_8B, Layout(pp=2, vp=2, stages=(8, 12, 8, 4)), 16)[1]
    per_layer, own_input = 8192 * layer_bytes(LLAMA_8B, precision(run)), 8192 * 2 * 4096
    chunks = [0, 6 * per_layer + 6 * own_input, 0, 4 * own_input]
    memory = stage_memory(found, LLAMA_8B, Layout(pp=2, vp=2), precision(run), run.train, 8192, 1)
    assert memory.activations == pytest.approx((kept(2, 2, 16, 1, chunks) + per_layer) / 2**30)


@pytest.mark.parametrize(
    ("pp", "vp", "division"),
    [
        (4, 1, None),
        (2, 1, (18, 14)),
        (4, 1, (7, 9, 9, 7)),
        (4, 2, None),
        (2, 4, None),
        (4, 8, None),
        (2, 2, (8, 9, 8, 7)),
    ],
)
def test_a_step_takes_as_long_as_the_schedule(run_file, tmp_path, pp, vp, division):
    """Of stages whose layers, and the head in the last, take what they take without a pipeline; messages take nothing."""
    gpu, half = replace(find_gpu("h100-80g"), link=1e9), write_model(tmp_path / "half", num_hidden_layers=16)

    def step(gpus, *overrides):
        found = estimate(load_run(run_file, ["train.global_batch=16", *overrides]), gpu, gpus).seconds
        return found.step - found.optimizer

    layer = (step(1) - step(1, f"model.hf={half}")) / 16 / 16
    head = step(1) / 16 - 32 * layer
    stages = [layers * layer for layers in division or [32 // (pp * vp)] * (pp * vp)]
    stages[-1] += head
    expected = play(pp, vp, 16, [each / 3 for each in stages], [each * 2 / 3 for each in stages])
    own = [f"parallel.stages={list(division)}"] if division else []
    assert step(pp, f"parallel.pp={pp}", f"parallel.vp={vp}", *own) == pytest.approx(expected, rel=0.01)
