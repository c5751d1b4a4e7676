"""starts.jsonl of a run directory: a line when a start of the run begins its steps, and a line when that start ends.

`latxa launch status` reads them, and a job that has to know whether to start the run again.
"""

import socket
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from latxa_megatron import launcher
from latxa_megatron.errors import LatxaError
from latxa_megatron.files import append_json_line, read_json_lines

FILE = "starts.jsonl"


class Start:
    """One start of a run. While the block runs, began() and ended() say how it goes, and an exception how it failed.

    write: on one rank only; the others say the same and write nothing. A start that is killed has no line of its end.
    """

    def __init__(self, out: Path, ranks: int, *, write: bool) -> None:
        self._file, self._ranks, self._writes = out / FILE, ranks, write
        self._how = "crash"

    def __enter__(self) -> "Start":
        return self

    def began(self, step: int, steps: int) -> None:
        """The run is set up: `step` of its `steps` are done."""
        who = {"ranks": self._ranks, "host": socket.gethostname(), "job": launcher.job()}
        self._write({"event": "start", **who, "step": step, "steps": steps})

    def ended(self, *, finished: bool) -> None:
        """The last step is done, or a signal asked for an end and there is a checkpoint."""
        self._how = "finished" if finished else "stopped"

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        line: dict[str, Any] = {"event": "end", "how": self._how}
        if error is not None:
            said = (str(error).strip() or repr(error)).splitlines()[0]
            line |= {"how": "error" if isinstance(error, LatxaError) else "crash", "error": said[:1000]}
        self._write(line)

    def _write(self, line: dict[str, Any]) -> None:
        if self._writes:
            append_json_line(self._file, {"time": round(time.time(), 1), **line})


def read_starts(out: Path) -> list[dict[str, Any]]:
    """The lines of a run directory, oldest first; empty for a run that never got so far."""
    return read_json_lines(out / FILE)
