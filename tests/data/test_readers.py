"""Compressed sources: the records of the plain file, and never fewer without a word."""

import gzip
import json
import random

import pytest
import zstandard

from latxa_megatron.data import sources as src
from latxa_megatron.data.build import build_store
from latxa_megatron.data.sources import find
from latxa_megatron.data.verify import verify
from latxa_megatron.errors import LatxaError
from tests.data.samples import DOCUMENTS, chat, contents, corpus, write_sources

PLAIN = "".join(json.dumps(d, ensure_ascii=False) + "\n" for d in DOCUMENTS).encode()


def zstd_frames(data: bytes) -> bytes:
    """Frames of 700 bytes, as `zstd` and parallel writers make them, with an empty one among them."""
    compress = zstandard.ZstdCompressor().compress
    pieces = [compress(data[i : i + 700]) for i in range(0, len(data), 700)]
    return b"".join([*pieces[:2], compress(b""), *pieces[2:]])


COMPRESS = {"a.jsonl.gz": gzip.compress, "a.jsonl.zst": zstandard.ZstdCompressor().compress, "frames.jsonl.zst": zstd_frames}


@pytest.fixture(params=COMPRESS)
def compressed(request, tmp_path):
    path = tmp_path / request.param
    path.write_bytes(COMPRESS[request.param](PLAIN))
    return path


def read(path):
    return [record.text for chunk in src.chunks(path) for record in src.records(chunk)]


def frames_end(data: bytes) -> bool:
    while data:
        frame = zstandard.ZstdDecompressor().decompressobj()
        try:
            frame.decompress(data)
        except zstandard.ZstdError:
            return False
        if not frame.eof:
            return False
        data = frame.unused_data
    return True


def test_the_records_are_those_of_the_plain_file(compressed):
    assert read(compressed) == [d["text"] for d in DOCUMENTS]


def test_a_file_that_is_cut_short_is_refused_wherever_the_cut_is(compressed):
    whole = compressed.read_bytes()
    random.seed(1)
    for length in [1, len(whole) - 1, len(whole) - 4, *random.sample(range(2, len(whole) - 4), 40)]:
        compressed.write_bytes(whole[:length])
        if compressed.name == "frames.jsonl.zst" and frames_end(whole[:length]):
            continue  # a cut between two frames leaves a whole file
        before = []
        with pytest.raises(LatxaError, match="is damaged or cut short") as error:
            before += (record for chunk in src.chunks(compressed) for record in src.records(chunk))
        place = f"{compressed}:{len(before)}" if before else compressed
        assert str(error.value).startswith(f"{place}: ")


def test_a_file_that_is_none_is_refused(compressed):
    compressed.write_bytes(b"not compressed at all")
    with pytest.raises(LatxaError, match="is damaged or cut short"):
        read(compressed)


def test_a_bad_line_is_named(compressed):
    lines = PLAIN.splitlines(keepends=True)
    lines[40] = b'{"text": \n'
    compressed.write_bytes(COMPRESS[compressed.name](b"".join(lines)))
    with pytest.raises(LatxaError, match="not valid JSON") as error:
        read(compressed)
    assert str(error.value).startswith(f"{compressed}:41: ")


@pytest.mark.parametrize("window", [300, 1500, 1 << 20])
def test_the_shards_are_those_of_the_plain_file(compressed, window, byte_tokenizer, tmp_path, chunk_bytes):
    chunk_bytes(window)
    plain = tmp_path / "a.jsonl"
    plain.write_bytes(PLAIN)
    stores = [build_store(tmp_path / p.suffix, byte_tokenizer, [src.find("eu", [str(p)])]) for p in (plain, compressed)]
    first, second = ([(i.documents, i.tokens, i.sha256) for i in store.shard_infos] for store in stores)
    assert first == second
    assert len(first) > 4 or window == 1 << 20


