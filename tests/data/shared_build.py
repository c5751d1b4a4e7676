"""Builds the sample sources in N processes at once, a share each. Run by test_shares: OUT TOKENIZER FILES N [KILLED].

The process of share KILLED dies of SIGKILL when its second shard's files are there and its summary is not. Prints the shares
that made the store.
"""

import os
import signal
import sys
from pathlib import Path

from latxa_megatron.data import shards
from latxa_megatron.data import sources as src
from latxa_megatron.data.build import build_share
from latxa_megatron.data.shares import Share
from tests.data.killed_build import CHUNK_BYTES
from tests.data.samples import chat, corpus


def die_at_the_second_summary() -> None:
    write, seen = shards.write_json, []

    def dying(path: Path, value: object) -> None:
        seen.append(path)
        if len(seen) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        write(path, value)

    shards.write_json = dying


def main(out: Path, tokenizer: Path, files: Path, of: int, killed: int | None) -> None:
    src.CHUNK_BYTES = CHUNK_BYTES
    src.chunks.__defaults__ = (CHUNK_BYTES,)
    import transformers  # noqa: F401  (once, and not in each child)

    children = {}
    for number in range(of):
        child = os.fork()
        if child == 0:
            if number == killed:
                die_at_the_second_summary()
            store = build_share(out, tokenizer, [corpus(files), chat(files)], Share(number, of))
            os._exit(10 if store else 0)
        children[child] = number
    for _ in range(of):
        child, status = os.wait()
        number = children[child]
        if (number == killed) != os.WIFSIGNALED(status) or (number != killed and os.WEXITSTATUS(status) not in (0, 10)):
            sys.exit(f"share {number} ended with {status}")
        if os.WIFEXITED(status) and os.WEXITSTATUS(status) == 10:
            print(number)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]), int(sys.argv[4]), int(sys.argv[5]) if len(sys.argv) > 5 else None)
