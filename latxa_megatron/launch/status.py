"""`latxa launch status`: how a run does, from its files alone: starts.jsonl, metrics.jsonl, checkpoints/, hung/."""

from collections import Counter
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from latxa_megatron.config import load_run
from latxa_megatron.errors import LatxaError
from latxa_megatron.files import InUse, locked, read_json_lines
from latxa_megatron.starts import read_starts

METRICS = "metrics.jsonl"
RECENT = 100
"""The steps that the speed is the mean of, at most; of the newest start alone."""
LOG_END = 1 << 16
"""Bytes at the end of a log that are read."""
FRESH = 120.0
"""Seconds since the last step in which a run is taken to be alive where its lock is not seen, as from another machine."""


@dataclass(frozen=True)
class Status:
    """state: "not begun", "starting", "running", "finished", "stopped", "error", "crash" or "killed".

    reason: what it said itself.
    steps: None where it is not known. each: seconds a step, with what is between steps; None before the first one.
    lines: the recent lines of metrics.jsonl. before: how earlier starts ended.
    idle: starts of a Slurm job in a row that saved nothing. log: the newest one.
    """

    out: Path
    state: str
    reason: str
    step: int
    steps: int | None
    each: float | None
    lines: list[dict[str, Any]]
    start: dict[str, Any] | None
    before: Counter[str]
    faults: Counter[str]
    saved: str | None
    idle: int
    log: Path | None

    @property
    def left(self) -> float | None:
        """Seconds until the run is done, at the speed of its recent steps."""
        known = self.each is not None and self.steps is not None
        return self.each * (self.steps - self.step) if known else None  # type: ignore[operator]


def status(run: Path, overrides: list[str] | None, now: float) -> Status:
    """The status of a run, by its run file or its directory, at a time in seconds since 1970.

    Raises LatxaError for what is neither.
    """
    steps = None
    if run.is_dir():
        out = run
        if not any((out / name).exists() for name in ("starts.jsonl", METRICS, "slurm", "checkpoints")):
            raise LatxaError(f"{out}: is not the directory of a run; it has neither starts.jsonl nor {METRICS}")
    else:
        config = load_run(run, overrides)
        out, steps = config.out, config.train.steps
    events, metrics = read_starts(out), read_json_lines(out / METRICS)
    begun = [event for event in events if event["event"] == "start"]
    start = begun[-1] if begun else None
    lines = [line for line in metrics if start is None or line["step"] > start["step"]][-RECENT:]
    each = sum(line["seconds"] + line["pause"] for line in lines) / len(lines) if lines else None
    state, reason = _state(out, events, each, now)
    tracker = out / "checkpoints" / "latest_checkpointed_iteration.txt"
    logs = sorted((out / "slurm").glob("*.log"), key=lambda path: path.stat().st_mtime)
    return Status(
        out=out,
        state=state,
        reason=reason,
        step=metrics[-1]["step"] if metrics else 0,
        steps=start["steps"] if start else steps,
        each=each,
        lines=lines,
        start=start,
        before=_ends(events if state == "starting" else _past(events)),
        faults=Counter(line["fault"]["action"] for line in metrics if "fault" in line),
        saved=tracker.read_text(encoding="utf-8").strip() if tracker.is_file() else None,
        idle=len((out / "slurm" / "idle").read_text().split()) if (out / "slurm" / "idle").exists() else 0,
        log=logs[-1] if logs else None,
    )


def _state(out: Path, events: list[dict[str, Any]], each: float | None, now: float) -> tuple[str, str]:
    at_work = _locked(out)
    last = events[-1] if events else None
    if last is None or (last["event"] == "end" and at_work):
        return ("starting", "") if at_work else ("not begun", "")
    if last["event"] == "end":
        return last["how"], last.get("error", "")
    file = out / METRICS
    seen = max(last["time"], file.stat().st_mtime if file.exists() else 0.0)
    if at_work or now - seen < max(FRESH, 5 * (each or 0.0)):
        return "running", ""
    hung = out / "hung" / "report.txt"
    return "killed", f"it hung, see {hung}" if hung.exists() and hung.stat().st_mtime >= last["time"] else ""


