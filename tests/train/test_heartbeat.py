"""Under ft_launcher of nvidia-resiliency-ext a rank that stands still is noticed, and the run goes on."""

import subprocess
import sys
from pathlib import Path

import pytest

from latxa_megatron.train.heartbeat import heartbeats
from latxa_megatron.train.metrics import read_metrics


def test_without_ft_launcher_nothing_is_imported(monkeypatch):
    monkeypatch.delenv("FT_RANK_MONITOR_IPC_SOCKET", raising=False)
    monkeypatch.setitem(sys.modules, "nvidia_resiliency_ext", None)  # to import it would fail
    with heartbeats() as beat:
        beat()


def test_a_run_outlives_its_monitor(tmp_path, monkeypatch):
    """When a scheduler sends SIGTERM to all processes of a job, the monitors end at once and the ranks after their step."""
    fault_tolerance = pytest.importorskip("nvidia_resiliency_ext.fault_tolerance")
    socket = str(tmp_path / "socket")
    config = fault_tolerance.FaultToleranceConfig(enable_nic_monitor=False)
    monitor = fault_tolerance.RankMonitorServer.run_in_subprocess(config, socket)
    monkeypatch.setenv("FT_RANK_MONITOR_IPC_SOCKET", socket)
    monkeypatch.setenv("RANK", "0")
    with heartbeats() as beat:
        beat()
        monitor.terminate()
        monitor.join()
        beat()
        beat()


def test_a_frozen_rank_is_noticed_and_the_run_goes_on(tiny_run, tmp_path):
    pytest.importorskip("nvidia_resiliency_ext")
    steps = ["train.steps=6", "checkpoint.every=3"]
    tiny_run.train_here("not frozen", [*steps, "checkpoint.every=null"])
    ft_launcher = [sys.executable, "-m", "nvidia_resiliency_ext.fault_tolerance.launcher", "--standalone", "--nproc-per-node=2"]
    options = ["--max-restarts=1", "--ft-rank-heartbeat-timeout=15", "--ft-workload-check-interval=1", "--monitor-interval=0.5"]
    worker = Path(__file__).with_name("frozen_worker.py")
    run = [tiny_run.file, f"out={tiny_run.out('frozen')}", *steps, "checkpoint.async_save=false"]  # whole before the fifth step
    log = tmp_path / "log"
    with log.open("w") as file:
        done = subprocess.run([*ft_launcher, *options, worker, *run], check=False, stdout=file, stderr=subprocess.STDOUT)
    said = log.read_text()
    assert done.returncode == 0, said
    assert "Did not get subsequent heartbeat" in said
    assert "rank 1 did 3 steps" in said  # after its second start, from the checkpoint of the third step
    frozen, whole = (read_metrics(tiny_run.out(name)) for name in ("frozen", "not frozen"))
    assert [line["step"] for line in frozen] == list(range(1, 7))
    assert [line["loss"] for line in frozen] == pytest.approx([line["loss"] for line in whole], abs=1e-5, rel=0)
