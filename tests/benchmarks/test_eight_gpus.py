"""The script for eight GPUs, as far as a CPU can say: its runs can start, fit and end in time, and no row stops the next."""

import itertools
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from latxa_megatron.config import load_run
from latxa_megatron.plan.estimate import estimate
from latxa_megatron.plan.gpus import find_gpu

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "gpu"))
import eight_gpus
import eight_rows
import shapes


def script(out: Path, *arguments: str) -> list[list[str]]:
    """The cells of the table's lines that the script prints."""
    command = [sys.executable, eight_gpus.__file__, "--out", str(out), *arguments]
    done = subprocess.run(command, text=True, capture_output=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    lines = [line for line in done.stdout.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:]]


@pytest.mark.parametrize("gpus", [2, 4, 8])
def test_dry_run_has_every_row_and_ends_in_nine_minutes(tmp_path, gpus):
    found = script(tmp_path, "--dry-run", "--gpus", str(gpus))
    assert [len(cells) for cells in found] == [11] * 7
    assert {cells[2] for cells in found} == {"not run"}
    assert sum(int(cells[-1].strip("()")) for cells in found) < 525
    for row, cells in zip(eight_rows.rows(gpus), [*found[1:5], found[6]], strict=True):
        assert cells[0] == f"{row.shape}, {row.seq_length}: {row.name}"
        file = tmp_path / shapes.file_name(f"{row.shape} {row.name}") / "run.yaml"
        planned = estimate(load_run(file, row.overrides), find_gpu("h200"), gpus, float(row.seq_length))
        assert planned.fits
        assert (cells[4], cells[7]) == (f"{planned.seconds.step:.3f}", f"{planned.memory[0].peak:.1f}")
    per_step = 128 * 8192 / 8 / float(found[1][4])
    assert per_step == pytest.approx(15000, rel=0.02)  # each sample one document, as in the published row: docs/plan.md


@pytest.mark.parametrize("gpus", [2, 4, 8])
def test_no_other_stages_have_a_shorter_step(tmp_path, gpus):
    row = eight_rows.rows(gpus)[1]
    file = shapes.write_shape(tmp_path, row.shape).parent / "run.yaml"
    run = {"name": "r", "model": {"hf": str(tmp_path / shapes.file_name(row.shape))}, "data": {"store": "s", "plan": "none"}}
    file.write_text(json.dumps(run))

    def step(stages: list[int]) -> float:
        overrides = [*row.overrides, f"parallel.stages={stages}"]
        return estimate(load_run(file, overrides), find_gpu("h200"), gpus, 8192.0).seconds.step

    (own,) = (json.loads(each.partition("=")[2]) for each in row.overrides if "stages" in each)
    others = (list(each) for each in itertools.product(*(range(max(1, n - 1), n + 2) for n in own)) if sum(each) == sum(own))
    assert step(own) <= min(map(step, others))


def line(step: int, loss: float, tokens: int = 1000) -> dict:
    return {"step": step, "loss": loss, "trained_tokens": tokens + step}


WHOLE = [line(step, 12 - step / 10) for step in range(1, 7)]


@pytest.mark.parametrize(
    ("resumed", "holds"),
    [
        (WHOLE[2:], True),
        ([line(step, 12 - step / 10 + 9e-4) for step in range(3, 7)], True),
        ([line(step, 12 - step / 10 + 1.1e-3 * (step == 6)) for step in range(3, 7)], False),
        ([line(step, 12 - step / 10, 1001) for step in range(3, 7)], False),
        (WHOLE[1:], False),
    ],
)
def test_resumed_steps_are_held_to_those_of_the_whole_run(resumed, holds):
    assert eight_gpus.resumed_as(WHOLE, resumed).holds is holds
    level = [line(step, 12.0) for step in range(1, 7)]
    assert not eight_gpus.resumed_as(level, level[2:]).holds  # losses that do not tell one step from another


class FakeScript:
    """Rows that cannot be run, fail, take too long for what is left, and one that is measured."""

    def jobs(self):
        def refused():
            raise RuntimeError("first\nno | layout")

        def failing(limit: float):
            raise ValueError

        def good(limit: float):
            return eight_gpus.Found(f"limit {limit:.0f}", True)

        def job(what, lasts, measure):
            return what, lambda: eight_gpus.Job(what, "bar", lasts, measure)

        return [("refused", refused), job("failing", 10, failing), job("long", 300, good), job("good", 10, good)]


def test_no_row_stops_the_next(capsys):
    assert eight_gpus.table(FakeScript(), time.monotonic(), 200, dry=False) == 320
    rows = [[cell.strip() for cell in line.split("|")[1:-1]][:4] for line in capsys.readouterr().out.splitlines()[2:]]
    assert rows == [
        ["refused", "", "failed: no / layout", "FALLS SHORT"],
        ["failing", "bar", "failed: ValueError()", "FALLS SHORT"],
        ["long", "bar", "left out: takes some 300 s, and 200 are left", ""],
        ["good", "bar", "limit 80", "holds"],
    ]


def test_a_command_that_does_not_end_is_ended():
    with pytest.raises(RuntimeError, match=r"no end after 0 s"):
        shapes.latxa("doctor", limit=0.1)


def test_workers_in_sessions_of_their_own_are_killed_too():
    """As torchrun starts them; a signal to the launcher's group would not reach them."""
    code = (
        "import subprocess, time; worker = subprocess.Popen(['sleep', '600'], start_new_session=True);"
        "print(worker.pid, flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as launcher:
        worker = psutil.Process(int(launcher.stdout.readline()))
        assert worker.is_running()
        shapes.kill(launcher.pid)
    assert not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE


def test_the_line_for_gpus_yaml(tmp_path, monkeypatch, capsys):
    gathers = [{"operation": "all_gather", "bytes": 1 << 28, "busbw_gb_s": 320.0}]
    (tmp_path / "node.json").write_text(json.dumps({"bandwidth": {"nodes": ["a"] * 8, "collectives": gathers, "links": []}}))
    monkeypatch.setattr(sys, "argv", ["eight_gpus.py", "--gpu", "b200", "--bandwidth", str(tmp_path / "node.json")])
    eight_gpus.main()
    assert capsys.readouterr().out.startswith("b200: {memory: 178.4, bandwidth: 7.7, link: 400, network: 50,")


@pytest.mark.slow
def test_all_of_it_with_tiny_models(tmp_path):
    found = script(tmp_path, "--tiny", "--gpus", "2", "--budget-seconds", "1800")
    assert [len(cells) for cells in found] == [11] * 7
    assert not [cells for cells in found if "failed" in cells[2] or "left out" in cells[2]]
    assert all(float(cells[5]) > 0 for cells in [*found[1:5], found[6]])
    assert [found[0][3], found[5][3]] == ["holds", "holds"]
