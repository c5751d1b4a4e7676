"""Building: the documents in order, the same bytes whatever the workers; errors by file and line, and nothing left."""

import hashlib
import json
import shutil

import numpy as np
import pytest

from latxa_megatron.data import sources as src
from latxa_megatron.data.build import build_store
from latxa_megatron.data.store import TokenStore
from latxa_megatron.errors import LatxaError
from tests.data.samples import (
    CONVERSATIONS,
    DOCUMENTS,
    chat,
    contents,
    conversation_tokens,
    corpus,
    document_tokens,
    write_sources,
)
from tests.data.test_sources import blake_share
from tests.data.writers import write_jsonl, write_tokenizer


@pytest.fixture
def files(tmp_path):
    return write_sources(tmp_path / "sources")


def test_the_store_has_the_documents_in_order(files, byte_tokenizer, tmp_path, chunk_bytes):
    for size in (60, 700, 1 << 20):  # a chunk is less than most lines, several lines, a whole file
        chunk_bytes(size)
        store = build_store(tmp_path / f"store{size}", byte_tokenizer, [corpus(files), chat(files)])
        expected = [("corpus", *document_tokens(d)) for d in DOCUMENTS]
        expected += [("chat", *conversation_tokens(c)) for c in CONVERSATIONS]
        assert list(store.documents()) == expected
        assert len(store.shard_infos) == 3 if size == 1 << 20 else len(store.shard_infos) > 10
        trained = [sum(b - a for a, b in spans) for _, _, spans in expected]
        totals = store.totals()
        assert (totals["corpus"].documents, totals["chat"].documents) == (90, 40)
        assert totals["corpus"].tokens == totals["corpus"].trained_tokens == sum(trained[:90])
        assert totals["chat"].tokens == sum(len(ids) for _, ids, _ in expected[90:])
        assert totals["chat"].trained_tokens == sum(trained[90:])


def test_plain_text_alone_has_no_mask_files_and_trains_everything(files, byte_tokenizer, tmp_path):
    store = build_store(tmp_path / "store", byte_tokenizer, [corpus(files)])
    assert store.manifest["mask"] == "all"
    assert not list((tmp_path / "store").glob("*.mask"))
    assert list(store.documents()) == [("corpus", *document_tokens(d)) for d in DOCUMENTS]


def test_megatron_reads_the_same_tokens(files, byte_tokenizer, indexed_dataset, tmp_path, chunk_bytes):
    chunk_bytes(1500)
    store = build_store(tmp_path / "store", byte_tokenizer, [corpus(files), chat(files)])
    found = []
    for info in store.shard_infos:
        dataset = indexed_dataset.IndexedDataset(str(store.directory / info.name))
        assert len(dataset) == info.documents
        assert dataset.document_indices.tolist() == list(range(info.documents + 1))
        assert np.dtype(dataset.index.dtype) == np.uint16
        found += [dataset[i].tolist() for i in range(len(dataset))]
    assert len(store.shard_infos) > 4
    assert found == [document_tokens(d)[0] for d in DOCUMENTS] + [conversation_tokens(c)[0] for c in CONVERSATIONS]


def test_the_bytes_do_not_depend_on_workers_nor_on_the_time(files, byte_tokenizer, tmp_path, chunk_bytes, monkeypatch):
    chunk_bytes(1500)
    monkeypatch.setattr("latxa_megatron.data.workers.CHUNK_BYTES", 1500)  # so that there is work for several, unasked
    built = []
    for i, workers in enumerate([1, 1, 2, 3, None]):
        store = build_store(tmp_path / str(i), byte_tokenizer, [corpus(files), chat(files)], workers=workers)
        built.append(contents(store.directory))
    assert len([name for name in built[0] if name.endswith(".bin")]) > 4
    assert built[1:] == built[:1] * 4


def test_a_store_of_the_same_inputs_is_returned_and_of_others_refused(files, byte_tokenizer, tmp_path):
    out = tmp_path / "store"
    build_store(out, byte_tokenizer, [corpus(files)])
    times = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    assert build_store(out, byte_tokenizer, [corpus(files)]).totals()["corpus"].documents == 90
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == times
    before = contents(out)
    others = [
        (byte_tokenizer, [corpus(files, 0.5)]),
        (byte_tokenizer, [corpus(files), chat(files)]),
        (write_tokenizer(tmp_path / "other", begin=True), [corpus(files)]),
    ]
    for tokenizer, sources in others:
        with pytest.raises(LatxaError, match="holds a store of other inputs"):
            build_store(out, tokenizer, sources)
    write_jsonl(files / "b.jsonl", DOCUMENTS[50:-1])
    with pytest.raises(LatxaError, match="holds a store of other inputs"):
        build_store(out, byte_tokenizer, [corpus(files)])
    assert contents(out) == before


def test_held_out_documents_are_not_in_the_store(files, byte_tokenizer, tmp_path):
    store = build_store(tmp_path / "store", byte_tokenizer, [corpus(files, 0.3), chat(files)])
    kept = [document_tokens(d)[0] for d in DOCUMENTS if blake_share(d["id"]) >= 0.3]
    assert 30 < len(kept) < 85
    assert [ids for source, ids, _ in store.documents() if source == "corpus"] == kept
    assert store.totals()["chat"].documents == len(CONVERSATIONS)
    held_out = [record.text for record in src.held_out_documents(corpus(files, 0.3))]
    assert held_out == [d["text"] for d in DOCUMENTS if blake_share(d["id"]) < 0.3]


