"""Steps from a CUDA graph are the steps that the CPU starts, kernel by kernel."""

import pytest

from tests.gpu.conftest import trained, trained_on_two

pytestmark = pytest.mark.gpu

FP8 = ["precision.fp8=tensorwise", "precision.fp8_params=true", "precision.fp8_head=true"]
EXACT = ["train.deterministic=true"]
CASES = {
    "fp32 gradients, two samples a microbatch": [*EXACT, "precision.gradients=fp32", "train.micro_batch=2"],
    "fp8": [*EXACT, *FP8],
    "fp8, weights in bf16": [*EXACT, FP8[0]],
    "attention recomputed": [*EXACT, "train.recompute=selective"],
    "a layer recomputed in fp8": [*EXACT, *FP8, "train.recompute=1"],
    "as fast as it goes": [],
}


@pytest.mark.parametrize("case", CASES)
def test_losses_are_the_same(case, run_file, monkeypatch):
    """The first two steps are not from the graph; validation after the fourth and the checkpoint after the fifth come between."""
    import torch

    replayed, replay = [], torch.cuda.CUDAGraph.replay
    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", lambda graph: (replayed.append(graph), replay(graph)))
    expected, found = (trained(run_file, f"{case} {on}", [*CASES[case], f"train.cuda_graph={on}"]) for on in ("false", "true"))
    compare(expected, found, 0 if EXACT[0] in CASES[case] else 5e-3)
    assert len(replayed) == 6


@pytest.mark.parametrize("case", ["bf16", "fp8"])
def test_losses_of_two_gpus_are_the_same(case, run_file):
    import torch

    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    overrides = [*EXACT, *(FP8 if case == "fp8" else []), "guard.hang_minutes=1"]
    expected = trained_on_two(run_file, f"{case} on two", overrides)
    compare(expected, trained_on_two(run_file, f"{case} on two, graph", [*overrides, "train.cuda_graph=true"]), 0)


def compare(expected: list[dict], found: list[dict], tolerance: float) -> None:
    for line, other in zip(expected, found, strict=True):
        assert other["loss"] == pytest.approx(line["loss"], rel=tolerance, abs=0), line["step"]
        assert other["grad_norm"] == pytest.approx(line["grad_norm"], rel=10 * tolerance, abs=0), line["step"]
    assert found[7]["loss"] < found[0]["loss"]
    for step in (3, 7):
        score, other = (lines[step]["validation"]["same"]["loss"] for lines in (expected, found))
        assert other == pytest.approx(score, rel=tolerance, abs=0), step
    assert 0 < found[7]["rank_seconds"]["max"] < found[7]["seconds"]


def test_a_resumed_run_records_again(run_file):
    expected = trained(run_file, "whole", [*EXACT, "train.cuda_graph=true", "train.steps=10"])
    trained(run_file, "cut", [*EXACT, "train.cuda_graph=true", "train.steps=5"])
    found = trained(run_file, "cut", [*EXACT, "train.cuda_graph=true", "train.steps=10"])
    for key in ("loss", "grad_norm"):
        assert [line[key] for line in found] == [line[key] for line in expected]
