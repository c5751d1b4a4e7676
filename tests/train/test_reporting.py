"""What a run reports of its steps, against transformers on documents one by one and the readers of other programs."""

import json
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from latxa_megatron.config import load_run
from latxa_megatron.data.mixture import Mix
from latxa_megatron.data.packing import pack
from latxa_megatron.errors import LatxaError
from latxa_megatron.train.check import check_run
from latxa_megatron.train.loop import train
from latxa_megatron.train.metrics import read_metrics
from latxa_megatron.train.reporting import flat
from tests.tiny import load_llama, random_documents, write_store
from tests.train.conftest import GLOBAL_BATCH, SEQ_LENGTH
from tests.train.reporting_worker import SLEEP
from tests.train.test_parity import document_losses

SOURCES = {"eu": (40, 3), "en": (30, 4), "rare": (1, 5)}
"""Documents and seed of each; a step's samples may have none of the rare one."""
FROZEN = ["optimizer.lr=1e-12", "optimizer.weight_decay=0", "checkpoint.every=null"]
EVERYWHERE = ["logging.tensorboard=true", "logging.wandb=tiny", "train.steps=4"]
IN_TWO_PROCESSES = {  # name: overrides, the rank that is slow
    "dp2": ([], 0),
    "tp2": (["parallel.tp=2", "train.micro_batch=2"], None),
    "pp2": (["parallel.pp=2", "train.micro_batch=2"], 1),
    "pp2 vp2": (["parallel.pp=2", "parallel.vp=2"], None),
}


class Mixture:
    """The tiny run on three sources, each in a store of its own."""

    def __init__(self, tiny_run, root: Path) -> None:
        self.tiny, self.root = tiny_run, root
        self.texts = {name: random_documents(count, seed=seed) for name, (count, seed) in SOURCES.items()}
        stores = [write_store(root / name, *texts, source=name) for name, texts in self.texts.items()]
        self.plan = pack(root / "plan", [Mix(store, {}) for store in stores], seq_length=SEQ_LENGTH, seed=5)

    def out(self, name: str) -> Path:
        return self.root / "runs" / name

    def overrides(self, name: str, more: list[str]) -> list[str]:
        return [f"out={self.out(name)}", f"data.plan={self.plan.directory}", "train.steps=null", *more]

    def train_here(self, name: str, more: list[str]) -> None:
        train(load_run(self.tiny.file, self.overrides(name, more)))


@pytest.fixture(scope="module")
def mixture(tiny_run, tmp_path_factory):
    return Mixture(tiny_run, tmp_path_factory.mktemp("mixture"))


@pytest.fixture(scope="module")
def trained(mixture):
    mixture.train_here("one process", FROZEN)
    mixture.train_here("micro batch 2", [*FROZEN, "train.micro_batch=2"])
    runs = [(mixture.overrides(name, [*FROZEN, *more]), slow) for name, (more, slow) in IN_TWO_PROCESSES.items()]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    worker = Path(__file__).with_name("reporting_worker.py")
    subprocess.run([*torchrun, str(worker), str(mixture.tiny.file), json.dumps(runs)], check=True)
    return mixture


