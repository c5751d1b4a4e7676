"""Each rank's share of the optimizer state as rectangles: against brute force, and against megatron-core's own gathered state."""

import shutil

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

from latxa_megatron.config import load_run
from latxa_megatron.train import checkpoint
from latxa_megatron.train.distributed import connected, time_limit
from latxa_megatron.train.setup import set_up
from latxa_megatron.train.shares import SharedOutOptimizer, rectangles
from tests.train.conftest import SHORT

SIZES = st.integers(1, 7)


@given(shape=st.tuples(SIZES) | st.tuples(SIZES, SIZES), data=st.data())
def test_rectangles_are_the_range_in_its_order(shape, data):
    numbers = np.arange(np.prod(shape)).reshape(shape)
    low = data.draw(st.integers(0, numbers.size))
    high = data.draw(st.integers(low, numbers.size))
    found = [numbers[tuple(slice(a, a + n) for a, n in zip(at, size, strict=True))] for at, size in rectangles(shape, low, high)]
    assert len(found) <= 3
    assert all(piece.size for piece in found)
    assert [number for piece in found for number in piece.ravel()] == list(range(low, high))


@pytest.mark.parametrize("name", ["killed dp2", "rolled back pp2 vp2"])
def test_megatron_core_reads_the_same_state(name, finished, monkeypatch):
    """Of one process, out of the shares that two processes wrote."""
    ours = loaded_state(finished, name)
    for method in ("sharded_param_state_fully_reshardable", "load_parameter_state_from_fully_reshardable"):
        monkeypatch.setattr(SharedOutOptimizer, method, getattr(DistributedOptimizer, method))
    theirs = loaded_state(finished, name)
    assert len(ours) == len(theirs) > 3
    assert all(float(tensor.abs().sum()) > 0 for tensor in ours)
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one, other)


def loaded_state(finished, name: str) -> list[torch.Tensor]:
    """Weights in fp32 and moments of a job in this process that goes on from a run's newest checkpoint."""
    newest = checkpoint.latest(finished.out(name) / "checkpoints")
    out = finished.out(f"{name} read")
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(newest, out / "checkpoints" / newest.name)
    run = load_run(finished.file, [f"out={out}", *SHORT])
    with connected(time_limit(run)):
        optimizer = set_up(run).state.optimizer
    return [
        tensor.detach().clone()
        for part in getattr(optimizer, "chained_optimizers", [optimizer])
        for weight, moments in part.optimizer.state.items()
        for tensor in (weight, moments["exp_avg"], moments["exp_avg_sq"])
    ]