def _locked(out: Path) -> bool:
    """Whether a process of this machine, or of one whose locks are seen here, trains the run."""
    try:
        with locked(out, "", shared=True):
            return False
    except InUse:
        return True
    except OSError:  # there is no directory yet, or a file system without locks
        return False


def _past(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The lines without those of the newest start; one that could not be set up has only an end."""
    past = events[:-1] if events and events[-1]["event"] == "end" else events
    return past[:-1] if past and past[-1]["event"] == "start" else past


def _ends(events: list[dict[str, Any]]) -> Counter[str]:
    """How starts ended; one that is followed by another start without an end was killed."""
    found: Counter[str] = Counter()
    open_start = False
    for event in events:
        if event["event"] == "end":
            found[event["how"]] += 1
        elif open_start:
            found["killed"] += 1
        open_start = event["event"] == "start"
    found["killed"] += open_start
    return +found


_SAID = {
    "not begun": "has not begun",
    "starting": "is starting",
    "finished": "is finished",
    "stopped": "was asked to stop, and saved; the same command goes on",
    "error": "ended with an error",
    "crash": "crashed; the same command goes on from the last checkpoint",
    "killed": "ended without a word: it was killed, or its machine failed; the same command goes on from the last checkpoint",
}


def describe(found: Status, now: datetime) -> list[str]:
    """A status as lines for a person."""
    start, alive = found.start, found.state in ("running", "starting")
    if found.state == "running" and start:
        job = f", job {start['job']}" if start["job"] else ""
        lines = [f"{found.out}: is running: {start['ranks']} ranks, rank 0 on {start['host']}{job}, since {_at(start['time'])}"]
    else:
        lines = [f"{found.out}: {_SAID[found.state]}"]
    if found.reason:
        lines.append(f"it said: {found.reason}" if found.state in ("error", "crash") else found.reason)
    if found.lines or found.step:
        share = f" of {found.steps:,} ({found.step / found.steps:.1%})" if found.steps else ""
        loss = found.lines[-1]["loss"] if found.lines else None
        lines.append(f"step {found.step:,}{share}" + (f", loss {loss:.4f}" if loss is not None else ""))
    if found.each is not None:
        lines.append(_speed(found.lines, found.each))
    if alive and found.left is not None:
        left = timedelta(seconds=round(found.left))
        lines.append(f"left {left}, until {now + left:%Y-%m-%d %H:%M} if nothing stops it")
    if found.saved:
        lines.append(f"checkpoint after step {int(found.saved):,}")
    if found.before:
        ends = ", ".join(f"{count} {how}" for how, count in sorted(found.before.items()))
        lines.append(f"started {found.before.total() + 1} times; earlier starts: {ends}")
    if found.idle > 1:
        lines.append(f"starts of its job in a row that saved nothing: {found.idle}")
    if found.faults:
        lines.append("steps with a fault: " + ", ".join(f"{count} {action}" for action, count in sorted(found.faults.items())))
    if found.log and found.state != "finished":
        lines.append(f"log {found.log}{_job_said(found.log)}")
    return lines


def _job_said(log: Path) -> str:
    """What the job's script, not the run, said last: where it began, or how the run ended."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - LOG_END))
        said = [line for line in file.read().decode(errors="replace").splitlines() if line.startswith("latxa: ")]
    return f", whose job said: {said[-1].removeprefix('latxa: ')}" if said else ""


def _speed(lines: list[dict[str, Any]], each: float) -> str:
    def mean(key: str) -> float:
        return sum(line[key] for line in lines) / len(lines)

    ranks = round(lines[-1]["positions_per_second"] / lines[-1]["positions_per_second_per_rank"])
    rate = mean("positions") / each
    return (
        f"{each:.3g} s a step, {rate:,.0f} tokens/s, {rate / ranks:,.0f} a rank, "
        f"{mean('model_tflops_per_rank'):.3g} TFLOP/s a rank in its steps (mean of the last {len(lines)})"
    )


def _at(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds):%Y-%m-%d %H:%M}"
