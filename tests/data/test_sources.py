"""Sources: every record once and in order however a file is cut, and errors that name file and line."""

import hashlib
import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latxa_megatron.data import sources
from latxa_megatron.errors import LatxaError
from tests.data.writers import write_jsonl

LINE_ENDS = st.sampled_from([b"\n", b"\r\n", b"\n\n", b"\n  \n"])
TEXTS = st.text(max_size=30)


def read_all(path: Path, chunk_bytes: int) -> list[sources.Record]:
    return [record for chunk in sources.chunks(path, chunk_bytes) for record in sources.records(chunk)]


@given(st.lists(st.tuples(TEXTS, LINE_ENDS, st.booleans()), min_size=1, max_size=12), st.booleans(), st.data())
def test_chunks_of_any_size_yield_each_record_once_in_order(documents, ends_with_newline, data):
    lines = [(json.dumps({"text": t}, ensure_ascii=ascii).encode(), end) for t, end, ascii in documents]
    content = b"".join(line + end for line, end in lines)
    if not ends_with_newline:
        content = content.rstrip()
    chunk_bytes = data.draw(st.integers(1, len(content)))
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "a.jsonl")
        path.write_bytes(content)
        found = read_all(path, chunk_bytes)
        assert [record.text for record in found] == [text for text, _, _ in documents]
        numbers = [i + 1 for i, line in enumerate(content.split(b"\n")) if line.strip()]
        assert [str(record.place) for record in found] == [f"{path}:{number}" for number in numbers]


def test_every_chunk_size_of_one_file(tmp_path):
    texts = ["bat", "", "hiru 🙂", "lau\nbost", "x" * 40]
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in texts])
    for chunk_bytes in range(1, path.stat().st_size + 2):
        assert [record.text for record in read_all(path, chunk_bytes)] == texts


@given(st.integers(1, 10_000), st.integers(1, 10_000))
def test_chunks_cover_the_file_and_do_not_overlap(size, chunk_bytes):
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "a.jsonl")
        with path.open("wb") as file:
            file.truncate(size)
        found = sources.chunks(path, chunk_bytes)
    covered = [byte for chunk in found for byte in range(chunk.start, chunk.end)]
    assert covered == list(range(size))


def test_a_line_longer_than_the_skipping_reads(tmp_path):
    """The line under a cut is skipped in reads of 1 MB."""
    texts = ["a" * (3 << 20), "b", "c" * (1 << 20), "d"]
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in texts])
    assert [record.text for record in read_all(path, 700_000)] == texts


def test_conversations_in_both_forms(tmp_path):
    path = write_jsonl(
        tmp_path / "a.jsonl",
        [
            {"messages": [{"role": "user", "content": "Zer?"}, {"role": "assistant", "content": "Hori."}]},
            {"conversations": [{"from": "human", "value": "Zer?"}, {"from": "gpt", "value": "Hori."}]},
        ],
    )
    first, second = read_all(path, 1000)
    assert first.messages == second.messages
    assert first.messages == [{"role": "user", "content": "Zer?"}, {"role": "assistant", "content": "Hori."}]


def test_ids_are_the_records_own_or_a_hash_of_the_line(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"id": 7, "text": "a"}, {"text": "b"}])
    line = path.read_bytes().splitlines(keepends=True)[1]
    assert [record.id for record in read_all(path, 1000)] == ["7", hashlib.sha256(line).hexdigest()]


def text_line(text: bytes) -> bytes:
    return b'{"text": "' + text + b'"}'


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": "a"', "not valid JSON"),
        (b"\xff\xfe garbage", "JSON|UTF-8"),
        (text_line(b"caf\xe9"), "not UTF-8"),
        (b'{"body": "a"}', "neither a string 'text' nor a list 'messages'"),
        (b'{"text": 5}', "neither a string 'text'"),
        (b'["text"]', "not a JSON object"),
        (b"null", "not a JSON object"),
        (text_line(rb"\ud83d"), "surrogate"),
        (b'{"messages": []}', "at least one message"),
        (b'{"messages": "a"}', "at least one message"),
        (b'{"messages": ["a"]}', "'role' and 'content'"),
        (b'{"messages": [{"role": "user"}]}', "a string 'content'"),
        (b'{"messages": [{"role": "user", "content": null}]}', "a string 'content'"),
        (b'{"messages": [{"content": "a"}]}', "a string 'role'"),
        (b"1" * 5000, "JSON"),
    ],
)
@pytest.mark.parametrize("chunk_bytes", [7, 1000])
def test_what_is_no_record_is_refused_with_file_and_line(line, message, chunk_bytes, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join([text_line(b"bat"), b"", text_line(b"hiru"), line, text_line(b"bost"), b""]))
    with pytest.raises(LatxaError, match=message) as error:
        read_all(path, chunk_bytes)
    assert str(error.value).startswith(f"{path}:4: ")