def test_progress_counts_the_sources_bytes(files, byte_tokenizer, tmp_path, chunk_bytes):
    chunk_bytes(1500)
    calls = []
    build_store(tmp_path / "store", byte_tokenizer, [corpus(files)], progress=lambda *call: calls.append(call))
    total = sum((files / name).stat().st_size for name in ("a.jsonl", "b.jsonl"))
    assert calls[0] == (0, total)
    assert calls[-1] == (total, total)
    assert calls == sorted(calls)


LAST = len(DOCUMENTS) - 50 + 1


@pytest.mark.parametrize(
    ("line", "message", "workers"),
    [
        (b'{"text": ', "not valid JSON", 1),
        (b'{"text": ', "not valid JSON", 2),
        (b'{"text": "\xff"}', "not UTF-8", 1),
        (b'{"title": "a"}', "neither a string 'text'", 1),
        (rb'{"text": "\udc00"}', "surrogate", 1),
        (json.dumps(CONVERSATIONS[0]).encode(), "a conversation among the documents of 'corpus'", 1),
    ],
)
def test_a_bad_line_is_named_and_nothing_is_left(line, message, workers, files, byte_tokenizer, tmp_path, chunk_bytes):
    chunk_bytes(1500)
    with (files / "b.jsonl").open("ab") as file:
        file.write(line + b"\n" + json.dumps(DOCUMENTS[0]).encode() + b"\n")
    before = contents(tmp_path)
    with pytest.raises(LatxaError, match=message) as error:
        build_store(tmp_path / "store", byte_tokenizer, [corpus(files)], workers=workers)
    assert str(error.value).startswith(f"{files / 'b.jsonl'}:{LAST}: ")
    assert contents(tmp_path) == before
    assert not (tmp_path / "store.partial").exists()


def test_too_long_a_line_is_named_and_nothing_is_left(files, byte_tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(src.records, "__defaults__", (90,))
    with pytest.raises(LatxaError, match="longer than") as error:
        build_store(tmp_path / "store", byte_tokenizer, [corpus(files)])
    lines = (files / "a.jsonl").read_bytes().splitlines(keepends=True)
    first = next(i for i, line in enumerate(lines) if len(line) > 90)
    assert str(error.value).startswith(f"{files / 'a.jsonl'}:{first + 1}: ")
    assert not list(tmp_path.glob("store*"))


def test_a_bad_conversation_is_named(files, byte_tokenizer, tmp_path):
    write_jsonl(files / "chat.jsonl", [CONVERSATIONS[0], {"messages": [{"role": "user", "content": "Kaixo"}]}])
    with pytest.raises(LatxaError, match="no assistant turn") as error:
        build_store(tmp_path / "store", byte_tokenizer, [corpus(files), chat(files)])
    assert str(error.value).startswith(f"{files / 'chat.jsonl'}:2: ")
    assert not list(tmp_path.glob("store*"))


def test_conversations_without_a_chat_template_are_refused(files, tmp_path):
    tokenizer = write_tokenizer(tmp_path / "tokenizer", template=None)
    with pytest.raises(LatxaError, match="has no chat template"):
        build_store(tmp_path / "store", tokenizer, [corpus(files), chat(files)])
    assert not list(tmp_path.glob("store*"))
    assert build_store(tmp_path / "store", tokenizer, [corpus(files)]).manifest["tokenizer"]["template"] is None


def test_nothing_to_store_is_refused(files, byte_tokenizer, tmp_path):
    (files / "blank.jsonl").write_text("\n \n")
    with pytest.raises(LatxaError, match=r"blank\.jsonl: no document is left"):
        build_store(tmp_path / "store", byte_tokenizer, [src.find("blank", [str(files / "blank.jsonl")])])
    with pytest.raises(LatxaError, match="the same name"):
        build_store(tmp_path / "store", byte_tokenizer, [corpus(files), corpus(files)])
    assert not list(tmp_path.glob("store*"))


def test_the_manifest_names_its_inputs(files, byte_tokenizer, tmp_path):
    store = build_store(tmp_path / "store", byte_tokenizer, [corpus(files, 0.1), chat(files)])
    for source, names in (("corpus", ["a.jsonl", "b.jsonl"]), ("chat", ["chat.jsonl"])):
        assert store.manifest["sources"][source]["files"] == [
            {"path": str(files / name), "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            for name in names
            for data in [(files / name).read_bytes()]
        ]
    assert sorted(path.name for path in store.directory.iterdir()) == [
        *(f"{i:05d}.{suffix}" for i in range(3) for suffix in ("bin", "idx", "mask")),
        "manifest.json",
    ]
    for info in store.shard_infos:
        for suffix, digest in info.sha256.items():
            data = (store.directory / f"{info.name}.{suffix}").read_bytes()
            assert hashlib.sha256(data).hexdigest() == digest
    moved = shutil.copytree(store.directory, tmp_path / "moved")
    assert TokenStore(moved).fingerprint == store.fingerprint
