"""One build by several processes, on one machine or on many with one file system: each does its share of the tasks.

Those at work hold a shared lock on the build's directory, and each one on its own share; who clears the directory or makes a
store of it holds it alone. The file system must have locks (flock) that hold between machines, as NFS 4, GPFS and Lustre with
the mount option flock do. Where they fail, shards are still whole: each is written aside and moved into place.
"""

import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from latxa_megatron.data.shards import WORK, Task
from latxa_megatron.errors import LatxaError
from latxa_megatron.files import InUse, locked, write_atomically

_START_SECONDS = 300
"""How long a share waits for another one that is starting or finishing the store."""


@dataclass(frozen=True)
class Share:
    """Every `of`-th task, from task `number` on; number is from 0 to of - 1."""

    number: int
    of: int

    @classmethod
    def parse(cls, text: str) -> "Share":
        """A share as the command line has it: "3/16" is the fourth of 16. Raises LatxaError for what is none."""
        found = re.fullmatch(r"(\d+)/(\d+)", text)
        if not found or int(found[1]) >= int(found[2]):
            raise LatxaError(f"--shard {text}: has the form I/N, with I from 0 to N - 1, as in 0/16 ... 15/16")
        return cls(int(found[1]), int(found[2]))

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    def tasks(self, tasks: list[Task]) -> list[Task]:
        return tasks[self.number :: self.of]


@contextmanager
def joined(partial: Path, share: Share, start: Callable[[], None]) -> Iterator[None]:
    """Be one of those who build in `partial`; start() is called first where no other one is at work.

    Raises LatxaError where another process does this share, or where the others' shares are not of the same number.
    """
    partial.mkdir(parents=True, exist_ok=True)
    work = partial / WORK
    count = work / "shares"
    with suppress(InUse), locked(partial, "building this store"):
        start()
        shutil.rmtree(work, ignore_errors=True)  # what killed ones left
        work.mkdir()
        write_atomically(count, str(share.of))
    with locked(partial, "starting or finishing this store", _START_SECONDS, shared=True):
        if count.is_file() and (others := count.read_text()) != str(share.of):
            raise LatxaError(f"--shard {share}: the other processes that build this store do shares of {others}; do the same")
        lock = work / f"{share.number}.lock"
        if work.is_dir():
            lock.touch()
            with locked(lock, f"doing share {share} of this store"):
                yield
        else:  # the store was finished, or given up, between the two locks
            yield
