"""The second reading: kept lines as they are into compressed files, and for every other record a line that says why."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import orjson
import zstandard

from latxa_megatron.data.cleaning.judge import Task, records
from latxa_megatron.data.cleaning.ledger import Ledger, Numbers
from latxa_megatron.data.cleaning.rules import Rule, Rules
from latxa_megatron.data.records import Record
from latxa_megatron.errors import LatxaError

_LEVEL = 3


@dataclass(frozen=True)
class Output:
    """What became of the records of a task, and what to write of it.

    others: where each duplicate's original stands, as (source, file, line). lines: of each record.
    """

    task: Task
    rules: Rules
    file: Path
    rule: npt.NDArray[np.uint8]
    path: list[str]
    lines: Numbers
    others: dict[int, tuple[str, str, int]]
    score: npt.NDArray[np.float32]


def outputs(of: Ledger, rules: Rules, directory: Path, lines: Numbers) -> list[Output]:
    """One for each task; a source's files are NAME-00000.jsonl.zst and so on. lines: of all records."""
    found: list[Output] = []
    source_of = [task.source.name for task in of.tasks]
    part: dict[str, int] = {}
    for i, task in enumerate(of.tasks):
        here = slice(int(of.starts[i]), int(of.starts[i + 1]))
        others = {}
        for k in np.flatnonzero(of.other[here] >= 0).tolist():
            other = int(of.other[here][k])
            source = source_of[int(np.searchsorted(of.starts, other, side="right")) - 1]
            others[k] = (source, str(of.files[of.file[other]]), int(lines[other]))
        name = f"{task.source.name}-{part.setdefault(task.source.name, 0):05d}.jsonl.zst"
        part[task.source.name] += 1
        paths = [str(of.files[k]) for k in of.file[here]]
        found.append(Output(task, rules, directory / name, of.rule[here], paths, lines[here], others, of.score[here]))
    return found


def write(output: Output) -> None:
    """Write the file of kept lines, and `.dropped` in the scratch directory. Raises LatxaError where the source has changed."""
    task, compressor = output.task, zstandard.ZstdCompressor(_LEVEL)
    count = 0
    with (
        output.file.open("wb") as file,
        compressor.stream_writer(file, closefd=False) as kept,
        task.file("dropped").open("wb") as dropped,
        task.file("why").open("rb") as why,
    ):
        for i, record in enumerate(records(task, output.rules)):
            count += 1
            if i >= len(output.rule):
                break
            if output.rule[i] != Rule.KEPT:
                dropped.write(orjson.dumps(_told(output, i, record, why)) + b"\n")
            elif isinstance(record, Record):
                kept.write(record.line if record.line.endswith(b"\n") else record.line + b"\n")
    if count != len(output.rule):
        raise LatxaError(f"{task.chunks[0].path}: has changed while it was read; start again")


def _told(output: Output, i: int, record: Any, why: BinaryIO) -> dict[str, Any]:
    rule = Rule(int(output.rule[i]))
    told: dict[str, Any] = {"source": output.task.source.name, "file": output.path[i], "line": int(output.lines[i])}
    if isinstance(record, Record) and record.own_id is not None:
        told["id"] = record.own_id
    told["rule"] = rule.label
    if i in output.others:
        source, file, line = output.others[i]
        return told | {"of": {"source": source, "file": file, "line": line}, "score": round(float(output.score[i]), 4)}
    return told | orjson.loads(why.readline())
