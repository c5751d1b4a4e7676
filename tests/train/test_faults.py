"""What training does when something is wrong: it says so, and leaves what is whole."""

import shutil

import pytest

from latxa_megatron.errors import LatxaError
from latxa_megatron.files import locked
from latxa_megatron.train import checkpoint, loop
from latxa_megatron.train.metrics import read_metrics
from tests.train.conftest import SHORT


def test_a_damaged_checkpoint_is_passed_over(finished):
    shutil.copytree(finished.out("short"), finished.out("damaged"))
    newest = checkpoint.latest(finished.out("damaged") / "checkpoints")
    assert newest.name == "iter_0000009"
    cut = max(newest.glob("*.distcp"), key=lambda file: file.stat().st_size)
    cut.write_bytes(cut.read_bytes()[:-1])
    assert checkpoint.latest(newest.parent).name == "iter_0000006"
    finished.train_here("damaged", SHORT)  # steps 7 to 9 again, and the damaged checkpoint replaced
    assert checkpoint.latest(newest.parent) == newest
    assert losses(finished, "damaged") == losses(finished, "short")


def test_a_cuda_graph_without_a_gpu_is_one_sentence(tiny_run):
    with pytest.raises(LatxaError, match=r"train\.cuda_graph: needs a GPU"):
        tiny_run.train_here("graph", ["train.cuda_graph=true"])


def test_a_run_is_trained_once_at_a_time(finished, monkeypatch):
    monkeypatch.setattr(loop, "ORPHANS", 0)
    with locked(finished.out("short"), "training this run"), pytest.raises(LatxaError, match="training this run"):
        finished.train_here("short", SHORT)


def test_a_resumed_run_follows_its_run_file(finished):
    """A learning rate that was lowered by hand holds from the first step after the resume."""
    first = finished.out("short") / "checkpoints" / "iter_0000006"
    shutil.copytree(first, finished.out("lowered") / "checkpoints" / first.name)
    finished.train_here("lowered", [*SHORT, "optimizer.lr=1e-4", "checkpoint.every=null"])
    lowered = {line["step"]: line["lr"] for line in read_metrics(finished.out("lowered"))}
    whole = {line["step"]: line["lr"] for line in read_metrics(finished.out("short"))}
    assert sorted(lowered) == [7, 8, 9]
    for step, lr in lowered.items():
        assert lr == pytest.approx(whole[step] / 10)


def losses(run, name: str) -> list[float]:
    return [line["loss"] for line in read_metrics(run.out(name))]
