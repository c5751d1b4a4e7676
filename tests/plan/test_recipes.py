"""Every recipe that ships is planned on the GPUs that it says it is for, and fits there."""

import json

import pytest
from typer.testing import CliRunner

from latxa_megatron import recipes
from latxa_megatron.cli.main import app
from latxa_megatron.config import load_run
from latxa_megatron.plan.estimate import Given, estimate_given
from latxa_megatron.plan.gpus import find_gpu
from latxa_megatron.plan.search import search
from tests.plan.conftest import write_model
from tests.test_scale import shape

CPU = {"demo"}
"""Recipes for machines without a GPU."""


def given(name, run, gpus):
    gpu = find_gpu(run.scale.gpu or "a100-40g")
    return Given(shape(name), float(run.data.seq_length), 0, gpu, gpus, gpu.node)


@pytest.mark.parametrize("name", recipes.names(bases=False))
def test_a_recipe_fits_the_gpus_that_it_is_for(name):
    run = load_run(recipes.path(name))
    assert (run.scale.gpu is None) == (run.scale.gpus is None) == (name in CPU)
    found = estimate_given(run, given(name, run, run.scale.gpus or 2))
    assert found.fits, f"{name} needs {found.worst.needed:.1f} of {found.gpu.memory:.1f} GiB"


def test_the_least_gpus_of_the_70b():
    """Half of the 32 GPUs of its smallest recipe, with half of its stages, are too few."""
    run = load_run(recipes.path("latxa_70b_32gpu"), ["parallel.pp=4", "parallel.stages=null"])
    assert not estimate_given(run, given("latxa_70b_32gpu", run, 16)).fits


@pytest.mark.parametrize("name", ["exp_2_101", "latxa_70b_32gpu", "latxa_70b_a100"])
def test_a_recipes_layout_is_among_those_of_a_search(name):
    run = load_run(recipes.path(name))
    fitting = search(run, given(name, run, run.scale.gpus)).fitting
    assert run.parallel in [option.run.parallel for option in fitting]


def test_plan_takes_the_gpus_from_the_run_file(tmp_path):
    hf = write_model(tmp_path / "hf")
    command = ["plan", str(recipes.path("exp_2_101")), f"model.hf={hf}", "--json"]
    stated = json.loads(CliRunner().invoke(app, command).output)
    given = json.loads(CliRunner().invoke(app, [*command, "--gpu", "h100-80g", "--gpus", "8"]).output)
    assert stated == given
    said = CliRunner().invoke(app, ["plan", "search", str(recipes.path("demo")), f"model.hf={hf}"])
    assert "which GPUs, and how many" in str(said.exception)
