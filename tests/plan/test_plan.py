"""Predictions against what was measured on a GPU and what others published, and the arithmetic by hand."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from latxa_megatron.cli.main import app
from latxa_megatron.config import load_run
from latxa_megatron.errors import LatxaError
from latxa_megatron.model.layout import Layout, Precision
from latxa_megatron.model.llama import LlamaShape
from latxa_megatron.plan.estimate import estimate
from latxa_megatron.plan.gpus import as_yaml, find_gpu, with_links
from latxa_megatron.plan.stages import layer_bytes, stages

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from plan_check import planned, planned_as_measured, rows, time_counts

LLAMA_8B = LlamaShape(32, 4096, 14336, 32, 8, 128, 128256, 131072, 1e-5, 500000.0, 8.0, False)


@pytest.mark.parametrize("row", rows("plan_measured.jsonl"), ids=lambda row: f"{row['shape']} {row['overrides'][2:]}")
def test_memory_within_5_percent_and_time_within_7(row, tmp_path):
    found = planned_as_measured(row, tmp_path)
    assert found.memory[0].peak == pytest.approx(row["peak_gib"], rel=0.05)
    if time_counts(row):
        assert found.seconds.step == pytest.approx(row["seconds"], rel=0.07)


@pytest.mark.parametrize("row", rows("plan_published.jsonl"), ids=lambda row: f"{row['shape']} {row['gpus']} {row['seq_length']}")
def test_published_speeds_within_12_percent(row, tmp_path):
    found = planned(row, "h100-80g", row["gpus"], tmp_path)
    assert found.positions_per_second_per_gpu == pytest.approx(row["positions_per_second_per_gpu"], rel=0.12)


def test_stages_hold_the_whole_model():
    layout = Layout(tp=2, pp=4, vp=2, stages=(3, 4, 4, 5, 4, 4, 4, 4))
    found = stages(LLAMA_8B, layout, 16)
    assert [stage.layers for stage in found] == [3 + 4, 4 + 4, 4 + 4, 5 + 4]
    whole = 32 * (4096 * 4096 * 2 + 2 * 4096 * 1024 + 3 * 4096 * 14336) + 2 * 128256 * 4096
    assert sum(stage.parameters for stage in found) * 2 == whole


def test_recomputing_is_of_each_chunk():
    """megatron-core gives each chunk a TransformerBlock of its own, which recomputes its first N layers."""
    found = stages(LLAMA_8B, Layout(pp=2, vp=2, stages=(1, 10, 11, 10)), 16)
    assert [stage.recomputed(3) for stage in found] == [1 + 3, 3 + 3]
    assert [stage.recomputed("none") for stage in found] == [0, 0]


def test_what_a_layer_keeps_by_hand():
    """In bf16 6 x 2 x 4096, queries, keys and values 2 x 6144, less one of the six, and 3 x 2 x 14336 feed-forward."""
    assert layer_bytes(LLAMA_8B, Precision()) == 5 * 2 * 4096 + 2 * 6144 + 6 * 14336


def test_command_says_what_fits_and_what_does_not(run_file):
    said = CliRunner().invoke(app, ["plan", str(run_file), "--gpu", "h200", "--gpus", "8", "--price", "2"])
    assert said.exit_code == 0
    assert "fits" in said.output
    assert "10 steps" in said.output
    said = CliRunner().invoke(app, ["plan", str(run_file), "--gpu", "a100-40g", "--gpus", "1", "--json"])
    assert said.exit_code == 1
    found = json.loads(said.output)
    assert not found["fits"]
    assert found["memory"][0]["peak"] > 16 * 8.03e9 / 2**30


def test_every_stage_has_its_numbers_in_a_narrow_terminal(run_file):
    overrides = ["parallel.pp=32", "train.global_batch=32", "train.micro_batch=2"]
    said = CliRunner().invoke(app, ["plan", str(run_file), "--gpu", "h200", "--gpus", "32", *overrides], env={"COLUMNS": "80"})
    found = estimate(load_run(run_file, overrides), find_gpu("h200"), 32)
    numbers = [word for line in said.output.splitlines() if line.startswith(" needed") for word in line.split()[1:]]
    assert numbers == [f"{stage.needed:.1f}" for stage in found.memory]
    assert "\N{HORIZONTAL ELLIPSIS}" not in said.output


def test_the_optimizer_cannot_use_the_memory_of_a_cuda_graph(run_file):
    without, found = (
        estimate(load_run(run_file, [f"train.cuda_graph={on}", "precision.gradients=bf16"]), find_gpu("h200"), 1)
        for on in ("false", "true")
    )
    less = min(without.memory[0].optimizer_step, without.memory[0].activations + without.memory[0].logits)
    assert less > 1
    assert found.memory[0].peak == pytest.approx(without.memory[0].peak + less)


def test_the_cpu_starts_no_work_of_a_cuda_graph(run_file):
    """Samples so short that it would take longer than the work."""
    launches = [
        estimate(load_run(run_file, ["data.seq_length=64", f"train.cuda_graph={on}"]), find_gpu("h200"), 1).seconds.launches
        for on in ("false", "true")
    ]
    assert launches[0] > launches[1] == 0


def test_a_cuda_graph_waits_for_the_updated_weights(run_file):
    """On a node's eight GPUs all messages of a run otherwise go beside the computation."""
    runs = [load_run(run_file, [f"train.cuda_graph={on}"]) for on in ("false", "true")]
    ahead, waits = (estimate(run, find_gpu("h200"), 8).seconds.dp_messages for run in runs)
    assert ahead == 0 < waits


