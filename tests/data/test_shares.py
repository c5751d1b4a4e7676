"""A build in shares: the bytes of a build in one, whoever is killed; no shard by two; the last to finish makes the store."""

import subprocess
import sys
from dataclasses import replace

import pytest

from latxa_megatron.data.build import build_share, build_store
from latxa_megatron.data.shares import Share
from latxa_megatron.errors import LatxaError
from latxa_megatron.files import locked
from tests.data.killed_build import CHUNK_BYTES
from tests.data.samples import DOCUMENTS, chat, contents, corpus, write_sources
from tests.data.writers import write_jsonl


@pytest.fixture
def sources(tmp_path, chunk_bytes):
    chunk_bytes(CHUNK_BYTES)
    files = write_sources(tmp_path / "sources")
    return [corpus(files), chat(files)]


@pytest.fixture
def whole(sources, byte_tokenizer, tmp_path):
    """What the store must be."""
    build_store(tmp_path / "whole", byte_tokenizer, sources)
    return contents(tmp_path / "whole")


def at_once(tmp_path, tokenizer, *of_and_killed: int) -> list[str]:
    """Builds in processes; the numbers of the shares that made the store."""
    module = [sys.executable, "-m", "tests.data.shared_build", *map(str, (tmp_path / "store", tokenizer, tmp_path / "sources"))]
    return subprocess.run([*module, *map(str, of_and_killed)], check=True, text=True, stdout=subprocess.PIPE).stdout.split()


def test_shares_one_after_the_other(sources, whole, byte_tokenizer, tmp_path):
    out = tmp_path / "store"
    shards = {}
    for i in (2, 0, 3, 1):
        store = build_share(out, byte_tokenizer, sources, Share(i, 4), workers=2 if i == 3 else 1)
        assert (store is not None) == (i == 1) == out.exists()
        if i != 1:
            shards[i] = {path.stem for path in (tmp_path / "store.partial").glob("*.bin")}
    assert shards[2] < shards[0] < shards[3]
    assert contents(out) == whole
    assert not list(tmp_path.glob("store.partial*"))
    assert build_share(out, byte_tokenizer, sources, Share(0, 4)) is not None


def test_shares_at_once(whole, byte_tokenizer, tmp_path):
    assert len(at_once(tmp_path, byte_tokenizer, 3)) == 1
    assert contents(tmp_path / "store") == whole


def test_a_killed_share_is_done_again(sources, whole, byte_tokenizer, tmp_path):
    assert at_once(tmp_path, byte_tokenizer, 3, 1) == []
    done = {path.stem: path.stat().st_ino for path in (tmp_path / "store.partial").glob("*.bin")}
    assert 0 < len(done) < len([name for name in whole if name.endswith(".bin")])
    assert build_share(tmp_path / "store", byte_tokenizer, sources, Share(0, 3)) is None  # has nothing left to do
    assert build_share(tmp_path / "store", byte_tokenizer, sources, Share(1, 3)) is not None
    assert contents(tmp_path / "store") == whole
    assert {name: (tmp_path / "store" / f"{name}.bin").stat().st_ino for name in done} == done


def test_a_build_without_shares_finishes_what_they_left(sources, whole, byte_tokenizer, tmp_path):
    assert build_share(tmp_path / "store", byte_tokenizer, sources, Share(1, 3)) is None
    build_store(tmp_path / "store", byte_tokenizer, sources)
    assert contents(tmp_path / "store") == whole


def test_a_share_beside_others_is_refused_unless_it_is_of_the_same_build(sources, byte_tokenizer, tmp_path):
    out = tmp_path / "store"
    build_share(out, byte_tokenizer, sources, Share(0, 3))
    work = tmp_path / "store.partial" / "work"
    with locked(tmp_path / "store.partial", "building", shared=True), locked(work / "0.lock", "doing share 0"):
        with pytest.raises(LatxaError, match="another process is doing share 0/3 of this store"):
            build_share(out, byte_tokenizer, sources, Share(0, 3))
        with pytest.raises(LatxaError, match="do shares of 3; do the same"):
            build_share(out, byte_tokenizer, sources, Share(1, 2))
        with pytest.raises(LatxaError, match="others build here from other inputs"):
            build_share(out, byte_tokenizer, [replace(sources[0], hold_out=0.5)], Share(1, 3))
        with pytest.raises(LatxaError, match="another process is building this store"):
            build_store(out, byte_tokenizer, sources)
        assert build_share(out, byte_tokenizer, sources, Share(1, 3)) is None
        assert build_share(out, byte_tokenizer, sources, Share(2, 3)) is None  # the last, but the holder may still write
    assert build_share(out, byte_tokenizer, sources, Share(2, 3)) is not None


def test_a_source_that_changed_since_the_killed_shares_starts_again(sources, byte_tokenizer, tmp_path):
    out = tmp_path / "store"
    build_share(out, byte_tokenizer, sources, Share(0, 2))
    write_jsonl(tmp_path / "sources" / "a.jsonl", DOCUMENTS[:49])
    assert build_share(out, byte_tokenizer, sources, Share(1, 2)) is None
    assert build_share(out, byte_tokenizer, sources, Share(0, 2)) is not None
    build_store(tmp_path / "whole", byte_tokenizer, sources)
    assert contents(out) == contents(tmp_path / "whole")


def test_a_bad_line_ends_its_share_and_leaves_the_others_work(sources, byte_tokenizer, tmp_path):
    with (tmp_path / "sources" / "b.jsonl").open("ab") as file:
        file.write(b"{\n")
    results = []
    for i in range(3):
        try:
            results.append(build_share(tmp_path / "store", byte_tokenizer, sources, Share(i, 3)))
        except LatxaError as error:
            results.append(str(error))
    assert sorted(map(str, results))[1:] == ["None", "None"]
    assert any(str(result).startswith(f"{tmp_path / 'sources' / 'b.jsonl'}:41: ") for result in results)
    assert list((tmp_path / "store.partial").glob("*.json"))


@pytest.mark.parametrize("text", ["3", "3/3", "-1/3", "0/0", "a/b", "1/2/3", ""])
def test_what_is_no_share_is_refused(text):
    with pytest.raises(LatxaError, match=r"--shard .*has the form I/N"):
        Share.parse(text)


def test_every_task_is_in_one_share():
    for of in (1, 2, 7, 30):
        tasks = [task for i in range(of) for task in Share.parse(f"{i}/{of}").tasks(list(range(20)))]
        assert sorted(tasks) == list(range(20))
