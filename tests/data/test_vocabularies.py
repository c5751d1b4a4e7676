"""Tokenizer files: ids of tiktoken and of sentencepiece themselves, on any text."""

import io
import itertools
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latxa_megatron.data import sources as src
from latxa_megatron.data.build import build_store
from latxa_megatron.data.engine import HARD, HuggingFace, first_mismatch
from latxa_megatron.data.tokenizer import Tokenizer
from latxa_megatron.errors import LatxaError
from tests.data.conftest import LLAMA_CONTROL_TOKENS, _installed
from tests.data.samples import CONVERSATIONS, DOCUMENTS, contents
from tests.data.writers import write_jsonl

WORDS = ["aaa", "aaaa", "bbbb", "--", "====", "12", "345", "elektriko", "Kaixo", "mundua"]
WORDS += ["etxe", "berria", "euskara", "batua", "ez", "bai", "mendi", "itsaso", "hizkuntza", "da", "dira"]
TRAINING = [" ".join(WORDS[(i * k) % len(WORDS)] for k in range(1, 9)) + "  \t(x)\n" for i in range(300)]
PIECES = [*WORDS, " ", "  ", "a", "<s>", "</s>", "<0x0A>", "▁", "ñ"]
TEXTS = st.text(max_size=60) | st.lists(st.sampled_from(PIECES), max_size=12).map("".join)


@pytest.fixture(scope="session")
def llama_file():
    return _installed("llama_models", "llama3/tokenizer.model")


@pytest.fixture(scope="module")
def from_file(llama_file):
    return Tokenizer(llama_file)


def test_llama3s_tokens(from_file, llama):
    assert (from_file.vocab_size, from_file.bos_id, from_file.document_end_id) == (128256, 128000, 128001)
    assert from_file.control_tokens == {token: 128000 + i for i, token in enumerate(LLAMA_CONTROL_TOKENS)}
    assert from_file.chat_template is None
    assert from_file._backend.to_str() == llama._backend.to_str()


@settings(max_examples=150)
@given(text=TEXTS)
def test_llama3s_ids_are_tiktokens(text, from_file, llama_reference):
    assert from_file.encode_with_offsets(text)[0] == llama_reference.encode(text, disallowed_special=())


def test_every_word_of_llama3s_vocabulary_is_as_in_tiktoken(from_file, llama_reference, llama_ranks):
    texts = [token.decode() for token in list(llama_ranks)[::9] if token.isascii()] + HARD
    ids, offsets = from_file.encode_texts(texts)
    for i, text in enumerate(texts):
        assert ids[offsets[i] : offsets[i + 1]].tolist() == llama_reference.encode(text, disallowed_special=())


