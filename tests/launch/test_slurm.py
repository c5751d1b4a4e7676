"""Jobs on a real Slurm of two nodes: the run is submitted, killed, ended by its time limit, and finishes all the same."""

import contextlib
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import yaml

from latxa_megatron.launch.site import Site
from latxa_megatron.launch.slurm import Job, script
from latxa_megatron.starts import read_starts
from latxa_megatron.train.metrics import read_metrics
from tests.launch.test_rendezvous import RUN, STEPS
from tests.train.test_resume import assert_same_state

SITE = {"description": "two nodes of the tests", "tasks_per_node": 1, "cpus_per_task": 2, "stop_before": 50}

ALIVE = ("PENDING", "CONFIGURING", "RUNNING", "SIGNALING", "COMPLETING", "REQUEUED")


def test_killed_and_ended_by_its_time_limit_it_finishes_with_the_same_weights(slurm, tiny_run, whole, tmp_path):
    out, site = tiny_run.out("slurm"), tmp_path / "site.yaml"
    site.write_text(yaml.safe_dump(SITE))
    latxa = [sys.executable, "-m", "latxa_megatron", "launch"]
    command = [*latxa, "slurm", tiny_run.file, "--nodes", "2", "--site", site, "--time", "2", f"out={out}", *RUN]
    said = slurm.run(*command)
    number = said.split()[1].rstrip(";")

    _wait(slurm, number, lambda: len(read_metrics(out)) >= 5)
    _tasks(number)[1].kill()
    _wait(slurm, number, lambda: len(_starts(out)) == 2)
    _wait(slurm, number, lambda: len(read_metrics(out)) > _starts(out)[1]["step"])
    done = _signalled_before_the_time_limit(slurm, number, out)
    assert _end(slurm, number) == "COMPLETED"

    log = (out / "slurm" / f"{number}.log").read_text()
    first, after_kill, *later = [start["step"] for start in _starts(out)]
    assert first == 0
    assert after_kill in (3, 6), log  # at the save before the kill
    assert done in later, log  # nothing is computed again
    assert [event["how"] for event in read_starts(out) if event["event"] == "end"][-2:] == ["stopped", "finished"], log
    assert int(slurm.job(number)["Restarts"]) >= 2  # more where the machine is so slow that the signal meets a start
    assert [line["step"] for line in read_metrics(out)] == list(range(1, STEPS + 1))
    assert_same_state(whole, out)

    status = slurm.run(*latxa, "status", out)
    assert f"{out}: is finished\nstep {STEPS} of {STEPS} (100.0%)" in status
    assert re.search(r"earlier starts: 1 (crash|killed), \d+ stopped", status)


def _starts(out: Path) -> list[dict]:
    return [event for event in read_starts(out) if event["event"] == "start"]


def _wait(slurm, number: str, reached: Callable[[], bool]) -> None:
    """Wait for what happens while the job is there."""
    while not reached():
        job = slurm.job(number)
        assert job["JobState"] in ALIVE, job
        time.sleep(0.1)


def _end(slurm, number: str) -> str:
    """The state of a job that neither runs nor waits to run."""
    while (state := slurm.job(number)["JobState"]) in ALIVE:
        time.sleep(0.1)
    return state


def _tasks(number: str) -> list[psutil.Process]:
    """The processes that srun started, by their rank."""
    found = {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            words = process.environ()
            if words.get("SLURM_JOB_ID") == number and "SLURM_PROCID" in words and process.cmdline()[3:4] == ["train"]:
                found.setdefault(int(words["SLURM_PROCID"]), process)
    return [found[rank] for rank in sorted(found)]


def _signalled_before_the_time_limit(slurm, number: str, out: Path) -> int:
    """Hold the ranks still, which costs nothing, until Slurm signals and wakes them; then the steps that are done in the end."""
    tasks = _tasks(number)
    for task in tasks:
        task.suspend()
    _wait(slurm, number, lambda: not any(task.is_running() for task in tasks))
    return len(read_metrics(out))


@pytest.fixture
def submitted(slurm, tiny_run, tmp_path):
    """Submits a run whose srun is a line of bash; the job's number, and the directory of the run."""

    def submit(name: str, srun: str, time: str = "5") -> tuple[str, Path]:
        out = tiny_run.out(name)
        site = Site(**SITE, setup=["srun() {", srun, "}"])
        text = script(Path(tiny_run.file), Job(2, time=time), site, [f"out={out}", *RUN])
        (out / "slurm").mkdir(parents=True)
        (out / "slurm" / "job.sbatch").write_text(text)
        return slurm.run("sbatch", "--parsable", out / "slurm" / "job.sbatch").strip(), out

    return submit


def _log(out: Path) -> str:
    return "".join(path.read_text() for path in sorted((out / "slurm").glob("*.log")))


ENDS = """echo '{"event": "end", "how": "%s"}' >>"$out/starts.jsonl"; return %d"""


@pytest.mark.parametrize(("how", "status", "state"), [("finished", 0, "COMPLETED"), ("error", 2, "FAILED")])
def test_a_run_that_is_over_is_not_started_again(how, status, state, slurm, submitted):
    number, out = submitted(f"over, it's {how} at 50%", ENDS % (how, status))
    assert _end(slurm, number) == state
    assert slurm.job(number)["Restarts"] == "0"
    assert f"latxa: {how} at step 0, status {status}" in _log(out)


def test_starts_that_save_nothing_are_few(slurm, submitted):
    number, out = submitted("idle", "return 137")
    assert _end(slurm, number) == "FAILED"
    assert slurm.job(number)["Restarts"] == "2"
    assert _log(out).count("latxa: killed at step 0, status 137") == 3
    assert "3 starts in a row saved nothing; remove" in _log(out)


def test_where_a_job_cannot_be_requeued_another_is_submitted(slurm, submitted):
    """As on clusters that keep requeueing for their administrators."""
    forbid = "scontrol update JobId=$SLURM_JOB_ID Requeue=0; touch $out/first; return 137"
    number, out = submitted("forbidden", f"if [ -e $out/first ]; then {ENDS % ('finished', 0)}; else {forbid}; fi")
    second = str(int(number) + 1)
    assert _end(slurm, number) == "COMPLETED"
    assert _end(slurm, second) == "COMPLETED"
    assert (out / "slurm" / f"{second}.log").read_text().startswith(f"latxa: job {second}")


def test_a_cancelled_job_is_not_started_again(slurm, submitted):
    number, out = submitted("cancelled", "trap 'sleep 0.1; return 0' TERM; echo waits; while :; do sleep 0.1; done")
    _wait(slurm, number, lambda: "waits" in _log(out))
    slurm.run("scancel", number)
    assert _end(slurm, number) == "CANCELLED"
    assert "left as it is" in _log(out)


@pytest.mark.slow  # a time limit is a minute at least, and Slurm looks at it every half
def test_a_run_that_reaches_its_time_limit_is_started_again(slurm, submitted):
    """As where a save takes longer than the signal was early; what ends it then is SIGTERM."""
    late = "trap : USR1; trap 'return 143' TERM; touch $out/first; while :; do sleep 0.1; done"
    number, out = submitted("late", f"if [ -e $out/first ]; then {ENDS % ('finished', 0)}; else {late}; fi", time="1")
    assert _end(slurm, number) == "COMPLETED"
    assert "DUE TO TIME LIMIT" in _log(out)
    assert slurm.job(number)["Restarts"] == "1"