@pytest.fixture(scope="module")
def expected(mixture):
    """For each step, the losses of the trained labels of each source, of the weights that the run begins with."""
    model, names = load_llama(mixture.tiny.hf), list(SOURCES)
    steps: list[dict[str, list[float]]] = []
    with torch.no_grad():
        for sample in range(len(mixture.plan) // GLOBAL_BATCH * GLOBAL_BATCH):
            if sample % GLOBAL_BATCH == 0:
                steps.append({})
            row = mixture.plan.row(sample)
            for piece in mixture.plan.slices[mixture.plan.row_offsets[row] : mixture.plan.row_offsets[row + 1]]:
                name = names[piece["store"]]
                losses = document_losses(model, *mixture.texts[name], piece)
                steps[-1].setdefault(name, []).extend(map(float, losses))
    assert len({len(each) for each in steps}) == 2, "the rare source is in some steps and not in others"
    assert mixture.plan.efficiency() < 1, "there should be padding"
    return steps


@pytest.mark.parametrize("name", ["one process", "micro batch 2", *IN_TWO_PROCESSES])
def test_loss_by_source_equals_transformers(name, trained, expected):
    lines = read_metrics(trained.out(name))
    assert len(lines) == len(expected) > 3
    for line, losses in zip(lines, expected, strict=True):
        by_source = line["loss_by_source"]
        assert by_source == pytest.approx({source: np.mean(each) for source, each in losses.items()}, abs=1e-5, rel=0)
        weighted = sum(loss * len(losses[source]) for source, loss in by_source.items()) / line["trained_tokens"]
        assert weighted == pytest.approx(line["loss"], abs=1e-5, rel=0)


@pytest.mark.parametrize("name", [name for name, (_, slow) in IN_TWO_PROCESSES.items() if slow is not None])
def test_the_slow_rank_is_named(name, trained):
    """Though the ranks wait for each other and end their steps together. Each has two microbatches, and sleeps in both or none.

    Of the steps the calmest is judged: a busy machine can hold up the other rank for longer in one or another.
    """
    _, slow = IN_TWO_PROCESSES[name]
    lines = read_metrics(trained.out(name))
    for line in lines:
        assert line["seconds"] > line["rank_seconds"]["max"] > 2 * SLEEP
    found = min((line["rank_seconds"] for line in lines), key=lambda each: each["p50"])
    assert found["slowest_rank"] == slow
    other = 2 * found["p50"] - found["max"]  # of two ranks the median is half the sum
    assert other < 2 * SLEEP
    assert found["p90"] == pytest.approx(other + 0.9 * (found["max"] - other))


def events(directory: Path) -> dict[int, dict[str, float]]:
    """Every scalar of a TensorBoard directory, by step, through TensorBoard's reader; a step that is there twice fails."""
    reader = EventAccumulator(str(directory), size_guidance={"scalars": 0}).Reload()
    steps: dict[int, dict[str, float]] = {}
    for tag in reader.Tags()["scalars"]:
        for event in reader.Scalars(tag):
            assert tag not in steps.setdefault(event.step, {}), f"step {event.step} is there twice"
            steps[event.step][tag] = event.value
    return steps


def history(directory: Path) -> list[tuple[str, dict[int, dict[str, float]]]]:
    """(id, {step: values}) of each offline W&B directory, oldest first: LevelDB's log format with W&B's own messages."""
    from wandb.proto.wandb_internal_pb2 import Record

    found = []
    for file in sorted(directory.glob("wandb/offline-run-*/*.wandb"), key=lambda file: file.stat().st_mtime):
        content, at, message, run_id, steps = file.read_bytes(), 7, b"", "", {}
        while at + 7 <= len(content):
            if 32768 - at % 32768 < 7:  # a block's rest, too short for a header
                at += 32768 - at % 32768
                continue
            _, length, kind = struct.unpack_from("<IHB", content, at)
            message += content[at + 7 : at + 7 + length]
            at += 7 + length
            if kind in (1, 4):  # whole, or the last piece
                record, message = Record.FromString(message), b""
                run_id = record.run.run_id or run_id
                items = {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item}
                if items:
                    steps[record.history.step.num] = {k: v for k, v in items.items() if not k.startswith("_")}
        found.append((run_id, steps))
    return found


@pytest.fixture(scope="module")
def resumed(mixture):
    """A run reported everywhere that loses its last checkpoint and goes on from step 2; its lines before and after."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        mixture.train_here("resumed", [*EVERYWHERE, "checkpoint.every=2"])
        before = read_metrics(mixture.out("resumed"))
        shutil.rmtree(mixture.out("resumed") / "checkpoints" / "iter_0000004")
        mixture.train_here("resumed", [*EVERYWHERE, "checkpoint.every=null"])
    return before, read_metrics(mixture.out("resumed"))


def test_tensorboard_shows_what_metrics_jsonl_has_and_no_step_twice(resumed, mixture):
    before, after = resumed
    assert [line["step"] for line in before] == [line["step"] for line in after] == [1, 2, 3, 4]
    assert before[1] == after[1]
    assert before[2]["seconds"] != after[2]["seconds"]  # steps from the third on were done again
    found = events(mixture.out("resumed") / "tensorboard")
    assert {"loss", "grad_norm", "lr", "loss_by_source/eu", "rank_seconds/max"} <= set(found[1])
    assert found == {line["step"]: pytest.approx(flat(line), rel=1e-6) for line in after}


def test_wandb_goes_on_with_the_same_run(resumed, mixture):
    before, after = resumed
    (first_id, first), (second_id, second) = history(mixture.out("resumed"))
    assert first_id == second_id != ""
    assert first == {line["step"]: pytest.approx(flat(line)) for line in before}
    assert second == {line["step"]: pytest.approx(flat(line)) for line in after[2:]}


def test_nothing_else_is_written_unless_it_is_asked_for(trained):
    assert sorted(path.name for path in trained.out("one process").iterdir()) == ["metrics.jsonl", "starts.jsonl"]


@pytest.mark.parametrize(("name", "value"), [("tensorboard", "true"), ("wandb", "project")])
def test_a_missing_package_names_its_extra(name, value, tiny_run, tmp_path, monkeypatch):
    """Also where a directory of that name, such as W&B leaves, could be taken for the package."""
    (tmp_path / name).mkdir()
    run = load_run(tiny_run.file, [f"logging.{name}={value}"])
    check_run(run, 1)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    for module in [m for m in sys.modules if m.partition(".")[0] == name]:
        monkeypatch.delitem(sys.modules, module)
    with pytest.raises(LatxaError, match=rf"logging.{name}: .* pip install 'latxa-megatron\[{name}\]'"):
        check_run(run, 1)
