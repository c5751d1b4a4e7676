"""Each rank's share of the optimizer state as rectangles: against brute force, and against megatron-core's own gathered state."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

from latxa_megatron.config import load_run
from latxa_megatron.train import checkpoint
from latxa_megatron.train.distributed import connected, time_limit
from latxa_megatron.train.optimizer_state import SharedOutOptimizer, rectangles
from latxa_megatron.train.setup import set_up
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


def take_megatron_cores(monkeypatch):
    for method in ("sharded_param_state_fully_reshardable", "load_parameter_state_from_fully_reshardable"):
        monkeypatch.setattr(SharedOutOptimizer, method, getattr(DistributedOptimizer, method))


@pytest.mark.parametrize("name", ["killed dp2", "rolled back pp2 vp2"])
def test_megatron_core_reads_the_same_state(name, finished, monkeypatch):
    """Of one process, out of the shares that two processes wrote."""
    newest = checkpoint.latest(finished.out(name) / "checkpoints")
    ours = state_of(newest, finished)
    take_megatron_cores(monkeypatch)
    same(ours, state_of(newest, finished))


def test_what_megatron_core_writes_is_read(finished, monkeypatch):
    """As checkpoints were written before the ranks wrote their shares."""
    newest = checkpoint.latest(finished.out("killed dp2") / "checkpoints")
    with monkeypatch.context() as patch:
        take_megatron_cores(patch)
        theirs = state_of(newest, finished, save=True)
    again = finished.out("read") / "checkpoints" / newest.name
    shutil.rmtree(finished.out("theirs"), ignore_errors=True)
    same(theirs, state_of(again.rename(finished.out("theirs")), finished))


def same(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> None:
    assert len(ours) == len(theirs) > 3
    assert all(float(tensor.abs().sum()) > 0 for tensor in ours)
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one, other)


def state_of(directory: Path, finished, *, save: bool = False) -> list[torch.Tensor]:
    """Weights in fp32 and moments of a job in this process that goes on from a checkpoint, and writes one over it if so told."""
    out = finished.out("read")
    shutil.rmtree(out, ignore_errors=True)
    step = int(checkpoint.read_facts(directory)["step"])
    shutil.copytree(directory, out / "checkpoints" / f"iter_{step:07d}")
    run = load_run(finished.file, [f"out={out}", *SHORT])
    with connected(time_limit(run)):
        job = set_up(run)
        assert job.start == step
        if save:
            shutil.rmtree(out / "checkpoints")
            job.save(step)
            job.saver.finish()
        optimizer = job.state.optimizer
    return [
        tensor.detach().clone()
        for part in getattr(optimizer, "chained_optimizers", [optimizer])
        for weight, moments in part.optimizer.state.items()
        for tensor in (weight, moments["exp_avg"], moments["exp_avg_sq"])
    ]
