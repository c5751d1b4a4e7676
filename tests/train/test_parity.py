"""Training equals a plain PyTorch loop over transformers' model, under every layout that a CPU can run."""

import math
from pathlib import Path

import pytest
import torch

from latxa_megatron.train.metrics import read_metrics
from tests.tiny import load_llama
from tests.train.conftest import FEW, FOUR_PROCESSES, GLOBAL_BATCH, ONE_PROCESS, STEPS, TWO_PROCESSES


def reference_losses(run, hf: Path, steps: int) -> tuple[list[float], list[float]]:
    """(losses, gradient norms) of AdamW on the same samples; every document is run by itself, so nothing can leak."""
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
    return losses, grad_norms


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


@pytest.fixture(scope="module")
def expected(tiny_run):
    runs = [(tiny_run.hf, STEPS), (tiny_run.hf, FEW), (tiny_run.tied, STEPS)]
    return {run: reference_losses(tiny_run, *run) for run in runs}


@pytest.mark.parametrize("name", [*ONE_PROCESS, *TWO_PROCESSES, *FOUR_PROCESSES])
def test_loss_curve_equals_transformers(name, finished, expected):
    lines = read_metrics(finished.out(name))
    steps = FEW if name in FOUR_PROCESSES else STEPS
    losses, grad_norms = expected[finished.tied if "tied" in name else finished.hf, steps]
    assert losses[0] - losses[-1] > steps / 200  # there is something to learn, and it is learned
    assert [line["loss"] for line in lines] == pytest.approx(losses, abs=1e-5, rel=0)
    assert [line["grad_norm"] for line in lines] == pytest.approx(grad_norms, abs=1e-4, rel=0)
