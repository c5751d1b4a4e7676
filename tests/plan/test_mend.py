"""Mends against the plan of each: it fits, and the change before it does not."""

import json
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from latxa_megatron.cli.main import app
from latxa_megatron.config import load_run
from latxa_megatron.errors import LatxaError
from latxa_megatron.plan.estimate import Given, estimate, estimate_given
from latxa_megatron.plan.gpus import find_gpu
from latxa_megatron.plan.mend import mends


def said(run_file, gpu, gpus, overrides):
    ran = CliRunner().invoke(app, ["plan", str(run_file), "--gpu", gpu, "--gpus", str(gpus), "--json", *overrides])
    return ran.exit_code, json.loads(ran.output)


@pytest.mark.parametrize(
    ("gpu", "gpus", "overrides"),
    [
        ("a100-40g", 8, ["parallel.tp=2"]),
        ("a100-64g", 8, ["parallel.pp=2", "train.micro_batch=2"]),
        ("h100-80g", 8, ["parallel.pp=4", "parallel.vp=8", "train.micro_batch=4"]),
        ("h100-80g", 4, ["parallel.pp=2", "parallel.stages=[10,22]", "train.recompute=2"]),
    ],
)
def test_each_mend_is_a_plan_that_fits(run_file, gpu, gpus, overrides):
    status, found = said(run_file, gpu, gpus, overrides)
    assert (status, found["fits"]) == (1, False)
    assert found["mends"]
    for mend in found["mends"]:
        more = [f"{key}={'null' if value is None else value}" for key, value in mend["values"].items()]
        status, mended = said(run_file, gpu, mend["gpus"], [*overrides, *more])
        assert (status, mended["fits"]) == (0, True)
        assert mended["seconds_per_step"] == mend["seconds_per_step"]
        assert mended["memory"][0]["needed"] <= mend["gib"] <= find_gpu(gpu).memory


def test_a_mend_is_the_least_change(run_file):
    overrides, gpu = ["parallel.pp=2", "train.micro_batch=2"], find_gpu("a100-64g")
    run = load_run(run_file, overrides)
    found = {key: value for mend in mends(run, Given.of(run, gpu, 8), most=9) for key, value in mend.values.items()}
    larger = {"parallel.tp": [2, 4, 8], "parallel.cp": [2, 4, 8], "parallel.pp": [4, 8]}

    def fits(key, value):
        try:
            return estimate(load_run(run_file, [*overrides, f"{key}={value}"]), gpu, 8).fits
        except LatxaError:
            return False

    tried = {"train.recompute": range(1, 17), "train.micro_batch": [1], **larger}
    first = {key: [value for value in values if fits(key, value)][:1] for key, values in tried.items()}
    assert found == {key: value for key, values in first.items() for value in values}
    assert len(found) > 2
    assert found["train.recompute"] > 1


def test_the_words_of_a_run_that_does_not_fit(run_file):
    ran = CliRunner().invoke(app, ["plan", str(run_file), "--gpu", "a100-40g", "--gpus", "8", "parallel.tp=2"])
    assert ran.exit_code == 1
    found = estimate(load_run(run_file, ["parallel.tp=2"]), find_gpu("a100-40g"), 8)
    assert f"does not fit: {found.memory[0].peak + 4:.1f} of 39.4 GiB on stage 0; TP 2 -> 4" in ran.output
    assert "  parallel.tp=4: " in ran.output


def test_more_gpus_where_none_of_a_layout_fits_and_nothing_for_what_never_will(run_file):
    run = load_run(run_file)
    one = Given.of(run, find_gpu("h100-80g"), 1)
    assert not estimate_given(run, one).fits
    (mend,) = mends(run, one)
    assert mend.estimate.gpus == 2
    assert mend.says.endswith(" on 2 GPUs")
    assert mends(run, replace(one, gpu=replace(one.gpu, memory=4.5))) == []
