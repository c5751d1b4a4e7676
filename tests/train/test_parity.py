"""Training equals a plain PyTorch loop over transformers' model, under every layout that a CPU can run."""

import math
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file

from latxa_megatron.convert.exporter import export_hf
from latxa_megatron.train.metrics import read_metrics
from tests.tiny import load_llama
from tests.train.conftest import (
    FAMILIES_IN_TWO,
    FEW,
    FOUR_PROCESSES,
    GLOBAL_BATCH,
    ONE_PROCESS,
    OTHERS,
    STEPS,
    TWO_PROCESSES,
)


class Reference(NamedTuple):
    losses: list[float]
    grad_norms: list[float]
    weights: dict[str, torch.Tensor]


def trained(run, hf: Path, steps: int) -> Reference:
    """What AdamW makes of a model on the same samples; every document is run by itself, so nothing can leak."""
    model = load_llama(hf).train()
    weights = [p for p in model.parameters() if p.dim() > 1]
    norms = [p for p in model.parameters() if p.dim() == 1]
    groups = [{"params": weights, "weight_decay": 0.1}, {"params": norms, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95), eps=1e-8)
    warmup = round(0.2 * steps)
    losses, grad_norms = [], []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = cosine(step + 1, warmup, steps, 1e-3, 1e-4)
        terms = []
        for sample in range(step * GLOBAL_BATCH, (step + 1) * GLOBAL_BATCH):
            row = run.plan.row(sample)
            for piece in run.plan.slices[run.plan.row_offsets[row] : run.plan.row_offsets[row + 1]]:
                terms += document_losses(model, run.documents, run.spans, piece)
        loss = torch.stack(terms).mean()
        optimizer.zero_grad()
        loss.backward()
        grad_norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)))
        optimizer.step()
        losses.append(float(loss))
    return Reference(losses, grad_norms, model.state_dict())


def document_losses(model, documents, spans, piece) -> list[torch.Tensor]:
    """The loss of each trained label of a slice."""
    document, start, length = int(piece["document"]), int(piece["start"]), int(piece["length"])
    tokens = torch.tensor(documents[document][start : start + length])
    logits = model(tokens[None, :-1]).logits[0]
    trained = {t for a, b in spans[document] for t in range(a, b)}
    return [torch.nn.functional.cross_entropy(logits[i], tokens[i + 1]) for i in range(length - 1) if start + i + 1 in trained]


def cosine(step: int, warmup: int, steps: int, high: float, low: float) -> float:
    if step <= warmup:
        return high * step / warmup
    return low + (high - low) * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))) / 2


def model_of(name: str) -> str:
    """The directory of a variant's model."""
    return next((other for other in OTHERS if other in name), "hf")


@pytest.fixture(scope="module")
def expected(tiny_run):
    """The reference of a variant; those of the same model and number of steps have it in common."""
    done = {}

    def of(name: str) -> Reference:
        key = model_of(name), FEW if name in FOUR_PROCESSES else STEPS
        if key not in done:
            done[key] = trained(tiny_run, tiny_run.root / key[0], key[1])
        return done[key]

    return of


@pytest.mark.parametrize("name", [*ONE_PROCESS, *TWO_PROCESSES, *FAMILIES_IN_TWO, *FOUR_PROCESSES])
def test_loss_curve_equals_transformers(name, finished, expected):
    lines = read_metrics(finished.out(name))
    losses, grad_norms, _ = expected(name)
    assert losses[0] - losses[-1] > len(losses) / 200  # there is something to learn, and it is learned
    assert [line["loss"] for line in lines] == pytest.approx(losses, abs=1e-5, rel=0)
    assert [line["grad_norm"] for line in lines] == pytest.approx(grad_norms, abs=1e-4, rel=0)


@pytest.mark.parametrize("name", FAMILIES_IN_TWO)
def test_trained_weights_are_those_of_transformers(name, finished, expected, tmp_path):
    """Each of the model's tensors, its biases and its norms of queries and keys among them, moved and moved alike."""
    export_hf(finished.out(name) / "checkpoints", tmp_path / "out")
    found, before = (load_file(place / "model.safetensors") for place in (tmp_path / "out", finished.root / model_of(name)))
    weights = expected(name).weights
    assert found.keys() == weights.keys()
    for tensor, weight in weights.items():
        moved = torch.linalg.vector_norm(weight - before[tensor])
        assert torch.linalg.vector_norm(found[tensor] - weight) < 1e-3 * moved, tensor