def test_a_killed_build_goes_on_after_the_windows_that_were_done(compressed, byte_tokenizer, tmp_path, chunk_bytes, monkeypatch):
    from latxa_megatron.data import shards

    chunk_bytes(1500)
    source = src.find("eu", [str(compressed)])
    whole = build_store(tmp_path / "whole", byte_tokenizer, [source])
    assert len(whole.shard_infos) > 4
    for kept in range(len(whole.shard_infos)):
        real, written = shards._write, []

        def dying(*arguments, real=real, written=written, kept=kept):
            if len(written) == kept:
                raise KeyboardInterrupt
            written.append(1)
            return real(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(shards, "_write", dying)
            with pytest.raises(KeyboardInterrupt):
                build_store(tmp_path / f"cut{kept}", byte_tokenizer, [source])
        done = len(list((tmp_path / f"cut{kept}.partial").glob("*-*.json")))
        assert done == kept
        build_store(tmp_path / f"cut{kept}", byte_tokenizer, [source])
        assert contents(tmp_path / f"cut{kept}") == contents(tmp_path / "whole")


BAD = [b"\xff\xfe", b'{"text": 5}', b'{"text": "a"', rb'{"text": "\ud83d"}', b"[1]"]


def test_skipped_lines_are_counted_and_named(byte_tokenizer, tmp_path, chunk_bytes):
    files = write_sources(tmp_path / "sources")
    before = build_store(tmp_path / "before", byte_tokenizer, [corpus(files), chat(files)])
    lines = (files / "a.jsonl").read_bytes().splitlines(keepends=True)
    for at, bad in zip((0, 7, 8, 30, len(lines)), BAD, strict=True):
        lines.insert(at, bad + b"\n")
    (files / "a.jsonl").write_bytes(b"".join(lines))
    with (files / "chat.jsonl").open("ab") as file:
        file.write(b'{"messages": [{"role": "user", "content": "Kaixo"}]}\n')
    chunk_bytes(900)
    stores = [
        build_store(tmp_path / f"s{workers}", byte_tokenizer, [corpus(files), chat(files)], workers=workers, skip_errors=True)
        for workers in (1, 2)
    ]
    assert contents(stores[0].directory) == contents(stores[1].directory)
    assert list(stores[0].documents()) == list(before.documents())
    assert stores[0].manifest["skipped"] == 6
    named = (stores[0].directory / "skipped.txt").read_text().splitlines()
    starts = [sum(map(len, lines[:i])) for i, line in enumerate(lines) if line.rstrip(b"\n") in BAD]
    assert [line.partition(": ")[0] for line in named[:5]] == [f"{files / 'a.jsonl'}:byte {start}" for start in starts]
    assert "no assistant turn" in named[5]
    assert not verify(stores[0].directory).faults
    (stores[0].directory / "skipped.txt").write_text(named[0] + "\n")
    assert [str(fault.file.name) for fault in verify(stores[0].directory).faults] == ["skipped.txt"]
    with pytest.raises(LatxaError, match="of other inputs"):
        build_store(stores[0].directory, byte_tokenizer, [corpus(files), chat(files)])


def test_where_all_lines_are_skipped_the_first_is_named(byte_tokenizer, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join(BAD))
    with pytest.raises(LatxaError, match=r"of 5 lines skipped the first is .*a\.jsonl:byte 0: the line is not") as error:
        build_store(tmp_path / "store", byte_tokenizer, [find("eu", [str(path)])], skip_errors=True)
    assert str(error.value).startswith(f"{path}: no document is left")
    assert not list(tmp_path.glob("store*"))


def test_another_field_has_the_text(byte_tokenizer, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"content": "bat", "text": "bi"}\n')
    ids = [
        ids.copy()
        for field in ("text", "content")
        for _, ids, _ in build_store(tmp_path / field, byte_tokenizer, [src.find("eu", [str(path)], field=field)]).documents()
    ]
    assert [len(each) for each in ids] == [3, 4]
    with pytest.raises(LatxaError, match="neither a string 'body'"):
        build_store(tmp_path / "body", byte_tokenizer, [src.find("eu", [str(path)], field="body")])


@pytest.mark.parametrize("workers", [1, 2])
def test_control_tokens_in_a_text_as_the_build_was_told(workers, byte_tokenizer, tmp_path, chunk_bytes):
    chunk_bytes(40)
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "bat bat bat bat"}\n{"text": "bi <|im_end|>"}\n{"text": "hiru"}\n')
    lengths = {}
    for policy in ("text", "encode", "error"):
        skip = policy == "error"
        store = build_store(
            tmp_path / policy,
            byte_tokenizer,
            [src.find("eu", [str(path)])],
            workers=workers,
            skip_errors=skip,
            special_tokens=policy,
        )
        lengths[policy] = [len(ids) for _, ids, _ in store.documents()]
    assert lengths == {"text": [16, 14, 5], "encode": [16, 5, 5], "error": [16, 5]}
    assert "the control token '<|im_end|>' stands in the text" in (tmp_path / "error" / "skipped.txt").read_text()
    with pytest.raises(LatxaError, match=r"a\.jsonl:2: the control token") as error:
        build_store(tmp_path / "stop", byte_tokenizer, [src.find("eu", [str(path)])], special_tokens="error")
    assert "--special-tokens" in str(error.value)
