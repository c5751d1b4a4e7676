"""Builds and packs sample sources, killed with SIGKILL at random moments. Run by test_survival: OUT TOKENIZER FILES KILLS SEED

Prints one JSON object: the SHA-256 of all files of the store and plan of a run that was left alone, how many builds were killed
where, and the different hashes of those that were started again until they ended.
"""

import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from pathlib import Path

from latxa_megatron.data import build
from latxa_megatron.data import sources as src
from latxa_megatron.data.mixture import Mix
from latxa_megatron.data.packing import pack
from tests.data.killed_build import CHUNK_BYTES
from tests.data.samples import chat, contents, corpus


def start(out: Path, tokenizer: Path, files: Path) -> int:
    """The process id of a build and a pack in a process of their own, which has loaded its tokenizer and begins to write."""
    loaded, says = os.pipe()
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            build.build_store(out / "store", tokenizer, [corpus(files), chat(files)], say=lambda line: os.close(says))
            pack(out / "plan", [Mix(out / "store", {"corpus": 2.5})], seq_length=64, seed=1)
            os._exit(0)
        os._exit(1)
    os.close(says)
    os.read(loaded, 1)  # until the other end is closed
    os.close(loaded)
    return child


def ended(child: int) -> bool:
    """Whether a process ended by itself, and not by SIGKILL. Any other end is a fault."""
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return False
    if status:
        sys.exit(f"a build ended with {status}")
    return True


def finished_hash(out: Path) -> str:
    assert sorted(path.name for path in out.iterdir()) == ["plan", "store"]
    return hashlib.sha256(repr(sorted(contents(out).items())).encode()).hexdigest()


def stage(out: Path) -> str:
    """How far a killed run had come."""
    for name in ("plan", "plan.partial", "store"):
        if (out / name).exists():
            return name
    left = list((out / "store.partial").glob("*")) if (out / "store.partial").exists() else []
    return "store.partial with shards" if any(path.suffix == ".bin" for path in left) else "before the first shard"


def main(out: Path, tokenizer: Path, files: Path, kills: int, seed: int) -> None:
    import transformers  # noqa: F401  (once, and not in each child)

    src.CHUNK_BYTES = CHUNK_BYTES
    src.chunks.__defaults__ = (CHUNK_BYTES,)
    draw = random.Random(seed)
    out.mkdir()
    child = start(out, tokenizer, files)
    began = time.monotonic()
    assert ended(child)
    seconds = time.monotonic() - began
    alone = finished_hash(out)
    stages: Counter[str] = Counter()
    hashes = set()
    while stages.total() < kills:
        shutil.rmtree(out)
        out.mkdir()
        while True:  # the same command again and again, until it ends; one in three is killed more than once
            child = start(out, tokenizer, files)
            if stages.total() < kills and draw.random() < 0.7:
                time.sleep(draw.uniform(0, seconds))
                os.kill(child, signal.SIGKILL)
            if ended(child):
                break
            stages[stage(out)] += 1
        hashes.add(finished_hash(out))
    json.dump({"alone": alone, "stages": stages, "hashes": sorted(hashes)}, sys.stdout)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]), *map(int, sys.argv[4:]))
