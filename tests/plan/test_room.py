"""What training refuses before it starts, and that it refuses nothing that fitted when it was measured."""

import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from latxa_megatron.cli.main import app
from latxa_megatron.config import load_run
from latxa_megatron.errors import LatxaError
from latxa_megatron.launch.kubernetes import Pods, manifest
from latxa_megatron.launch.site import load_site
from latxa_megatron.launch.slurm import Job, script
from latxa_megatron.model.llama import LlamaShape
from latxa_megatron.plan import room
from latxa_megatron.plan.estimate import estimate
from latxa_megatron.plan.gpus import find_gpu
from latxa_megatron.starts import read_starts
from tests.train.conftest import TinyRun

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from plan_check import rows, run_of

ALL = [row for row in rows("plan_measured.jsonl") if "parallel.pp=2" not in row["overrides"]]  # of which one stage was measured


@pytest.mark.parametrize("row", ALL, ids=lambda row: f"{row['shape']} {row['overrides'][2:]}")
def test_no_measured_run_is_refused_where_it_just_fits(row, tmp_path):
    """A GPU with room for torch's measured peak and not a byte more; one with half of it is refused."""
    run = run_of(row, tmp_path)
    shape = LlamaShape.from_hf(run.model.hf)
    room.judge(run, shape, row["processes"], row["peak_gib"])
    with pytest.raises(LatxaError, match="does not fit"):
        room.judge(run, shape, row["processes"], row["peak_gib"] / 2)


@pytest.mark.parametrize(("overrides", "margin"), [([], 0.05), (["parallel.cp=2"], 0.15), (["precision.fp8=tensorwise"], 0.15)])
def test_refused_beyond_the_margin_and_warned_within(run_file, overrides, margin):
    run = load_run(run_file, overrides)
    shape, peak = LlamaShape.from_hf(run.model.hf), estimate(run, find_gpu("h200"), 8).worst.peak
    assert room.judge(run, shape, 8, peak + 4.01) is None
    for gib in (peak + 3.99, peak, peak * (1 - margin) + 0.01):
        assert "may not fit" in room.judge(run, shape, 8, gib)
    with pytest.raises(LatxaError, match=rf"needs {peak + 4:.1f} of .* GiB on stage 0; .*(TP|CP|PP|recompute).* --force starts"):
        room.judge(run, shape, 8, peak * (1 - margin) - 0.01)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return TinyRun(tmp_path_factory.mktemp("tiny"))


def start(tiny, out, *options):
    return CliRunner().invoke(app, ["train", *options, str(tiny.file), f"out={tiny.out(out)}", "train.steps=1"])


def test_training_refuses_unless_it_is_forced(tiny, monkeypatch):
    monkeypatch.setattr(room, "gpu_gib", lambda: 0.05)
    said = start(tiny, "refused")
    assert "does not fit" in str(said.exception)
    assert [(each["event"], each["how"]) for each in read_starts(tiny.out("refused"))] == [("end", "error")]
    said = start(tiny, "forced", "--force")
    assert said.exit_code == 0, said.output
    assert [each.get("how") for each in read_starts(tiny.out("forced"))] == [None, "finished"]
    monkeypatch.setattr(room, "gpu_gib", lambda: 2.0)
    assert "warning: this run may not fit: it is planned to need" in start(tiny, "warned").output


def test_a_cpu_says_nothing(tiny):
    said = start(tiny, "cpu")
    assert said.exit_code == 0, said.output
    assert "fit" not in said.output


def test_launchers_hand_force_on(tiny, monkeypatch):
    monkeypatch.chdir(tiny.root)
    site, pods = load_site("generic").model_copy(update={"tasks_per_node": 1}), Pods(1, 1, "image", {"work": tiny.root.parent})
    for force in (False, True):
        overrides = [f"out={tiny.out('slurm')}"]
        assert ("latxa_megatron train --force" in script(tiny.file, Job(1), site, overrides, force=force)) == force
        assert ("'--force'" in str(manifest(tiny.file, pods, overrides, force=force))) == force
