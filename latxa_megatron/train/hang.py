"""A step that does not end: every rank writes down where it stands, and rank 0 says which ranks stand where.

Ranks that wait for another in a collective operation all stand in it; the one that they wait for stands elsewhere. A GPU's
operations go on beside the program, so those that have not ended are written down too.
"""

import contextlib
import faulthandler
import os
import re
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch.distributed as dist

from latxa_megatron.train.collectives import unfinished

GRACE = 10.0
"""Seconds in which all ranks write their files, before rank 0 reads them; and again until all ranks end."""

_NOT_ENDED = "not ended: "
_FRAME = re.compile(r'  File "(.+)", line (\d+) in (\S+)')


class HangWatch:
    """While the block runs: where beat() was not called for so long, out/hung/ tells why and the process ends with status 1.

    tell: called by each beat(), for a watch outside of this process.
    """

    def __init__(self, out: Path, minutes: float | None, tell: Callable[[], None]) -> None:
        self._directory = out / "hung"
        self._tell = tell
        self._seconds = None if minutes is None else minutes * 60
        self._rank, self._ranks = dist.get_rank(), dist.get_world_size()
        self._deadline = self._noted = float("inf")
        self._over = threading.Event()
        self._timer = threading.Lock()
        """Held by who sets faulthandler's timer, which is one for the process."""

    def __enter__(self) -> "HangWatch":
        if self._seconds is not None:
            self._directory.mkdir(parents=True, exist_ok=True)
            self._file = rank_file(self._directory, self._rank).open("a", encoding="utf-8")
            threading.Thread(target=self._watch, name="hang watch", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._seconds is not None:
            with self._timer:
                self._over.set()
                faulthandler.cancel_dump_traceback_later()
                self._file.close()
            with contextlib.suppress(OSError):  # stacks of an earlier start stay, with their directory
                if not Path(self._file.name).stat().st_size:
                    Path(self._file.name).unlink()
                self._directory.rmdir()

    def beat(self) -> None:
        """Say that the run goes on; called at the beginning of each step, validation and save."""
        if self._seconds is not None:
            with self._timer:
                faulthandler.dump_traceback_later(self._seconds, file=self._file)  # needs no lock that a stuck thread may hold
                self._deadline = time.monotonic() + self._seconds
        self._tell()

    def _watch(self) -> None:
        while not self._over.wait(1.0):
            late = time.monotonic() - self._deadline
            if late > 1 and self._rank != 0 and self._noted != self._deadline:
                self._note()
            if late > GRACE and self._rank == 0:
                self._report()  # in case that CUDA does not answer
                self._note()
                print(self._report(), file=sys.stderr, flush=True)
                os._exit(1)
            if late > 2 * GRACE:
                os._exit(1)

    def _report(self) -> str:
        text = report(self._directory, self._ranks)
        with contextlib.suppress(OSError):  # a full disk
            (self._directory / "report.txt").write_text(text, encoding="utf-8")
        return text

    def _note(self) -> None:
        """Write what has not ended below the stacks, once, unless the run went on meanwhile."""
        with self._timer:
            if self._over.is_set() or time.monotonic() < self._deadline:
                return
            faulthandler.dump_traceback_later(3 * GRACE, exit=True, file=self._file)  # if CUDA does not answer, no thread goes on
            self._noted = self._deadline
            with contextlib.suppress(OSError):
                for words in unfinished():
                    self._file.write(f"{_NOT_ENDED}{words}\n")
                self._file.flush()
                os.fsync(self._file.fileno())  # for rank 0, on another node


def rank_file(directory: Path, rank: int) -> Path:
    return directory / f"rank_{rank:05d}.txt"


def report(directory: Path, ranks: int) -> str:
    """Where the ranks stand, by their files; the place that the fewest are at comes first."""
    places: dict[str, list[int]] = {}
    for rank in range(ranks):
        file = rank_file(directory, rank)
        places.setdefault(_place(file.read_text(encoding="utf-8") if file.exists() else ""), []).append(rank)
    lines = [f"the run hangs; the stacks of all ranks are in {directory}"]
    for place, standing in sorted(places.items(), key=lambda item: len(item[1])):
        who = "rank" if len(standing) == 1 else "ranks"
        lines.append(f"  {who} {', '.join(map(str, standing))}: {place}")
    return "\n".join(lines) + "\n"


def _place(stacks: str) -> str:
    """The innermost call of the thread that trains, and the innermost of this package's; then what has not ended."""
    newest = stacks.rpartition("Timeout (")[2]
    return "; ".join([_call(newest), *(line for line in newest.splitlines() if line.startswith(_NOT_ENDED))])


def _call(stacks: str) -> str:
    for thread in stacks.split("\n\n"):
        frames = _FRAME.findall(thread)  # innermost first
        if any(file.endswith("train/loop.py") for file, _, _ in frames):
            here = [f"{name} ({_short(file)}:{line})" for file, line, name in frames]
            ours = next(at for at, (file, _, _) in zip(here, frames, strict=True) if "latxa_megatron" in file)
            return here[0] if here[0] == ours else f"{here[0]}, called from {ours}"
    return "wrote no stack: it ended, or its machine did"


def _short(file: str) -> str:
    return "/".join(Path(file).parts[-2:])
