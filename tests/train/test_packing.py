"""Documents in one sample do not see each other."""

import pytest
import torch

from latxa_megatron.data.dataset import PackedDataset
from latxa_megatron.model.gpt import build_model
from latxa_megatron.model.layout import Layout, Precision
from latxa_megatron.model.llama import LlamaShape
from latxa_megatron.train import checkpoint
from latxa_megatron.train.distributed import connect, disconnect, spread
from latxa_megatron.train.inputs import share
from tests.tiny import load_llama


@pytest.fixture(scope="module")
def model(tiny_run):
    connect()
    spread(Layout(), seed=1)
    chunks = build_model(LlamaShape.from_hf(tiny_run.hf), Layout(), Precision(torch.float32))
    checkpoint.load_weights(checkpoint.resolve(tiny_run.root / "ckpt"), chunks)
    yield chunks[0]
    disconnect()


@pytest.fixture
def batch(tiny_run):
    found = PackedDataset(tiny_run.root / "plan").batch([0, 1])
    assert len(found.cu_seqlens) > 5  # several documents in a sample
    return found


def inputs_of(batch):
    return share(batch, batch.tokens.numel()).inputs().of_model()


def test_loss_of_a_packed_sample_is_that_of_its_documents_alone(model, batch, tiny_run):
    reference = load_llama(tiny_run.hf)
    with torch.no_grad():
        losses = model(**inputs_of(batch))
        alone = []
        for start, end in zip(batch.cu_seqlens[:-1].tolist(), batch.cu_seqlens[1:].tolist(), strict=True):
            logits = reference(batch.tokens.view(-1)[None, start:end]).logits[0]
            labels = batch.labels.view(-1)[start:end]
            alone.append(torch.nn.functional.cross_entropy(logits, labels, reduction="none"))
    mask = batch.loss_mask.view(-1)
    packed = (losses.view(-1) * mask).sum() / mask.sum()
    assert float(packed) == pytest.approx(float((torch.cat(alone) * mask).sum() / mask.sum()), abs=1e-5)


def test_a_changed_token_changes_no_logit_of_another_document(model, batch):
    inputs = inputs_of(batch)
    inputs.pop("labels")
    start, end = batch.cu_seqlens[1:3].tolist()
    with torch.no_grad():
        before = model(**inputs).reshape(-1, 128)
        changed = inputs["input_ids"].clone()
        changed.view(-1)[start] = (changed.view(-1)[start] + 1) % 128
        after = model(**{**inputs, "input_ids": changed}).reshape(-1, 128)
    same = (before == after).all(dim=1)
    assert not same[start:end].all()
    assert same[:start].all()
    assert same[end:].all()
