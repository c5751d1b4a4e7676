"""A build that was killed, wherever that was, is started again and ends with the bytes of one that was not."""

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from latxa_megatron.data.build import build_store
from tests.data.killed_build import CHUNK_BYTES
from tests.data.samples import DOCUMENTS, chat, contents, corpus, write_sources

PLACES = ["in-a-shard", "after-a-shards-files", "between-shards", "before-the-manifest", "before-the-rename"]


def command(root: Path, tokenizer: Path, *places: str) -> list[str]:
    return [sys.executable, "-m", "tests.data.killed_build", *map(str, (root, tokenizer, root / "sources")), *places]


@pytest.fixture(scope="module")
def root(tmp_path_factory, byte_tokenizer) -> Path:
    """The sources, and beside them PLACE.partial, what was left of a build killed at each place."""
    root = tmp_path_factory.mktemp("killed")
    write_sources(root / "sources")
    subprocess.run(command(root, byte_tokenizer, *PLACES), check=True, stdout=subprocess.DEVNULL)
    return root


@pytest.mark.parametrize("place", PLACES)
def test_killed_and_started_again_has_the_same_bytes(place, root, byte_tokenizer, chunk_bytes, tmp_path):
    chunk_bytes(CHUNK_BYTES)
    sources = [corpus(root / "sources"), chat(root / "sources")]
    whole = build_store(tmp_path / "whole", byte_tokenizer, sources)
    assert len(whole.shard_infos) > 4
    assert not (root / place).exists()
    left = contents(root / f"{place}.partial")
    if place != "in-a-shard":
        assert any(name.endswith(".bin") for name in left)
    shutil.copytree(root / f"{place}.partial", tmp_path / "cut.partial")
    store = build_store(tmp_path / "cut", byte_tokenizer, sources)
    assert store.fingerprint == whole.fingerprint
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")
    assert not (tmp_path / "cut.partial").exists()


def test_shards_that_were_done_are_not_written_again(root, byte_tokenizer, chunk_bytes, tmp_path):
    chunk_bytes(CHUNK_BYTES)
    shutil.copytree(root / "before-the-manifest.partial", tmp_path / "cut.partial")
    before = {path.name: path.stat().st_ino for path in (tmp_path / "cut.partial").glob("*.bin")}
    build_store(tmp_path / "cut", byte_tokenizer, [corpus(root / "sources"), chat(root / "sources")])
    assert {path.name: path.stat().st_ino for path in (tmp_path / "cut").glob("*.bin")} == before


def test_what_a_killed_build_of_other_inputs_left_is_not_used(root, byte_tokenizer, chunk_bytes, tmp_path):
    chunk_bytes(CHUNK_BYTES)
    partial = tmp_path / "store.partial"
    partial.mkdir()
    (partial / "inputs").write_text("of another build")
    wrong = {"name": "00000", "source": "corpus", "documents": 1, "tokens": 1, "trained_tokens": 1, "sha256": {}}
    (partial / "00000.json").write_text(json.dumps([{"info": wrong, "skipped": []}]))
    store = build_store(tmp_path / "store", byte_tokenizer, [corpus(root / "sources")])
    assert len(list(store.documents())) == len(DOCUMENTS)


def test_workers_do_not_outlive_a_killed_build(byte_tokenizer, tmp_path):
    write_sources(tmp_path / "sources")
    build = subprocess.Popen(command(tmp_path, byte_tokenizer, "workers"), stdout=subprocess.PIPE, start_new_session=True)
    try:
        assert build.wait() == -signal.SIGKILL
        # The workers hold the other end of the pipe: it ends when the last of them does.
        ended, _, _ = select.select([build.stdout], [], [], 5)
        assert ended
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(build.pid, signal.SIGKILL)
        build.stdout.close()