def test_the_longest_line_is_read_and_one_byte_more_is_refused(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "bi"}, {"text": "x" * 100}, {"text": "hiru"}])
    longest = len(path.read_bytes().splitlines(keepends=True)[1])
    [chunk] = sources.chunks(path)
    assert len(list(sources.records(chunk, longest))) == 3
    with pytest.raises(LatxaError, match="longer than") as error:
        list(sources.records(chunk, longest - 1))
    assert str(error.value).startswith(f"{path}:2: ")
    for chunk_bytes in range(1, path.stat().st_size + 2):
        found = [each for chunk in sources.chunks(path, chunk_bytes) for each in sources.records_or_why(chunk, longest - 1)]
        assert [getattr(each, "text", None) for each in found] == ["bi", None, "hiru"]


@pytest.mark.parametrize(
    "line",
    [rb'{"id": "\ud83d", "text": "a"}', rb'{"messages": [{"role": "user", "content": "\ud83d"}]}'],
    ids=["id", "content"],
)
def test_half_of_a_surrogate_pair_is_refused_wherever_it_stands(line, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(line)
    try:
        [record] = read_all(path, 1000)
    except LatxaError:
        return
    record.id.encode()
    for message in record.messages or []:
        message["content"].encode()


def test_nesting_too_deep_to_parse_is_refused(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "a", "meta": ' + b"[" * 200_000 + b"]" * 200_000 + b"}")
    with pytest.raises(LatxaError, match=r"a\.jsonl:1: "):
        read_all(path, 1 << 20)


def test_find_sorts_and_takes_each_file_once(tmp_path):
    for name in ("b.jsonl", "a.jsonl", "sub.ndjson"):
        (tmp_path / name).write_text("{}\n")
    patterns = [str(tmp_path / pattern) for pattern in ("b.jsonl", "*.jsonl", "**/*.ndjson")]
    files = tuple(tmp_path / name for name in ("b.jsonl", "a.jsonl", "sub.ndjson"))
    assert sources.find("eu", patterns, 0.5) == sources.Source("eu", files, 0.5)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gone.jsonl", "there is no such file"),
        ("gone-*.jsonl", "there is no such file"),
        ("empty.jsonl", "is empty"),
        ("a.txt.gz", "neither JSONL nor a table"),
        ("a.jsonl.bz2", "neither JSONL nor a table"),
        ("a.txt", "neither JSONL nor a table"),
    ],
)
def test_find_refuses_with_path_and_source(name, message, tmp_path):
    (tmp_path / "empty.jsonl").touch()
    for file in ("a.txt.gz", "a.jsonl.bz2", "a.txt"):
        (tmp_path / file).write_text("{}\n")
    with pytest.raises(LatxaError, match=message) as error:
        sources.find("eu", [str(tmp_path / name)])
    assert str(error.value).startswith(f"{tmp_path / name}: ")
    assert "'eu'" in str(error.value)


def test_find_takes_a_file_by_its_literal_name(tmp_path):
    path = write_jsonl(tmp_path / "part[1].jsonl", [{"text": "a"}])
    assert sources.find("eu", [str(path)]).paths == (path,)


def blake_share(document_id: str) -> float:
    return int(hashlib.blake2b(document_id.encode(), digest_size=8).hexdigest(), 16) / 2**64


@given(TEXTS, st.floats(0, 1, exclude_max=True))
def test_held_out_is_a_threshold_on_a_hash_of_the_id(document_id, share):
    assert sources.held_out(document_id, share) == (blake_share(document_id) < share)


def test_held_out_takes_about_its_share():
    ids = [str(i) for i in range(20_000)]
    taken = sum(sources.held_out(i, 0.1) for i in ids)
    assert abs(taken - 2000) < 5 * (20_000 * 0.1 * 0.9) ** 0.5  # five standard deviations
    assert not any(sources.held_out(i, 0.0) for i in ids)


def test_held_out_documents_are_those_under_the_threshold_and_no_conversation(tmp_path):
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]
    documents = [{"id": f"d{i}", "text": str(i)} for i in range(200)]
    path = write_jsonl(tmp_path / "a.jsonl", documents + [{"id": f"c{i}", "messages": turns} for i in range(50)])
    found = sources.held_out_documents(sources.find("eu", [str(path)], 0.3))
    assert [record.id for record in found] == [d["id"] for d in documents if blake_share(d["id"]) < 0.3]
