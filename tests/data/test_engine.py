"""The fast engine gives the reference's ids, and is used only then."""

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latxa_megatron.data import engine
from latxa_megatron.data.engine import HARD, Fastokens, HuggingFace, first_mismatch, prove
from latxa_megatron.data.tokenizer import Tokenizer


@pytest.fixture(scope="module", params=["llama", "smollm"])
def engines(request):
    backend = request.getfixturevalue(request.param)._backend
    return Fastokens(backend), HuggingFace(backend)


def test_hard_strings(engines):
    assert first_mismatch(*engines, HARD) is None


def test_every_code_point(engines):
    """Each alone, and beside letters: none is lost, none joined otherwise."""
    points = [chr(i) for i in range(0x110000) if not 0xD800 <= i < 0xE000]
    for first in range(0, len(points), 1 << 15):
        some = points[first : first + (1 << 15)]
        assert first_mismatch(*engines, ["".join(some), *(f"a{c}b {c}" for c in some[::61])]) is None


@settings(max_examples=300, deadline=None)
@given(texts=st.lists(st.text(max_size=80), max_size=5))
def test_any_text(texts, engines):
    assert first_mismatch(*engines, texts) is None


def test_the_fast_engine_is_used_where_it_agrees(llama):
    found, why = prove(llama._backend, ["Kaixo, mundua!"])
    assert found.name == "fastokens"
    assert "14 characters" in why


def test_other_ids_mean_the_reference(llama, monkeypatch):
    real = Fastokens.encode

    def off_by_one_token(self, texts):
        ids, offsets = real(self, texts)
        ids = ids.copy()
        ids[offsets[:-1][[text == "Kaixo" for text in texts]]] += 1
        return ids, offsets

    monkeypatch.setattr(Fastokens, "encode", off_by_one_token)
    assert prove(llama._backend, ["mundua"])[0].name == "fastokens"
    found, why = prove(llama._backend, ["mundua", "Kaixo"])
    assert found.name == "tokenizers"
    assert "'Kaixo'" in why


def test_a_tokenizer_that_it_does_not_know_means_the_reference(llama, monkeypatch):
    monkeypatch.setattr(engine.Fastokens, "__init__", lambda self, backend: (_ for _ in ()).throw(ValueError("no such model")))
    found, why = prove(llama._backend, ["a"])
    assert found.name == "tokenizers"
    assert "no such model" in why


def test_documents_have_the_same_ends_with_either_engine(llama_tokenizer):
    texts = ["bat", "", "ñ 🙂", "a" * 1000]
    plain, fast, worker = (Tokenizer(llama_tokenizer) for _ in range(3))
    assert fast.accelerate(texts).startswith("fastokens")
    worker.accelerate_as_proved()
    assert [each.accelerated for each in (plain, fast, worker)] == [False, True, True]
    for accelerated in (fast, worker):
        for found, expected in zip(accelerated.encode_documents(texts), plain.encode_documents(texts), strict=True):
            assert np.array_equal(found, expected)


_ENCODE = """
import sys
from pathlib import Path
import fastokens
import tokenizers
from latxa_megatron.data.engine import Fastokens
texts = ["Kaixo, mundua! " * 1000] * 64
if sys.argv[2] == "ours":
    Fastokens(tokenizers.Tokenizer.from_file(sys.argv[1])).encode(texts)
else:
    fastokens.Tokenizer.from_file(sys.argv[1]).encode_batch_flat(texts)
print([task.read_text() for task in Path("/proc/self/task").glob("*/comm")])
"""


@pytest.mark.skipif(len(os.sched_getaffinity(0)) == 1, reason="on one processor there is one thread in any case")
@pytest.mark.parametrize("whose", ["ours", "its own"])
def test_a_process_has_no_other_threads(whose, byte_tokenizer):
    """As the kernel lists them; each would join every word again, and keep it."""
    command = [sys.executable, "-c", _ENCODE, str(byte_tokenizer / "tokenizer.json"), whose]
    unset = {key: value for key, value in os.environ.items() if not key.startswith("FASTOKENS")}  # what ours sets, stays set
    found = subprocess.run(command, capture_output=True, text=True, check=True, env=unset).stdout
    assert ("fastokens" in found) == (whose == "its own")
