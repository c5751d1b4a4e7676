"""The search against brute force: every number of everything, refused by training's own check or planned."""

import itertools
import json
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import ValidationError
from typer.testing import CliRunner

from latxa_megatron.cli.main import app
from latxa_megatron.config import RunConfig, load_run
from latxa_megatron.errors import LatxaError
from latxa_megatron.plan.estimate import Given, estimate_given
from latxa_megatron.plan.gpus import find_gpu
from latxa_megatron.plan.picture import write_picture
from latxa_megatron.plan.search import Found, search
from latxa_megatron.train.check import check_spread
from tests.plan.conftest import write_model

SHAPES = {
    "odd": {"hidden_size": 1536, "intermediate_size": 4608, "num_hidden_layers": 12, "num_attention_heads": 12},
    "tied": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 6, "num_attention_heads": 16},
}


def brute_force(run, given, layers):
    """(tp, pp, cp, vp, micro_batch) -> recompute -> estimate, of every run that its sections and training's check take."""
    found, values = {}, run.model_dump()
    sizes, micros = range(1, given.gpus + 1), range(1, run.train.global_batch + 1)
    for tp, pp, cp, vp, micro in itertools.product(sizes, sizes, sizes, range(1, layers + 1), micros):
        values["parallel"] = {"tp": tp, "pp": pp, "cp": cp, "vp": vp}
        for recompute in ("none", *range(1, layers + 1)):
            values["train"] |= {"micro_batch": micro, "recompute": recompute}
            try:
                each = RunConfig.model_validate(values)
                check_spread(each, given.shape, given.gpus)
            except (ValidationError, LatxaError):
                break
            found.setdefault((tp, pp, cp, vp, micro), {})[recompute] = estimate_given(each, given)
    return found


@pytest.mark.parametrize(
    ("shape", "gpus", "batch", "memory", "overrides"),
    [("odd", 6, 12, 9.0, []), ("tied", 8, 4, 5.0, ["precision.fp8=tensorwise", "data.seq_length=4096"])],
)
def test_search_finds_what_brute_force_does(run_file, tmp_path, shape, gpus, batch, memory, overrides):
    kinds = {"tie_word_embeddings": shape == "tied", "num_key_value_heads": 4, "vocab_size": 49152}
    hf = write_model(tmp_path / shape, **kinds, **SHAPES[shape])
    run = load_run(run_file, [f"model.hf={hf}", f"train.global_batch={batch}", *overrides])
    given = Given.of(run, replace(find_gpu("h200"), memory=memory), gpus)
    every = brute_force(run, given, SHAPES[shape]["num_hidden_layers"])
    fits = {layout: [each for each in tried.values() if each.fits] for layout, tried in every.items()}

    found = search(run, given)

    def key(option):
        p = option.run.parallel
        return (p.tp, p.pp, p.cp, p.vp, option.run.train.micro_batch)

    assert sorted(map(key, found.fitting)) == sorted(layout for layout, each in fits.items() if each)
    assert sorted(map(key, found.rest)) == sorted(layout for layout, each in fits.items() if not each)
    for option in found.fitting:
        assert option.estimate.seconds.step == min(each.seconds.step for each in fits[key(option)])
    times = [option.estimate.seconds.step for option in found.fitting]
    assert times[0] == pytest.approx(min(times), rel=5e-3)  # three digits of it
    assert all(later > earlier * 0.99 for earlier, later in itertools.pairwise(times))
    assert {option.run.train.recompute for option in found.fitting} > {"none", 1}  # the case has some of each kind
    assert found.rest


def plan_search(*words):
    return CliRunner().invoke(app, ["plan", "search", *map(str, words)])


def test_command_prints_draws_and_writes_the_best(run_file, tmp_path):
    picture = tmp_path / "search.svg"
    run_file.write_text("# mine\n" + run_file.read_text().replace("steps: 10", "steps: 10  # few"))
    said = plan_search(run_file, "--gpu", "a100-40g", "--gpus", 8, "--picture", picture, "--write")
    assert said.exit_code == 0, said.output
    given = Given.of(load_run(run_file), find_gpu("a100-40g"), 8)
    found = search(load_run(run_file), given)
    best = found.fitting[0]
    assert load_run(run_file).parallel == best.run.parallel
    assert load_run(run_file).train.recompute == best.run.train.recompute
    assert "# mine\n" in run_file.read_text()
    assert "steps: 10  # few\n" in run_file.read_text()
    assert best.describe() in said.output
    dots = [each.get("class") for each in ElementTree.parse(picture).getroot().iter("{http://www.w3.org/2000/svg}circle")]
    assert (dots.count("best"), dots.count("fits")) == (10, len(found.fitting) - 10)
    assert dots.count("large") == len(found.rest)
    again = plan_search(run_file, "--gpu", "a100-40g", "--gpus", 8, "--write")
    assert "has the best layout already" in again.output


def test_keys_of_overrides_stay(run_file):
    words = ["parallel.cp=1", "parallel.tp=2", "train.recompute=3"]
    said = plan_search(run_file, "--gpu", "h100-80g", "--gpus", 8, "--json", *words)
    rows = json.loads(said.output)
    assert {(row["cp"], row["tp"], row["recompute"]) for row in rows} == {(1, 2, 3)}
    assert {row["pp"] for row in rows} == {1, 2, 4}


def test_a_runs_own_stages_are_among_the_layouts(run_file):
    run = load_run(run_file, ["parallel.pp=2", "parallel.stages=[15,17]"])
    found = search(run, Given.of(run, find_gpu("h200"), 8))
    stages = [option.run.parallel for option in found.fitting if option.run.parallel.stages]
    assert {(each.pp, each.vp, *each.stages) for each in stages} == {(2, 1, 15, 17)}
    assert any(option.run.parallel.pp == 2 and option.run.parallel.stages is None for option in found.fitting)


def test_nothing_fits_and_nothing_is_legal(run_file):
    said = plan_search(run_file, "--gpu", "a100-40g", "--gpus", 1)
    assert (said.exit_code, "0 of " in said.output) == (1, True)
    assert "\nwhat would fit: TP4 on 8 GPUs\n" in said.output
    run = load_run(run_file, ["parallel.cp=1", "train.global_batch=3"])
    with pytest.raises(LatxaError, match=r"train.global_batch: 3 is not"):
        search(run, Given.of(run, find_gpu("h200"), 7), {"parallel.cp"})
    with pytest.raises(LatxaError, match=r"data.seq_length: is 16384, but the model has 8192"):
        search(load_run(run_file, ["data.seq_length=16384"]), Given.of(run, find_gpu("h200"), 8))
    with pytest.raises(LatxaError, match=r"a.png: pictures are SVG"):
        write_picture(Path("a.png"), Found([], []), "none")
    with pytest.raises(LatxaError, match=r"none/a.svg: there is no directory none; make it first"):
        write_picture(Path("none/a.svg"), Found([], []), "none")
