"""What `latxa launch status` makes of a run's files, written here by hand."""

import json
import os
import time
from datetime import datetime, timedelta

import pytest

from latxa_megatron.errors import LatxaError
from latxa_megatron.files import locked
from latxa_megatron.launch.status import METRICS, describe, status
from latxa_megatron.starts import FILE
from latxa_megatron.train import metrics

NOW = time.time()


def began(step, **more):
    start = {"event": "start", "time": NOW - 5000, "ranks": 4, "host": "n1", "job": None, "step": step, "steps": 1000}
    return {**start, **more}


def ended(how, **more):
    return {"event": "end", "time": NOW, "how": how, **more}


def steps(first, last, **more):
    """Steps of 4 s with a second between them, 8000 positions on 4 ranks."""
    line = {"loss": 2.5, "seconds": 4.0, "pause": 1.0, "positions": 8000, "model_tflops_per_rank": 500.0}
    rates = {"positions_per_second": 2000.0, "positions_per_second_per_rank": 500.0}
    return [{"step": step, **line, **rates, **more} for step in range(first, last + 1)]


@pytest.fixture
def run(tmp_path):
    """Writes a run's files, the last step so many seconds old, and says what the command prints of it."""

    def write(starts, lines, age=0.0, path=tmp_path):
        for name, values in ((FILE, starts), (METRICS, lines)):
            if values is not None:
                (tmp_path / name).write_text("".join(json.dumps(value) + "\n" for value in values))
                os.utime(tmp_path / name, (NOW - age, NOW - age))
        return describe(status(path, None, NOW), datetime.fromtimestamp(NOW))

    return write


def test_the_file_is_the_trainers():
    assert METRICS == metrics.FILE


def test_a_run_under_way(run, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "latest_checkpointed_iteration.txt").write_text("90\n")
    lines = [*steps(1, 90, seconds=100.0), *steps(91, 100)]  # the speed is this start's
    said = run([began(0), began(50), ended("stopped"), began(90, job="77")], lines)
    since = datetime.fromtimestamp(NOW - 5000)
    until = datetime.fromtimestamp(NOW) + timedelta(seconds=4500)
    assert said[0] == f"{tmp_path}: is running: 4 ranks, rank 0 on n1, job 77, since {since:%Y-%m-%d %H:%M}"
    assert said[1] == "step 100 of 1,000 (10.0%), loss 2.5000"
    assert said[2] == "5 s a step, 1,600 tokens/s, 400 a rank, 500 TFLOP/s a rank in its steps (mean of the last 10)"
    assert said[3] == f"left 1:15:00, until {until:%Y-%m-%d %H:%M} if nothing stops it"
    assert said[4:] == ["checkpoint after step 90", "started 3 times; earlier starts: 1 killed, 1 stopped"]


@pytest.mark.parametrize(
    ("end", "said"),
    [
        (ended("finished"), ["is finished"]),
        (ended("stopped"), ["was asked to stop, and saved; the same command goes on"]),
        (ended("error", error="step 9: no"), ["ended with an error", "it said: step 9: no"]),
        (
            ended("crash", error="CUDA error"),
            ["crashed; the same command goes on from the last checkpoint", "it said: CUDA error"],
        ),
    ],
)
def test_a_start_that_said_how_it_ended(end, said, run, tmp_path):
    lines = run([began(0), end], steps(1, 3))
    assert lines[: len(said)] == [f"{tmp_path}: {said[0]}", *said[1:]]
    assert "step 3 of 1,000 (0.3%), loss 2.5000" in lines
    assert not any(line.startswith("left") for line in lines)


def test_a_start_that_said_nothing(run, tmp_path):
    killed = f"{tmp_path}: ended without a word: it was killed, or its machine failed"
    assert run([began(0)], steps(1, 3), age=119)[0].startswith(f"{tmp_path}: is running")
    assert run([began(0)], steps(1, 3), age=121)[0].startswith(killed)
    slow = steps(1, 3, seconds=60.0)
    assert run([began(0)], slow, age=290)[0].startswith(f"{tmp_path}: is running")
    assert run([began(0)], slow, age=310)[0].startswith(killed)
    with locked(tmp_path, "training"):  # as a process that trains it does
        assert run([began(0)], steps(1, 3), age=9999)[0].startswith(f"{tmp_path}: is running")
    (tmp_path / "hung").mkdir()
    (tmp_path / "hung" / "report.txt").write_text("the run hangs")
    assert run([began(0)], steps(1, 3), age=9999)[1] == f"it hung, see {tmp_path / 'hung' / 'report.txt'}"


def test_before_the_first_step(run, tmp_path):
    (tmp_path / "slurm").mkdir()
    assert run(None, None) == [f"{tmp_path}: has not begun"]
    (tmp_path / "slurm" / "7.log").touch()
    assert run(None, None)[1:] == [f"log {tmp_path / 'slurm' / '7.log'}"]
    (tmp_path / "slurm" / "idle").write_text("7\n7\n")
    assert run(None, None)[1] == "starts of its job in a row that saved nothing: 2"
    (tmp_path / "slurm" / "idle").unlink()
    (tmp_path / "slurm" / "8.log").write_text("latxa: job 8 on n1\nsome noise\n")
    os.utime(tmp_path / "slurm" / "7.log", (0, 0))
    assert run(None, None)[1] == f"log {tmp_path / 'slurm' / '8.log'}, whose job said: job 8 on n1"
    with locked(tmp_path, "training"):
        said = run([began(0), ended("crash", error="x")], None)
        assert (said[0], said[1]) == (f"{tmp_path}: is starting", "started 2 times; earlier starts: 1 crash")
    twice = [began(0), ended("stopped"), ended("crash", error="no memory")]  # the second time it was not set up
    assert run(twice, None)[:3] == [
        f"{tmp_path}: crashed; the same command goes on from the last checkpoint",
        "it said: no memory",
        "started 2 times; earlier starts: 1 stopped",
    ]
    assert run([ended("error", error="no plan")], None)[:2] == [f"{tmp_path}: ended with an error", "it said: no plan"]


def test_steps_that_were_passed_over(run):
    faulty = {"first": "spike", "again": "spike", "action": "skipped"}
    lines = [*steps(1, 3, fault=faulty), *steps(4, 4, fault={**faulty, "action": "rolled back"}, loss=None)]
    said = run([began(0)], lines)
    assert "step 4 of 1,000 (0.4%)" in said  # its loss is no number
    assert "steps with a fault: 1 rolled back, 3 skipped" in said


def test_a_run_file_names_the_directory(run, tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(f"name: a\nout: {tmp_path}/none\nmodel: {{hf: hf}}\ntrain: {{steps: 8}}\ndata: {{}}\n")
    assert run(None, None, path=file) == [f"{tmp_path}/none: has not begun"]
    file.write_text(file.read_text().replace("/none", ""))
    assert run([began(0), ended("finished")], steps(1, 3), path=file)[0] == f"{tmp_path}: is finished"


def test_what_is_no_run(tmp_path):
    with pytest.raises(LatxaError, match="is not the directory of a run"):
        status(tmp_path, None, NOW)
    with pytest.raises(LatxaError, match="there is no such run file"):
        status(tmp_path / "none", None, NOW)