@pytest.mark.parametrize(
    ("gpu", "gpus", "overrides", "words"),
    [
        ("h300", 8, [], "--gpu h300"),
        ("h200", 6, ["parallel.tp=4"], "tp x cp x pp is 4"),
        ("h200", 7, [], "train.global_batch"),
        ("h200", 8, ["data.seq_length=8200", "precision.fp8=tensorwise"], "data.seq_length: 8200"),
        ("a100-80g", 8, ["precision.fp8=tensorwise"], "precision.fp8"),
        ("h200", 2, ["train.cuda_graph=true", "parallel.tp=2"], "train.cuda_graph: goes with data parallelism alone"),
        ("h200", 2, ["train.cuda_graph=true", "parallel.cp=2"], "train.cuda_graph: goes with data parallelism alone"),
        ("h200", 2, ["train.cuda_graph=true", "parallel.pp=2"], "train.cuda_graph: goes with data parallelism alone"),
    ],
)
def test_what_cannot_be_is_refused(run_file, gpu, gpus, overrides, words):
    with pytest.raises(LatxaError, match=words):
        estimate(load_run(run_file, overrides), find_gpu(gpu), gpus)


PEAKS = {
    "h200": 989,
    "h100-80g": 989,
    "h100-64g": 989,
    "a100-80g": 312,
    "a100-64g": 312,
    "a100-40g": 312,
    "b200": 2250,
    "gb200": 2500,
}
"""Dense TFLOP/s in bf16 of NVIDIA's datasheets; FP8's are twice as many."""


@pytest.mark.parametrize("name", PEAKS)
def test_gpus_reach_the_shares_of_their_peaks_that_an_h200_does(run_file, name):
    gpu, measured = find_gpu(name), find_gpu("h200")
    for rate in ("bf16", "attention", *(["fp8"] if gpu.fp8 else [])):
        assert getattr(gpu, rate) / PEAKS[name] == pytest.approx(getattr(measured, rate) / PEAKS["h200"], rel=3e-3)
    assert gpu.network < gpu.link
    assert estimate(load_run(run_file), gpu, 8).seconds.step > 0


def test_a_gpu_of_ones_own_in_a_file(run_file, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(as_yaml(replace(find_gpu("h200"), name="mine", link=390, node=4)))
    assert find_gpu(str(file)) == replace(find_gpu("h200"), name="mine", link=390, node=4)
    said = CliRunner().invoke(app, ["plan", str(run_file), "--gpu", str(file), "--gpus", "8", "--json"])
    assert json.loads(said.output)["gpu"]["link"] == 390


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("mine: {memory: 80}", "bandwidth is missing; it is a number above 0"),
        ("mine: {memory: 80, speed: 3}", "there is no key 'speed'; there are memory, bandwidth"),
        ("mine: {memory: '80'}", "memory is '80'; it is a number above 0"),
        ("mine: {memory: -1}", "memory is -1; it is a number above 0"),
        ("mine: [80]", "has one line, as h100-80g: {memory: 79.1, bandwidth: 3.35"),
        ("a: {}\nb: {}", "has one line"),
        ("mine: {", "cannot be read"),
        (None, "cannot be read"),
    ],
)
def test_a_file_that_has_no_gpu(tmp_path, text, words):
    file = tmp_path / "mine.yaml"
    if text:
        file.write_text(text)
    with pytest.raises(LatxaError, match=rf"--gpu .*mine.yaml: .*{words}"):
        find_gpu(str(file))


def test_links_that_doctor_measured():
    """All-gather of 8 ranks: algorithm bandwidth 400 GB/s, bus bandwidth 7/8 of that; of which a plan takes 0.8 of its link."""
    gathers = [
        {"operation": "all_gather", "bytes": size, "busbw_gb_s": speed} for size, speed in ((1024, 0.01), (1 << 28, 350.0))
    ]
    reduced = {"operation": "all_reduce", "bytes": 1 << 28, "busbw_gb_s": 360.0}
    link = {"ranks": [0, 1], "gb_s": 390.0}
    gpu = find_gpu("h200")
    found = with_links(gpu, {"nodes": ["a"] * 8, "collectives": [reduced, *gathers], "links": [link]})
    assert (found.link * 0.8, found.network) == (pytest.approx(350, rel=0.01), gpu.network)
    across = [{"ranks": [0, 2], "gb_s": 44.0}, {"ranks": [1, 3], "gb_s": 40.0}]
    found = with_links(gpu, {"nodes": ["a", "a", "b", "b"], "collectives": gathers, "links": [link, *across]})
    assert (found.link, found.network) == (gpu.link, 50.0)
    assert with_links(gpu, {"nodes": ["a"], "collectives": gathers, "links": []}) == gpu
    for name in ("h200", "a100-40g"):
        assert yaml.safe_load(as_yaml(find_gpu(name))) == {
            name: {k: v for k, v in vars(find_gpu(name)).items() if v and k != "name"}
        }
