"""A run that was killed and started again has, bit for bit, the weights and optimizer state of one that was not."""

import contextlib
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
import torch

from latxa_megatron.data.mixture import Mix
from latxa_megatron.data.packing import pack
from latxa_megatron.errors import LatxaError
from latxa_megatron.train import checkpoint
from latxa_megatron.train.metrics import read_metrics
from tests.train.conftest import KILLED, SHORT


def state(directory: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint, through torch's own reader of its files."""
    from torch.distributed.checkpoint import FileSystemReader
    from torch.distributed.checkpoint.default_planner import _EmptyStateDictLoadPlanner
    from torch.distributed.checkpoint.state_dict_loader import _load_state_dict

    found: dict = {}
    _load_state_dict(found, FileSystemReader(directory), planner=_EmptyStateDictLoadPlanner(), no_dist=True)
    return {key: value for key, value in found.items() if isinstance(value, torch.Tensor)}


def started(command: list[str], out: Path, steps: int) -> subprocess.Popen:
    """The process of a run that has done so many steps."""
    process = subprocess.Popen(command, start_new_session=True)
    while process.poll() is None and len(read_metrics(out)) < steps:
        time.sleep(0.01)
    assert process.poll() is None, "the run was over before it could be stopped"
    return process


@pytest.mark.parametrize("name", ["killed pp2"])  # dp2 goes on after a signal, below
def test_killed_and_started_again(name, finished):
    again = f"{name} again"
    command = finished.command(again, KILLED[name])
    process = started(command, finished.out(again), 5)
    for each in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            each.kill()  # workers have sessions of their own
    process.wait()
    assert 5 <= len(read_metrics(finished.out(again))) < 9
    subprocess.run(command, check=True)
    assert [line["step"] for line in read_metrics(finished.out(again))] == list(range(1, 10))
    assert_same_state(finished.out(name), finished.out(again))


def assert_same_state(one: Path, other: Path) -> None:
    whole, cut = (state(checkpoint.latest(out / "checkpoints")) for out in (one, other))
    assert whole.keys() == cut.keys()
    assert any("exp_avg" in key for key in whole)
    for key, tensor in whole.items():
        assert torch.equal(tensor, cut[key]), key


def test_a_checkpoints_weights_are_the_optimizers(finished):
    """Weights of the other data-parallel rank reach a model only when they are gathered, after the step that changed them."""
    found = state(checkpoint.latest(finished.out("killed dp2") / "checkpoints"))
    of_optimizer = {k.removeprefix("optimizer.state.param."): v for k, v in found.items() if "optimizer.state.param." in k}
    assert len(of_optimizer) > 8
    for key, tensor in of_optimizer.items():
        assert torch.equal(found[key], tensor), key


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_saves_a_checkpoint_and_ends(number, finished):
    """The step that was under way is the last, and is saved though no save was due; the run goes on from there."""
    name = f"ended by {number.name}"
    out = finished.out(name)
    command = finished.command(name, KILLED["killed dp2"])
    process = started(command, out, 4)
    process.send_signal(number)
    process.wait()
    done = len(read_metrics(out))
    assert 4 <= done < 9
    assert checkpoint.latest(out / "checkpoints").name == f"iter_{done:07d}"
    if number is signal.SIGTERM:
        subprocess.run(command, check=True)
        assert_same_state(finished.out("killed dp2"), out)


def test_resume_under_another_layout(finished):
    expected = [line["loss"] for line in read_metrics(finished.out("short"))][6:]
    assert [line["loss"] for line in read_metrics(finished.out("moved"))] == pytest.approx(expected, abs=1e-5, rel=0)


def test_a_run_does_not_go_on_with_other_data(finished, tmp_path):
    pack(tmp_path / "other", [Mix(finished.root / "store", {})], seq_length=64, seed=6)
    with pytest.raises(LatxaError, match="is not the plan that"):
        finished.train_here("short", [*SHORT, f"data.plan={tmp_path / 'other'}"])
    with pytest.raises(LatxaError, match="was trained with 4, not 8"):
        finished.train_here("short", [*SHORT, "train.global_batch=8"])


def test_a_finished_run_started_again_does_nothing(finished):
    before = read_metrics(finished.out("short"))
    finished.train_here("short", SHORT)
    assert read_metrics(finished.out("short")) == before
