"""tools/preprocess_data.py against megatron-core's own builder, fed with what transformers makes of the same texts."""

import gzip
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from latxa_megatron.data import preprocess as module
from latxa_megatron.data.preprocess import Options, preprocess
from latxa_megatron.errors import LatxaError
from tests.data.samples import DOCUMENTS, contents
from tests.data.writers import write_jsonl, write_tokenizer

TOOL = Path(__file__).parents[2] / "tools" / "preprocess_data.py"

ODD = [
    {"text": "", "title": "ez"},
    {"text": "a<|im_end|>b <|endoftext|><|eot_id|><|begin_of_text|></s>", "title": ""},
    {"text": " ", "title": "\n"},
    {"text": ["bat.", "", "bi <|im_end|>", ""], "title": "x"},
    {"text": [], "title": "y"},
    {"text": ["", ""], "title": "z"},
    {"text": "🙂 \u00a0 elektriko\u0000\ufeff", "title": "NFC n\u0303"},
]
LINES = [{**document, "title": document["text"][:5]} for document in DOCUMENTS]
LINES = [*LINES[:30], *ODD, *LINES[30:], *ODD[:1]]


@pytest.fixture
def expected(indexed_dataset, tmp_path):
    """Writes what Megatron must have, by its builder, and returns the bytes of .bin and .idx."""

    def build(lines, tokenizer, key="text", eod=True, around=True):
        import transformers

        loaded = transformers.AutoTokenizer.from_pretrained(str(tokenizer))
        prefix = str(tmp_path / "expected")
        dtype = indexed_dataset.DType.optimal_dtype(len(loaded))
        builder = indexed_dataset.IndexedDatasetBuilder(f"{prefix}.bin", dtype=dtype)
        for line in lines:
            texts = line[key] if isinstance(line[key], list) else [line[key]]
            sequences = [loaded(text, add_special_tokens=around)["input_ids"] for text in texts]
            sequences = [ids for ids in sequences if ids]
            if sequences and eod:
                sequences[-1] = [*sequences[-1], loaded.eos_token_id]
            builder.add_document([i for ids in sequences for i in ids], [len(ids) for ids in sequences])
        builder.finalize(f"{prefix}.idx")
        return [Path(f"{prefix}.{suffix}").read_bytes() for suffix in ("bin", "idx")]

    return build


def made(prefix: Path, key: str = "text") -> list[bytes]:
    return [Path(f"{prefix}_{key}_document.{suffix}").read_bytes() for suffix in ("bin", "idx")]


@pytest.mark.parametrize("name", ["plain", "begin", "smollm", "llama"])
def test_the_bytes_are_megatrons(name, expected, tmp_path, request):
    if name in ("plain", "begin"):
        tokenizer = write_tokenizer(tmp_path / "tokenizer", begin=name == "begin")
    else:
        tokenizer = request.getfixturevalue(f"{name}_tokenizer")
    file = write_jsonl(tmp_path / "in.jsonl", LINES)
    for eod, around in ((True, True), (False, False)) if name == "begin" else ((True, True),):
        options = Options(str(tokenizer), ("text", "title"), append_eod=eod, include_special_tokens=around)
        preprocess([file], str(tmp_path / "out"), options)
        for key in ("text", "title"):
            assert made(tmp_path / "out", key) == expected(LINES, tokenizer, key, eod, around)


@pytest.mark.parametrize(("kind", "workers"), [("SentencePieceTokenizer", 1), ("Llama2Tokenizer", 2)])
def test_the_bytes_are_those_of_megatrons_sentencepiece_types(kind, workers, indexed_dataset, tmp_path):
    """Of a Unigram model that joins blanks, and of one that is as Llama 2's."""
    spm = pytest.importorskip("sentencepiece")
    from megatron.core.tokenizers.text.libraries import SentencePieceTokenizer

    as_llama2 = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False, "byte_fallback": True}
    how = {"model_type": "bpe", **as_llama2} if kind == "Llama2Tokenizer" else {"model_type": "unigram"}
    texts = iter([document["text"] for document in DOCUMENTS])
    model = tmp_path / "tokenizer.model"
    trainer = spm.SentencePieceTrainer.train
    trainer(sentence_iterator=texts, model_prefix=str(model)[:-6], vocab_size=340, hard_vocab_limit=False, minloglevel=2, **how)
    file = write_jsonl(tmp_path / "in.jsonl", LINES)
    options = Options(str(model), append_eod=True, workers=workers, tokenizer_type=kind)
    preprocess([file], str(tmp_path / "out"), options)

    megatrons = SentencePieceTokenizer(str(model))
    builder = indexed_dataset.IndexedDatasetBuilder(f"{tmp_path}/expected.bin", dtype=np.uint16)
    for line in LINES:
        parts = line["text"] if isinstance(line["text"], list) else [line["text"]]
        sequences = [ids for ids in map(megatrons.text_to_ids, parts) if ids]
        if sequences:
            sequences[-1] = [*sequences[-1], megatrons.eos_id]
        builder.add_document([i for ids in sequences for i in ids], [len(ids) for ids in sequences])
    builder.finalize(f"{tmp_path}/expected.idx")
    assert made(tmp_path / "out") == [(tmp_path / f"expected.{suffix}").read_bytes() for suffix in ("bin", "idx")]


