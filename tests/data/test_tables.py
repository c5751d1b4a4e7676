"""Parquet and Arrow sources: the records of the same JSONL, however they are cut, and errors that name file and row."""

import hashlib
import os
import random
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latxa_megatron.data import shards
from latxa_megatron.data import sources as src
from latxa_megatron.data.build import build_store
from latxa_megatron.errors import LatxaError
from tests.data.samples import CONVERSATIONS, DOCUMENTS, contents
from tests.data.test_sources import blake_share
from tests.data.writers import write_jsonl

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

MIXED = [
    *CONVERSATIONS,
    {
        "messages": [
            {"role": "user", "content": "Zer?", "name": "Ane"},
            {"role": "assistant", "content": "Hori.", "tool_calls": None},
        ]
    },
    {"conversations": [{"from": "human", "value": "Nor?"}, {"from": "gpt", "value": "Zu."}]},
]
"""As a table, every row and message of these has every key of any other, mostly as a null."""


def write_table(path: Path, table, group_rows: int) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=group_rows)
        return path
    new = pa.ipc.new_file if path.name.startswith("file") else pa.ipc.new_stream
    with pa.OSFile(str(path), "wb") as file, new(file, table.schema) as writer:
        for batch in table.to_batches(max_chunksize=group_rows):
            writer.write_batch(batch)
    return path


def write_rows(path: Path, rows: list[dict], group_rows: int = 7) -> Path:
    keys = dict.fromkeys(key for row in rows for key in row)
    return write_table(path, pa.Table.from_pylist([{key: row.get(key) for key in keys} for row in rows]), group_rows)


@pytest.fixture(params=["a.parquet", "stream.arrow", "file.arrow"])
def path(request, tmp_path) -> Path:
    return tmp_path / request.param


def read_all(path: Path, chunk_bytes: int = 1 << 20) -> list[src.Record]:
    return [record for chunk in src.chunks(path, chunk_bytes) for record in src.records(chunk)]


@pytest.mark.parametrize(("group_rows", "workers"), [(1, 1), (7, 2), (1000, 1)])
def test_the_store_is_that_of_the_same_jsonl(path, group_rows, workers, byte_tokenizer, tmp_path, chunk_bytes):
    lines = [write_jsonl(tmp_path / "d.jsonl", DOCUMENTS), write_jsonl(tmp_path / "c.jsonl", MIXED)]
    plain = build_store(tmp_path / "plain", byte_tokenizer, [src.find(p.stem, [str(p)]) for p in lines])
    chunk_bytes(300)
    named = [(path.with_name(f"{path.stem}-{name}{path.suffix}"), rows) for name, rows in (("d", DOCUMENTS), ("c", MIXED))]
    tables = [write_rows(table, rows, group_rows) for table, rows in named]
    sources = [src.find(name, [str(p)]) for name, p in zip("dc", tables, strict=True)]
    calls = []
    stores = [
        build_store(tmp_path / f"s{workers}", byte_tokenizer, sources, workers=workers, progress=lambda *call: calls.append(call))
        for workers in range(1, workers + 1)
    ]
    assert list(stores[0].documents()) == list(plain.documents())
    assert len(stores[0].shard_infos) > 4
    assert contents(stores[0].directory) == contents(stores[-1].directory)
    total = sum(p.stat().st_size for p in tables)
    assert calls[0] == (0, total)
    assert calls[-1] == (total, total)


@settings(max_examples=40)
@given(
    texts=st.lists(st.text(max_size=30), min_size=1, max_size=40),
    group_rows=st.integers(1, 45),
    chunk_bytes=st.integers(1, 600),
    name=st.sampled_from(["a.parquet", "stream.arrow", "file.arrow"]),
)
def test_any_cut_yields_each_row_once_in_order(texts, group_rows, chunk_bytes, name):
    with tempfile.TemporaryDirectory() as directory:
        path = write_rows(Path(directory, name), [{"text": text} for text in texts], group_rows)
        chunks = src.chunks(path, chunk_bytes)
        assert [record.text for chunk in chunks for record in src.records(chunk)] == texts
        assert [str(record.place) for record in read_all(path, chunk_bytes)] == [f"{path}:row {i + 1}" for i in range(len(texts))]
        assert sum(chunk.size for chunk in chunks) == path.stat().st_size
        assert [chunk.start for chunk in chunks] == [0, *(chunk.end for chunk in chunks[:-1])]
        start = len(texts) // 2  # where a killed build goes on
        [whole] = src.chunks(path, 1 << 20)
        rest = src.records(src.Chunk(path, start, whole.end, whole.size))
        assert [record.text for record in rest] == texts[start:]


