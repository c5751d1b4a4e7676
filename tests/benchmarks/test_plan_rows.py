"""What plan_rows.py writes of a run, as plan_check.py reads it; no GPU takes part."""

import json
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "gpu"))
import plan_rows
from plan_check import planned, planned_as_measured, time_counts


@pytest.fixture
def machine(monkeypatch):
    """Steps of 8 s, of 8192 x 8 positions; the driver says 10 GiB of each GPU before, and then 30 of the second."""
    started, used = [], [["10240", "10240"], ["12288", "30720"]]
    line = {"seconds": 8.0, "peak_memory_gib": 20.0}

    def run(kind):
        def start(out, name, shape, plan, overrides, gpus=None):
            started.append((kind, gpus))
            return [{**line, "model_tflops_per_rank": 112.0 if "parallel.tp=2" not in overrides else 56.0}] * 6

        return start

    monkeypatch.setattr(plan_rows, "run_shape", run("launch"))
    monkeypatch.setattr(plan_rows, "run_pair", run("pair"))
    monkeypatch.setattr(plan_rows, "latxa", lambda *words: None)
    said = {"name": ["NVIDIA H100 80GB HBM3"] * 2}
    monkeypatch.setattr(plan_rows, "of_each_gpu", lambda field: said.get(field) or used[min(len(started), 1)])
    return started


@pytest.mark.parametrize(
    ("processes", "gpus", "started", "own"),
    [(1, 2, ("launch", 1), True), (2, 2, ("launch", 2), True), (2, 1, ("pair", None), False)],
)
def test_time_counts_where_each_process_has_a_gpu(machine, tmp_path, processes, gpus, started, own):
    overrides = ["parallel.tp=2", *plan_rows.BF16] if processes == 2 else plan_rows.BF16
    row = plan_rows.measured(tmp_path, tmp_path, "8B-shaped, 8 layers", 8192, overrides, processes=processes, gpus=gpus)
    assert machine == [started]
    assert (row["processes"], row["gpu"], row["seconds"], row["peak_gib"]) == (processes, "h100-80g", 8.0, 20.0)
    assert time_counts(json.loads(json.dumps(row))) == own
    assert row["teraflops_of_a_step"] == 896 / processes
    found = planned_as_measured(row, tmp_path)
    assert (found.gpu.name, found.gpus) == ("h100-80g", processes)
    assert found.model_tflops_per_gpu * found.seconds.step == pytest.approx(896 / processes)  # the documents that the run counted


def test_memory_in_use_is_of_the_fullest_gpu(machine):
    with plan_rows.MemoryInUse() as used:
        machine.append("a run")
        while not used.most:
            time.sleep(0.05)
    assert used.most == 20


@pytest.mark.parametrize("run", plan_rows.ON_TWO, ids=lambda run: f"{run[0]} {run[1]} {run[2]}")
def test_runs_on_two_gpus_fit_them(tmp_path, run):
    shape, length, overrides = run
    asked = ["train.global_batch=8", "train.steps=6", *overrides]
    assert planned({"shape": shape, "seq_length": length, "overrides": asked}, "h200", 2, tmp_path).fits