def test_neither_workers_nor_compression_nor_blank_lines_matter(expected, byte_tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_BLOCK_BYTES", 900)
    monkeypatch.setattr(module, "_BATCH_BYTES", 200)
    plain = write_jsonl(tmp_path / "in.jsonl", LINES)
    packed = tmp_path / "in.jsonl.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes().replace(b"\n", b"\r\n \n")))
    for file, workers in ((plain, 1), (plain, 2), (packed, 1)):
        calls = []
        options = Options(str(byte_tokenizer), append_eod=True, workers=workers)
        preprocess([file], str(tmp_path / "out"), options, lambda *call, calls=calls: calls.append(call))
        assert made(tmp_path / "out") == expected(LINES, byte_tokenizer)
        assert len(calls) > 4
        assert calls[-1][0] == len(LINES)


def test_partitions_deal_the_documents_out(expected, byte_tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_BLOCK_BYTES", 700)
    files = [write_jsonl(tmp_path / "a.jsonl", LINES[:41]), write_jsonl(tmp_path / "b.jsonl", LINES[41:])]
    for parts in (2, 3, 200):
        preprocess(files, str(tmp_path / "out"), Options(str(byte_tokenizer), partitions=parts))
        dealt = [line for part in range(parts) for line in LINES[part::parts]]
        assert made(tmp_path / "out") == expected(dealt, byte_tokenizer, eod=False)
        options = Options(str(byte_tokenizer), partitions=parts, keep_sequential_samples=True)
        preprocess(files, str(tmp_path / "out"), options)
        assert made(tmp_path / "out") == expected(LINES, byte_tokenizer, eod=False)
    assert sorted(path.name for path in tmp_path.glob("out*")) == ["out_text_document.bin", "out_text_document.idx"]


def test_no_documents_and_documents_without_a_token(expected, byte_tokenizer, tmp_path):
    for lines in ([], [{"text": ""}], [{"text": ""}, {"text": "a"}, {"text": []}]):
        file = write_jsonl(tmp_path / "in.jsonl", lines)
        preprocess([file], str(tmp_path / "out"), Options(str(byte_tokenizer), append_eod=True))
        assert made(tmp_path / "out") == expected(lines, byte_tokenizer)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{", "not valid JSON"),
        (b'{"text": "\xff"}', "not UTF-8"),
        (b'{"text": "\\udc00"}', "surrogate"),
        (b'{"text": null}', "no JSON object with a string 'text'"),
        (b'{"title": "a"}', "no JSON object with a string 'text'"),
        (b'{"text": ["a", 1]}', "no JSON object with a string 'text'"),
        (b"[]", "no JSON object with a string 'text'"),
    ],
)
def test_a_bad_line_is_named_and_nothing_is_left(line, message, byte_tokenizer, tmp_path):
    file = write_jsonl(tmp_path / "in.jsonl", LINES[:5])
    file.write_bytes(file.read_bytes() + line + b"\n")
    before = contents(tmp_path)
    with pytest.raises(LatxaError, match=message) as error:
        preprocess([file], str(tmp_path / "out"), Options(str(byte_tokenizer)))
    assert str(error.value).startswith(f"{file}:6: ")
    assert contents(tmp_path) == before


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(TOOL), *map(str, arguments)], text=True, capture_output=True, check=False)


def test_the_tool_takes_megatrons_flags(expected, byte_tokenizer, tmp_path):
    write_jsonl(tmp_path / "in.jsonl", LINES)
    done = run(
        *("--input", tmp_path / "in.jsonl", "--output-prefix", tmp_path / "new" / "out", "--json-keys", "title", "text"),
        *("--tokenizer-type", "HuggingFaceTokenizer", "--tokenizer-model", byte_tokenizer, "--append-eod", "--workers", 2),
        *("--partitions", 2, "--log-interval", 10, "--dataset-impl", "mmap", "--keep-newlines", "--use-gigatoken"),
    )
    assert (done.returncode, done.stdout.split()) == (0, [f"{tmp_path}/new/out_{key}_document.bin" for key in ("title", "text")])
    assert f"Processed {len(LINES)} documents" in done.stderr
    for key in ("title", "text"):
        assert made(tmp_path / "new" / "out", key) == expected(LINES[::2] + LINES[1::2], byte_tokenizer, key)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--split-sentences"], "--split-sentences: sentences are not split here"),
        (["--find-optimal-num-workers"], "--find-optimal-num-workers: there is nothing to find"),
        (["--vocab-file", "v.json"], "--vocab-file: a vocabulary in files"),
        (["--tokenizer-type", "TikTokenizer"], "--tokenizer-type TikTokenizer: is not read here"),
        (["--tokenizer-model", str(TOOL.parent)], f"--tokenizer-model {TOOL.parent}: transformers loads no tokenizer"),
        (["--tokenizer-type", "Llama2Tokenizer"], "--tokenizer-model {tokenizer}: there is no such SentencePiece .model"),
        (["--input", "none.jsonl"], "--input none.jsonl: there is no such file"),
        (["--workers", "0"], "--workers: must be 1 or more"),
    ],
)
def test_what_the_tool_refuses_is_one_sentence(arguments, message, byte_tokenizer, tmp_path, monkeypatch, capsys):
    import importlib.util

    write_jsonl(tmp_path / "in.jsonl", LINES)
    spec = importlib.util.spec_from_file_location("preprocess_data", TOOL)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    common = ["--input", tmp_path / "in.jsonl", "--output-prefix", tmp_path / "out", "--tokenizer-model", byte_tokenizer]
    common += ["--tokenizer-type", "HuggingFaceTokenizer", "--workers", 1]
    monkeypatch.setattr(sys, "argv", ["preprocess_data.py", *map(str, [*common, *arguments])])
    with pytest.raises(SystemExit) as end:
        tool.main()
    said = capsys.readouterr().err
    assert end.value.code == 2
    assert said.startswith(f"error: {message.replace('{tokenizer}', str(byte_tokenizer))}")
    assert said.count("\n") == 1
    assert not list(tmp_path.glob("out*"))
