"""Bits per byte against one forward pass over the whole document, and against a hand-worked uniform model."""

import math

import pytest
import torch

from latxa_megatron.evaluate import model as evaluate
from tests.tiny import load_llama, write_llama


@pytest.fixture(scope="module")
def hf(tmp_path_factory, byte_tokenizer):
    """A tiny model whose vocabulary is the byte tokenizer's."""
    import shutil

    import transformers

    size = len(transformers.AutoTokenizer.from_pretrained(str(byte_tokenizer)))
    directory = write_llama(tmp_path_factory.mktemp("model") / "hf", vocab_size=size, max_position_embeddings=4096)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(byte_tokenizer / name, directory / name)
    return directory


def reference_nats(hf, tokenizer_ids: list[int], prefix: int) -> float:
    tokens = torch.tensor([[prefix, *tokenizer_ids]])
    with torch.no_grad():
        logits = load_llama(hf)(tokens[:, :-1]).logits[0]
    return float(torch.nn.functional.cross_entropy(logits, tokens[0, 1:], reduction="sum"))


def test_a_document_shorter_than_the_context_is_one_pass(hf):
    evaluated = evaluate.Evaluated(hf)
    text = "Kaixo, mundua! Zer moduz?"
    ids, _ = evaluated._tokenizer.encode_with_offsets(text)
    expected = reference_nats(hf, ids, evaluated._prefix()) / math.log(2) / len(text.encode())
    assert evaluated.bits_per_byte([text]) == pytest.approx(expected, rel=1e-5)


def test_every_token_of_a_long_document_is_counted_once(hf, monkeypatch):
    """With all logits equal, each token costs log2(vocabulary) bits, whatever the windows are."""
    monkeypatch.setattr(evaluate, "CONTEXT", 16)
    evaluated = evaluate.Evaluated(hf)
    torch.nn.init.zeros_(evaluated._model.lm_head.weight)
    for length in (1, 15, 16, 17, 31, 32, 33, 100):
        text = "a" * length
        ids, _ = evaluated._tokenizer.encode_with_offsets(text)
        expected = len(ids) * math.log2(evaluated._model.config.vocab_size) / length
        assert evaluated.bits_per_byte([text]) == pytest.approx(expected, rel=1e-5), length


def test_bits_are_per_byte_of_all_texts(hf):
    evaluated = evaluate.Evaluated(hf)
    a, b = "aupa", "ñandú eta ibaia"
    total = evaluated.bits_per_byte([a]) * len(a.encode()) + evaluated.bits_per_byte([b]) * len(b.encode())
    assert evaluated.bits_per_byte([a, b]) == pytest.approx(total / len((a + b).encode()), rel=1e-5)
