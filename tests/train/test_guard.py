"""Steps with a fault change nothing; several in a row send the run back to its last checkpoint."""

import json
import math

import pytest
import torch

from latxa_megatron.convert.exporter import export_hf
from latxa_megatron.errors import LatxaError
from latxa_megatron.sections import GuardSection
from latxa_megatron.train import step
from latxa_megatron.train.distributed import connect, disconnect
from latxa_megatron.train.guard import Guard, Patience
from latxa_megatron.train.metrics import read_metrics
from tests.tiny import load_llama
from tests.train.conftest import FAULTY, FAULTY_IN_TWO, GLOBAL_BATCH, SHORT
from tests.train.runs_worker import with_faults
from tests.train.test_parity import document_losses
from tests.train.test_resume import assert_same_state, state

EVERY_STEP = ["train.steps=6", "checkpoint.every=1", "checkpoint.keep=3"]


@pytest.fixture
def faulty(monkeypatch):
    """Makes the n-th forward and backward of a run, from 1, give a loss that is no number, for each n that is named."""

    return lambda *calls: monkeypatch.setattr(step, "forward_backward", with_faults(step.forward_backward, calls))


def faults(run, name: str) -> dict[int, str]:
    return {line["step"]: line["fault"]["action"] for line in read_metrics(run.out(name)) if "fault" in line}


def test_a_fault_that_does_not_come_again_changes_nothing(finished, faulty):
    faulty(4, 9)
    finished.train_here("repeated", [*SHORT, "checkpoint.every=9"])
    assert faults(finished, "repeated") == {4: "repeated", 8: "repeated"}
    assert_same_state(finished.out("short"), finished.out("repeated"))


def test_a_step_with_a_fault_is_not_applied(finished, faulty):
    faulty(5, 6)  # step 5 and its second try
    finished.train_here("skipped", EVERY_STEP)
    assert faults(finished, "skipped") == {5: "skipped"}
    assert read_metrics(finished.out("skipped"))[4]["loss"] is None
    checkpoints = finished.out("skipped") / "checkpoints"
    before, after, next_one = (state(checkpoints / f"iter_000000{n}") for n in (4, 5, 6))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert not all(torch.equal(after[key], next_one[key]) for key in before)
    facts = json.loads((checkpoints / "iter_0000005" / "run.json").read_text())
    assert facts["step"] == 5


def test_a_rollback_takes_the_last_checkpoint_and_leaves_out_the_samples_since(finished, faulty, tmp_path):
    faulty(5, 6, 7, 8)
    finished.train_here("rolled back", [*FAULTY, "checkpoint.keep=3"])
    assert faults(finished, "rolled back") == {5: "skipped", 6: "rolled back"}
    here, undisturbed = read_metrics(finished.out("rolled back")), read_metrics(finished.out("short"))
    assert [line["lr"] for line in here] == [line["lr"] for line in undisturbed]
    export_hf(finished.out("rolled back") / "checkpoints" / "iter_0000003", tmp_path / "at3")
    model = load_llama(tmp_path / "at3")
    with torch.no_grad():  # step 7 has its own samples and the weights after step 3
        losses = []
        for sample in range(6 * GLOBAL_BATCH, 7 * GLOBAL_BATCH):
            row = finished.plan.row(sample)
            for piece in finished.plan.slices[finished.plan.row_offsets[row] : finished.plan.row_offsets[row + 1]]:
                losses += document_losses(model, finished.documents, finished.spans, piece)
    assert here[6]["loss"] == pytest.approx(float(torch.stack(losses).mean()), abs=1e-5)
    assert here[6]["loss"] != undisturbed[6]["loss"]


@pytest.mark.parametrize("name", FAULTY_IN_TWO)
def test_two_processes_roll_back_alike(name, finished, faulty):
    if not finished.out("rolled back alone").exists():
        faulty(5, 6, 7, 8)
        finished.train_here("rolled back alone", FAULTY)
    assert faults(finished, name) == faults(finished, "rolled back alone") == {5: "skipped", 6: "rolled back"}
    for one, other in zip(*(read_metrics(finished.out(each)) for each in (name, "rolled back alone")), strict=True):
        assert one["loss"] == (pytest.approx(other["loss"], abs=1e-5) if other["loss"] else None)
        assert one["lr"] == other["lr"]


def test_a_run_that_does_not_learn_stops_with_a_report(finished):
    with pytest.raises(LatxaError, match=r"step 4: the loss is .*nan. .*its samples are 12 to 15 .*lower optimizer.lr") as error:
        finished.train_here("diverged", [*SHORT, "optimizer.lr=1e30", "checkpoint.every=100", "guard.skips=2"])
    assert "guard.skips" in str(error.value)
    assert faults(finished, "diverged") == {2: "skipped", 3: "skipped", 4: "stopped"}


class Optimizer:
    """megatron-core's, as far as the guard sees it."""

    def __init__(self) -> None:
        self.norm, self.updates = 1.0, 0

    def get_grad_norm(self) -> float:
        return self.norm

    def step_with_ready_grads(self) -> bool:
        self.updates += 1
        return True


def test_what_a_spike_is():
    optimizer = Optimizer()
    connect()
    guard = Guard(GuardSection(loss_spike=2, grad_norm_spike=10), optimizer)

    def fault(loss: float, norm: float) -> str | None:
        optimizer.norm = norm
        guard.expect(loss)
        optimizer.get_grad_norm()
        optimizer.step_with_ready_grads()
        return guard.fault

    assert fault(50.0, 1.0) is None  # with no steps before there is nothing to measure it against
    assert [fault(3.0, 1.0) for _ in range(19)] == [None] * 19
    assert fault(6.0, 10.0) is None  # not more than two and ten times the medians, 3 and 1
    assert fault(6.1, 1.0) == "the loss is 6.1, 2 times the median of the last 21 steps and more"
    assert fault(3.0, 10.1) == "the gradient norm is 10.1, 10 times the median of the last 21 steps and more"
    assert fault(math.inf, 1.0) == "the loss is inf, the gradient norm 1"
    assert fault(3.0, math.nan) == "the loss is 3, the gradient norm nan"
    assert optimizer.updates == 21
    disconnect()


def test_patience():
    patience, there = Patience(GuardSection(skips=2, rollbacks=1)), [True]

    def after(first: str | None, again: str | None) -> str | None:
        return patience.after(first, again, can_roll_back=lambda: there[0])

    bad = ("loss", "loss")
    assert [after(*bad), after(None, None), after(*bad), after("loss", None)] == ["skipped", None, "skipped", "repeated"]
    assert [after(*bad) for _ in range(6)] == ["skipped", "skipped", "rolled back", "skipped", "skipped", "stopped"]
    there[0] = False
    patience = Patience(GuardSection(skips=0, rollbacks=1))
    assert after(*bad) == "stopped"
