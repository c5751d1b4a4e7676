"""What a build must survive: kills at any moment, full disks, changed sources, huge and bad lines; never a silent loss."""

import json
import resource
import subprocess
import sys

import pytest

from latxa_megatron.data import build
from latxa_megatron.data.build import build_store
from latxa_megatron.data.mixture import Mix
from latxa_megatron.data.packing import pack
from latxa_megatron.data.sources import find
from latxa_megatron.errors import LatxaError
from tests.data.samples import CONVERSATIONS, DOCUMENTS, chat, contents, corpus, write_sources
from tests.data.writers import write_jsonl, write_store


@pytest.mark.parametrize("kills", [4, pytest.param(100, marks=pytest.mark.slow)])
def test_killed_at_random_moments_and_started_again_has_the_same_bytes(kills, byte_tokenizer, tmp_path):
    write_sources(tmp_path / "sources")
    paths = map(str, (tmp_path / "out", byte_tokenizer, tmp_path / "sources"))
    command = [sys.executable, "-m", "tests.data.random_kills", *paths, str(kills), "33"]
    found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    print(found["stages"])
    assert sum(found["stages"].values()) == kills
    assert found["hashes"] == [found["alone"]]


@pytest.fixture
def files(tmp_path):
    return write_sources(tmp_path / "sources")


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 64 kB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("a tmpfs cannot be mounted here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_disk_that_fills_is_named_and_the_build_goes_on_when_there_is_room(
    workers, small_disk, files, byte_tokenizer, chunk_bytes, tmp_path
):
    chunk_bytes(1500)
    whole = build_store(tmp_path / "whole", byte_tokenizer, [corpus(files), chat(files)])
    filler = small_disk / "filler"
    filler.write_bytes(b"x" * (32 << 10))
    with pytest.raises(OSError, match="No space left on device") as error:
        build_store(small_disk / "store", byte_tokenizer, [corpus(files), chat(files)], workers=workers)
    assert str(small_disk / "store.partial") in str(error.value)
    assert not (small_disk / "store").exists()
    filler.unlink()
    subprocess.run(["mount", "-o", "remount,size=1m", str(small_disk)], check=True)
    store = build_store(small_disk / "store", byte_tokenizer, [corpus(files), chat(files)], workers=workers)
    assert store.fingerprint == whole.fingerprint
    assert contents(small_disk / "store") == contents(tmp_path / "whole")


def test_a_plan_that_a_disk_cannot_hold_is_named_and_nothing_is_left(small_disk, tmp_path):
    store = write_store(tmp_path / "store", [("eu", [([1, 2, 3], [(0, 3)])] * 9000)])
    with pytest.raises(OSError, match="No space left on device") as error:
        pack(small_disk / "plan", [Mix(store, {})], seq_length=8, seed=1)
    assert str(small_disk / "plan") in str(error.value)
    assert not list(small_disk.iterdir())


@pytest.mark.parametrize("most", [0, 100, 1000, 3000])
def test_a_file_that_cannot_grow_is_named_and_the_build_goes_on(most, files, byte_tokenizer, chunk_bytes, tmp_path):
    chunk_bytes(1500)
    whole = build_store(tmp_path / "whole", byte_tokenizer, [corpus(files), chat(files)])
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))  # Python ignores the signal; a write fails with EFBIG
    try:
        with pytest.raises(OSError, match="File too large"):
            build_store(tmp_path / "store", byte_tokenizer, [corpus(files), chat(files)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not (tmp_path / "store").exists()
    build_store(tmp_path / "store", byte_tokenizer, [corpus(files), chat(files)])
    assert contents(tmp_path / "store") == contents(tmp_path / "whole")
    assert whole.directory.exists()


def test_a_source_that_changed_before_the_build_went_on_is_read_anew(files, byte_tokenizer, chunk_bytes, tmp_path, monkeypatch):
    chunk_bytes(1500)
    with monkeypatch.context() as patch:
        patch.setattr(build._Build, "finish", lambda *arguments: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            build_store(tmp_path / "store", byte_tokenizer, [corpus(files)])
    assert list((tmp_path / "store.partial").glob("*.bin"))
    write_jsonl(files / "a.jsonl", [{**document, "text": document["text"].upper()} for document in DOCUMENTS[:50]])
    store = build_store(tmp_path / "store", byte_tokenizer, [corpus(files)])
    fresh = build_store(tmp_path / "fresh", byte_tokenizer, [corpus(files)])
    assert contents(store.directory) == contents(fresh.directory)


@pytest.mark.parametrize("how", ["longer", "replaced", "gone"])
def test_a_source_that_changes_while_it_is_read_is_refused(how, files, byte_tokenizer, tmp_path):
    target = files / "b.jsonl"

    def change(done: int, total: int) -> None:
        if done == 0:
            text = target.read_text()
            target.unlink()
            if how != "gone":
                target.write_text(text + text if how == "longer" else text.replace("kaixo", "agur!"))

    with pytest.raises((LatxaError, OSError), match=r"b\.jsonl"):
        build_store(tmp_path / "store", byte_tokenizer, [corpus(files)], progress=change)
    assert not (tmp_path / "store").exists()


BAD = {
    "no assistant turn": ["user"],
    "after": ["user", "assistant", "system", "user", "assistant"],
    "two": ["user", "user", "assistant"],
}


def test_bad_conversations_are_named_or_counted(files, byte_tokenizer, chunk_bytes, tmp_path):
    good = build_store(tmp_path / "good", byte_tokenizer, [chat(files)])
    bad = [{"messages": [{"role": role, "content": "Kaixo"} for role in roles]} for roles in BAD.values()]
    chunk_bytes(1500)
    for each in bad:
        write_jsonl(files / "chat.jsonl", [*CONVERSATIONS[:20], each, *CONVERSATIONS[20:]])
        with pytest.raises(LatxaError) as error:
            build_store(tmp_path / "store", byte_tokenizer, [chat(files)])
        assert str(error.value).startswith(f"{files / 'chat.jsonl'}:21: ")
    write_jsonl(files / "chat.jsonl", [*bad[:2], *CONVERSATIONS, bad[2]])
    store = build_store(tmp_path / "store", byte_tokenizer, [chat(files)], skip_errors=True)
    assert store.manifest["skipped"] == len((store.directory / "skipped.txt").read_text().splitlines()) == 3
    assert list(store.documents()) == list(good.documents())


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.zst"])
def test_a_document_of_200_megabytes_is_named_or_counted(suffix, byte_tokenizer, tmp_path):
    import zstandard

    path = tmp_path / f"a{suffix}"
    data = b'{"text": "bat"}\n{"text": "' + b"kaixo mundua " * ((200 << 20) // 13) + b'"}\n{"text": "hiru"}\n'
    path.write_bytes(zstandard.compress(data) if suffix.endswith("zst") else data)
    with pytest.raises(LatxaError, match="the line is longer than 64 MB") as error:
        build_store(tmp_path / "store", byte_tokenizer, [find("eu", [str(path)])])
    assert str(error.value).startswith(f"{path}:2: ")
    assert not list(tmp_path.glob("store*"))
    store = build_store(tmp_path / "store", byte_tokenizer, [find("eu", [str(path)])], skip_errors=True)
    assert [len(ids) for _, ids, _ in store.documents()] == [4, 5]
    assert (store.directory / "skipped.txt").read_text().startswith(f"{path}:byte 16: the line is longer than 64 MB")
