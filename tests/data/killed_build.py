"""Builds the sample sources and dies of SIGKILL on the way. Run by test_build_killed: OUT TOKENIZER FILES PLACE...

Each PLACE is a build of its own, in OUT/PLACE, in a process of its own. "workers" is a build with two worker processes,
in this process, which dies when a first shard is done.
"""

import os
import signal
import sys
from pathlib import Path

from latxa_megatron.data import build, shards
from latxa_megatron.data import sources as src
from tests.data.samples import chat, corpus

CHUNK_BYTES = 1500


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_in_a_shard() -> None:
    add = shards._add_documents

    def dying(writer, tokenizer, task, records, skipped):
        add(writer, tokenizer, task, records[:3] if task.prefix.name == "00002" else records, skipped)
        if task.prefix.name == "00002":
            die()

    shards._add_documents = dying


def die_before(name: str) -> None:
    for module in (build, shards):
        write = module.write_json
        module.write_json = lambda path, value, write=write: die() if path.name == name else write(path, value)


def die_before_the_rename() -> None:
    build.move_into_place = lambda partial, final: die()


def progress_dies(done: int, total: int) -> None:
    if done:
        die()


PLACES = {
    "in-a-shard": die_in_a_shard,
    "after-a-shards-files": lambda: die_before("00002.json"),
    "before-the-manifest": lambda: die_before("manifest.json"),
    "before-the-rename": die_before_the_rename,
}


def main(out: Path, tokenizer: Path, files: Path, places: list[str]) -> None:
    src.CHUNK_BYTES = CHUNK_BYTES
    src.chunks.__defaults__ = (CHUNK_BYTES,)
    sources = [corpus(files), chat(files)]
    if places == ["workers"]:
        build.build_store(out / "workers", tokenizer, sources, workers=2, progress=progress_dies)
    import transformers  # noqa: F401  (once, and not in each child)

    for place in places:
        child = os.fork()
        if child == 0:
            if place in PLACES:
                PLACES[place]()
            build.build_store(out / place, tokenizer, sources, progress=progress_dies if place == "between-shards" else print)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status) or os.WTERMSIG(status) != signal.SIGKILL:
            sys.exit(f"{place}: the build was over before it was killed ({status})")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]), sys.argv[4:])