def test_a_store_of_llama3s_file_is_that_of_its_directory(llama_file, llama_tokenizer, tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", DOCUMENTS)
    stores = [
        build_store(tmp_path / f"{i}", tokenizer, [src.find("eu", [str(path)])])
        for i, tokenizer in enumerate([llama_tokenizer, llama_file, _only(tmp_path / "meta", llama_file)])
    ]
    bins = [{name: data for name, data in contents(s.directory).items() if name != "manifest.json"} for s in stores]
    assert bins[0] == bins[1] == bins[2]
    assert stores[1].fingerprint == stores[2].fingerprint
    chat = write_jsonl(tmp_path / "c.jsonl", CONVERSATIONS)
    with pytest.raises(LatxaError, match=r"tokenizer\.model: the tokenizer has no chat template, so conversations cannot"):
        build_store(tmp_path / "chat", llama_file, [src.find("chat", [str(chat)])])


def _only(directory, file):
    """A directory with that file alone, as Meta's downloads have it."""
    directory.mkdir()
    shutil.copy(file, directory)
    return directory


def test_another_or_a_damaged_tiktoken_file_is_refused(llama_file, tmp_path):
    file = tmp_path / "tokenizer.model"
    data = llama_file.read_bytes()
    for other in (data[: data.rindex(b"\n", 0, -1)], data.replace(b"IQ== 0", b"IQ== 7", 1)):
        file.write_bytes(other)
        with pytest.raises(LatxaError, match=r"is a tiktoken vocabulary of 12\d,\d+ tokens, damaged or not Llama 3's"):
            Tokenizer(file)
    for other in (b"", b"text", data[:-3] + b"x\n", b"\n\x05\n\x03abc"):
        file.write_bytes(other)
        with pytest.raises(LatxaError, match=r"is neither a tokenizer\.json nor a tiktoken vocabulary nor a SentencePiece model"):
            Tokenizer(file)


def test_a_tokenizer_json_means_its_directory_or_itself(byte_tokenizer, tmp_path):
    directory = Tokenizer(byte_tokenizer)
    file = Tokenizer(byte_tokenizer / "tokenizer.json")
    assert (file.fingerprint, file.chat_template) == (directory.fingerprint, directory.chat_template)
    shutil.copy(byte_tokenizer / "tokenizer.json", tmp_path / "mine.json")
    alone = Tokenizer(tmp_path / "mine.json")
    assert alone.chat_template is None
    for found, expected in zip(alone.encode_documents(HARD), directory.encode_documents(HARD), strict=True):
        assert np.array_equal(found, expected)
    (tmp_path / "mine.json").write_text("{}")
    with pytest.raises(LatxaError, match=r"mine\.json: is no tokenizer file that transformers can load"):
        Tokenizer(tmp_path / "mine.json")


PLAIN = {"model_type": "bpe", "normalization_rule_name": "identity", "remove_extra_whitespaces": False, "byte_fallback": True}
MODELS = {
    "llama2": PLAIN,
    "no prefix": {**PLAIN, "add_dummy_prefix": False},
    "bpe nfkc": {"model_type": "bpe"},
    "symbols": {**PLAIN, "user_defined_symbols": ["<x>", "berria"]},
    "unigram": {"model_type": "unigram"},
    "unigram bytes": {"model_type": "unigram", "byte_fallback": True, "bos_id": -1},
}


@pytest.fixture(scope="module", params=MODELS)
def model(request, tmp_path_factory):
    """(what it was trained with, its file, sentencepiece's own processor)."""
    spm = pytest.importorskip("sentencepiece")
    written = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(TRAINING),
        model_writer=written,
        vocab_size=380,
        hard_vocab_limit=False,
        minloglevel=2,
        num_threads=1,
        **MODELS[request.param],
    )
    file = tmp_path_factory.mktemp("sp") / "tokenizer.model"
    file.write_bytes(written.getvalue())
    return MODELS[request.param], file, spm.SentencePieceProcessor(model_proto=written.getvalue())


@pytest.fixture(scope="module")
def piece_tokenizer(model):
    return Tokenizer(model[1])


def test_documents_of_a_sentencepiece_model(model, piece_tokenizer):
    trained, _, processor = model
    begin = [] if trained.get("bos_id") == -1 else [processor.bos_id()]
    ids, offsets = piece_tokenizer.encode_documents([*TRAINING[:5], *HARD])
    for i, text in enumerate([*TRAINING[:5], *HARD]):
        assert ids[offsets[i] : offsets[i + 1]].tolist() == [*begin, *processor.encode(text), processor.eos_id()]
    assert piece_tokenizer.vocab_size == processor.vocab_size()
    assert piece_tokenizer.decode(processor.encode("Kaixo mundua")) == "Kaixo mundua"
    assert piece_tokenizer.control_tokens["</s>"] == processor.eos_id()


@settings(max_examples=60)
@given(texts=st.lists(TEXTS, min_size=1, max_size=4))
def test_sentencepiece_ids_are_its_own(texts, model, piece_tokenizer):
    """Those of the engine always, and those of the `tokenizers` object where it stands for the model."""
    own = piece_tokenizer._own_engine
    ids, offsets = piece_tokenizer.encode_texts(texts)
    assert [ids[a:b].tolist() for a, b in itertools.pairwise(offsets)] == model[2].encode(texts)
    if own.convertible:
        assert first_mismatch(HuggingFace(piece_tokenizer._backend), own, texts) is None


def test_which_engine_runs_for_a_sentencepiece_model(model):
    tokenizer = Tokenizer(model[1])
    said = tokenizer.accelerate(TRAINING)
    plain = model[0]["model_type"] == "bpe" and "byte_fallback" in model[0] and "user_defined_symbols" not in model[0]
    assert tokenizer._own_engine.convertible == plain
    assert said.startswith(("fastokens (as `sentencepiece`", "sentencepiece ("))
    assert first_mismatch(tokenizer._engine, tokenizer._own_engine, TRAINING) is None


def test_the_fingerprint_of_a_sentencepiece_model_is_its_files(model, tmp_path):
    again = shutil.copy(model[1], tmp_path / "other-name.model")
    assert Tokenizer(again).fingerprint == Tokenizer(model[1]).fingerprint


def test_control_tokens_cannot_be_encoded_by_sentencepiece(model):
    with pytest.raises(LatxaError, match="SentencePiece takes control tokens in texts for text"):
        Tokenizer(model[1], "encode")
