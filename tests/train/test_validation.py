"""Validation scores against transformers' model, each document run by itself and its bytes counted by hand."""

import math

import pytest
import torch

from latxa_megatron.train.metrics import read_metrics
from tests.tiny import load_llama
from tests.train.conftest import SHORT, VALIDATED_IN_TWO
from tests.train.test_parity import document_losses


@pytest.fixture(scope="module")
def expected(tiny_run):
    """(loss, bits per byte); of the tiny tokenizer's ids 0, 1 and 2 are control tokens, the others a byte each."""
    assert len(tiny_run.other_plan) % 4, "the last microbatches should be cut short"
    model = load_llama(tiny_run.hf)
    losses: list[torch.Tensor] = []
    labels: list[int] = []
    with torch.no_grad():
        for piece in tiny_run.other_plan.slices:
            losses += document_losses(model, tiny_run.other_documents, tiny_run.other_spans, piece)
    for document, spans in zip(tiny_run.other_documents, tiny_run.other_spans, strict=True):
        labels += [document[t] for start, end in spans for t in range(max(start, 1), end)]
    nats = float(torch.stack(losses).sum())
    assert len(labels) == len(losses)
    return nats / len(losses), nats / math.log(2) / sum(label > 2 for label in labels)


@pytest.mark.parametrize("name", ["validated", *VALIDATED_IN_TWO])
def test_scores_equal_transformers(name, finished, expected):
    (line,) = read_metrics(finished.out(name))
    found = line["validation"]["other"]
    assert found["loss"] == pytest.approx(expected[0], abs=1e-5)
    assert found["bits_per_byte"] == pytest.approx(expected[1], rel=1e-5)


def test_validation_changes_nothing_and_comes_when_it_is_due(finished):
    every = ["validation.plans.other={root}/other_plan", "validation.every=4"]
    finished.train_here("short, validated", [*SHORT, *every, "checkpoint.every=null"])
    plain, validated = read_metrics(finished.out("short")), read_metrics(finished.out("short, validated"))
    assert [line["loss"] for line in validated] == [line["loss"] for line in plain]
    assert [line["step"] for line in validated if "validation" in line] == [4, 8, 9]
    assert set(validated[3]["validation"]["other"]) == {"loss"}  # without a tokenizer, no bytes are known