def test_a_large_row_group_becomes_several_shards_and_a_killed_build_goes_on_after_them(
    path, byte_tokenizer, tmp_path, chunk_bytes, monkeypatch
):
    chunk_bytes(900)
    write_rows(path, DOCUMENTS, 1000)
    [chunk] = src.chunks(path, 900)
    assert chunk.window
    whole = build_store(tmp_path / "whole", byte_tokenizer, [src.find("eu", [str(path)])])
    assert len(whole.shard_infos) == -(-len(DOCUMENTS) // chunk.window) >= 2
    real = shards._write

    def dying(*arguments):
        if arguments[2].name.endswith("-00001"):
            raise KeyboardInterrupt
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(shards, "_write", dying)
        with pytest.raises(KeyboardInterrupt):
            build_store(tmp_path / "cut", byte_tokenizer, [src.find("eu", [str(path)])])
    kept = (tmp_path / "cut.partial" / "00000-00000.bin").stat().st_ino
    build_store(tmp_path / "cut", byte_tokenizer, [src.find("eu", [str(path)])])
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")
    assert (tmp_path / "cut" / "00000-00000.bin").stat().st_ino == kept


def test_what_datasets_makes_of_a_sequence_of_objects(path):
    """A struct of lists, where everyone else has a list of structs."""
    turns = {"role": ["user", "assistant"], "content": ["Zer?", "Hori."]}
    write_table(path, pa.Table.from_pylist([{"messages": turns}]), 5)
    assert read_all(path)[0].messages == [{"role": "user", "content": "Zer?"}, {"role": "assistant", "content": "Hori."}]


def test_ids_are_the_rows_own_or_a_hash_of_what_they_say(path):
    write_rows(path, [{"id": "x", "text": "a"}, {"text": "b"}, {"text": "c"}])
    ids = [record.id for record in read_all(path)]
    assert ids == ["x", hashlib.sha256(b"b").hexdigest(), hashlib.sha256(b"c").hexdigest()]
    found = src.held_out_documents(src.find("eu", [str(write_rows(path, DOCUMENTS))], 0.3))
    assert [record.id for record in found] == [d["id"] for d in DOCUMENTS if blake_share(d["id"]) < 0.3]


def test_only_the_columns_of_a_record_are_read(path):
    """One of another column's rows, which nothing can read, is not in the way; so is a field that has another name."""
    table = pa.table({"raw": pa.array([b"\xff" * 9] * 3).cast(pa.binary()).view(pa.string()), "body": ["bat", "bi", "hiru"]})
    write_table(path, table, 2)
    found = [record.text for chunk in src.chunks(path, field="body") for record in src.records(chunk, field="body")]
    assert found == ["bat", "bi", "hiru"]
    with pytest.raises(LatxaError, match="has neither a column 'text' nor 'messages'; its columns are raw, body; --field"):
        read_all(path)


BAD_ROWS = [
    ({"text": None}, "the row has neither a string 'text' nor a list 'messages'"),
    ({"messages": []}, "at least one message"),
    ({"messages": [{"role": "user", "content": None}]}, "a string 'content'"),
    ({"messages": [None]}, "'role' and 'content'"),
    ({"messages": [{"role": "system", "content": "a"}], "system": "b"}, "'system' beside the messages"),
]


@pytest.mark.parametrize(("row", "message"), BAD_ROWS)
def test_what_is_no_record_is_refused_with_file_and_row_or_skipped(row, message, path, byte_tokenizer, tmp_path):
    rows = [{"text": "bat"}, {"text": "bi"}, row, {"text": "hiru"}]
    write_rows(path, rows, 2)
    with pytest.raises(LatxaError, match=message) as error:
        read_all(path)
    assert str(error.value).startswith(f"{path}:row 3: ")
    store = build_store(tmp_path / "store", byte_tokenizer, [src.find("eu", [str(path)])], skip_errors=True)
    assert [len(ids) for _, ids, _ in store.documents()] == [4, 3, 5]
    assert (store.directory / "skipped.txt").read_text().startswith(f"{path}:row 3: ")


def test_a_row_that_is_not_utf8(tmp_path):
    texts = pa.array([b"bat", b"bi", b"caf\xe9", b"lau"]).cast(pa.binary()).view(pa.string())
    path = write_table(tmp_path / "a.parquet", pa.table({"text": texts}), 10)
    with pytest.raises(LatxaError, match=r"a\.parquet:row 3: the row is not UTF-8"):
        read_all(path)
    [chunk] = src.chunks(path)
    found = [getattr(each, "text", None) for each in src.records_or_why(chunk)]
    assert found == ["bat", "bi", None, "lau"]
    stream = write_table(tmp_path / "stream.arrow", pa.table({"text": texts}), 10)
    with pytest.raises(LatxaError, match=r"stream\.arrow: is damaged"):
        read_all(stream)


def test_the_longest_row_is_read_and_one_byte_more_is_refused(path):
    write_rows(path, [{"text": "bi"}, {"text": "x" * 100}])
    [chunk] = src.chunks(path)
    assert len(list(src.records(chunk, 100))) == 2
    with pytest.raises(LatxaError, match="row 2: the row is longer than"):
        list(src.records(chunk, 99))
    assert [getattr(each, "text", None) for each in src.records_or_why(chunk, 99)] == ["bi", None]


def test_a_table_without_a_row_is_a_source_without_a_document(path, byte_tokenizer, tmp_path):
    write_table(path, pa.table({"text": pa.array([], pa.string())}), 5)
    assert read_all(path) == []
    full = write_rows(path.with_name("full.parquet"), DOCUMENTS)
    store = build_store(tmp_path / "store", byte_tokenizer, [src.find("eu", [str(path), str(full)])])
    assert store.totals()["eu"].documents == len(DOCUMENTS)


def test_a_file_that_is_cut_short_is_refused_wherever_the_cut_is(path):
    whole = write_rows(path, DOCUMENTS, 7).read_bytes()
    random.seed(1)
    for length in [1, 8, len(whole) - 1, len(whole) - 8, *random.sample(range(2, len(whole) - 8), 60)]:
        path.write_bytes(whole[:length])
        with pytest.raises(LatxaError, match="is damaged, cut short or of another format") as error:
            read_all(path)
        assert str(error.value).startswith(f"{path}: ")
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("rows", [DOCUMENTS[:20], MIXED[-20:]], ids=["documents", "conversations"])
def test_damage_is_an_error_or_other_text_and_never_a_crash(rows, path):
    """In a child process, which a crash of pyarrow would end."""
    whole = write_rows(path, rows, 7).read_bytes()
    child = os.fork()
    if child == 0:
        random.seed(2)
        for _ in range(200):
            data = bytearray(whole)
            for _ in range(random.choice([1, 1, 4])):
                data[random.randrange(len(data))] ^= 1 << random.randrange(8)
            path.write_bytes(data)
            try:
                read_all(path)
            except LatxaError as error:
                if not str(error).startswith(str(path)):
                    os._exit(1)
            except BaseException:
                os._exit(2)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0


def test_without_pyarrow_the_extra_is_named(path, monkeypatch):
    write_rows(path, DOCUMENTS)
    for module in [name for name in sys.modules if name.partition(".")[0] == "pyarrow"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(LatxaError, match=r"needs pyarrow to be read; pip install 'latxa-megatron\[parquet\]'"):
        src.chunks(path)
