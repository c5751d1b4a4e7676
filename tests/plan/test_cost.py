"""What a whole run takes, worked by hand."""

from dataclasses import replace

import pytest

from latxa_megatron.config import load_run
from latxa_megatron.plan.cost import Rates, cost
from latxa_megatron.plan.estimate import estimate
from latxa_megatron.plan.gpus import find_gpu
from latxa_megatron.plan.seconds import Seconds
from latxa_megatron.sections import CheckpointSection


def test_cost_by_hand(run_file):
    """250 steps of 36 s on 8 H100s: 2.5 hours, 20 GPU-hours; 100 GB are saved after steps 100, 200 (for good) and 250."""
    found = estimate(load_run(run_file), find_gpu("h100-80g"), 8)
    found = replace(found, steps=250, seconds=Seconds(30, 1, 1, 1, 1, 0.5, 0.5, 0.5, 0.25, 0.25), checkpoint_bytes=100 * 10**9)
    section = CheckpointSection(every=100, keep=1, keep_every=200)
    takes = cost(found, section, Rates(price=3, pue=1.5, disk=2))
    assert (takes.days, takes.gpu_hours, takes.money) == (pytest.approx(2.5 / 24), pytest.approx(20), pytest.approx(60))
    assert takes.kwh == pytest.approx(20 * 0.7 * 1.5)
    assert (takes.save_seconds, takes.saves, takes.disk_gb) == (50, 3, 300)
    waiting = cost(found, section.model_copy(update={"async_save": False}), Rates(disk=2))
    assert waiting.gpu_hours == pytest.approx(8 * (250 * 36 + 3 * 50) / 3600)
    assert waiting.money is None
    none = cost(found, CheckpointSection(every=None), Rates())
    assert (none.saves, none.disk_gb) == (0, 0)
    unknown = cost(replace(found, steps=None), section, Rates(price=3))
    assert (unknown.save_seconds, unknown.gpu_hours, unknown.kwh, unknown.money) == (20, None, None, None)


def test_an_estimate_by_hand(run_file):
    """8B: 8,030,261,248 parameters (Meta's count) at 14 bytes; MFU of 989 TFLOP/s, also in FP8; 4 GiB beside a peak."""
    found = estimate(load_run(run_file, ["precision.fp8=tensorwise"]), find_gpu("h100-80g"), 8)
    assert found.checkpoint_bytes == 14 * 8_030_261_248
    assert found.mfu == found.model_tflops_per_gpu / 989
    worst = found.worst
    beside = worst.communication + worst.context + worst.allocator
    assert worst.needed - worst.peak == pytest.approx(beside) == pytest.approx(4)
    spread = estimate(load_run(run_file, ["parallel.tp=2", "parallel.pp=2"]), find_gpu("h100-80g"), 8).worst
    assert spread.communication == pytest.approx(3 * worst.communication)  # of tp and pp too
    said = found.as_json()
    assert said["largest"] == {"memory": worst.largest(), "seconds": found.seconds.largest()}
