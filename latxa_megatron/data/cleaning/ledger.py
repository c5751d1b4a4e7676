"""All records of all tasks in columns: where each stands, and what became of it. About 60 bytes of memory for a record."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from latxa_megatron.data.cleaning.judge import Columns, Task
from latxa_megatron.data.cleaning.rules import Rule
from latxa_megatron.data.readers import opened

Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Ledger:
    """Columns with a value for each record, in input order, which gives records their numbers.

    starts: [tasks + 1], the records of task i are starts[i] to starts[i + 1]. file: an index into files.
    other, score: of a duplicate, the record that it repeats and how much of it.
    """

    tasks: Sequence[Task]
    files: list[Path]
    starts: Numbers
    file: npt.NDArray[np.int32]
    offset: Numbers
    size: Numbers
    rule: npt.NDArray[np.uint8]
    digest: npt.NDArray[np.uint64]
    other: Numbers
    score: npt.NDArray[np.float32]

    @property
    def left(self) -> npt.NDArray[np.bool_]:
        return self.rule == Rule.KEPT

    def of_task(self, column: npt.NDArray[np.generic], number: int) -> npt.NDArray[np.generic]:
        return column[self.starts[number] : self.starts[number + 1]]

    def drop(self, rule: Rule, numbers: Numbers, others: Numbers, scores: npt.NDArray[np.float64]) -> None:
        self.rule[numbers] = rule
        self.other[numbers] = others
        self.score[numbers] = scores


def ledger(tasks: Sequence[Task], columns: Sequence[Columns]) -> Ledger:
    files = list(dict.fromkeys(path for task in tasks for path in task.source.paths))
    number_of = {path: i for i, path in enumerate(files)}
    places = [np.array([number_of[path] for path in task.source.paths], np.int32) for task in tasks]
    records = sum(len(c.rule) for c in columns)
    return Ledger(
        tasks,
        files,
        np.cumsum([0, *(len(c.rule) for c in columns)]),
        np.concatenate([place[c.path] for place, c in zip(places, columns, strict=True)]),
        np.concatenate([c.offset for c in columns]),
        np.concatenate([c.size for c in columns]),
        np.concatenate([c.rule for c in columns]),
        np.concatenate([c.digest for c in columns]),
        np.full(records, -1, np.int64),
        np.zeros(records, np.float32),
    )


def exact_duplicates(of: Ledger) -> tuple[Numbers, Numbers]:
    """(records, the first record with the same text of each), of those that are left."""
    numbers = np.flatnonzero(of.left)
    digests = of.digest[numbers]
    order = np.lexsort((digests[:, 1], digests[:, 0]))  # stable: of equal ones the first in the input comes first
    ordered = digests[order]
    begins = np.concatenate([[True], (ordered[1:] != ordered[:-1]).any(axis=1)]) if len(order) else np.empty(0, bool)
    firsts = order[np.flatnonzero(begins)[np.cumsum(begins) - 1]] if len(order) else order
    return numbers[order[~begins]], numbers[firsts[~begins]]


def line_numbers(path: Path, offsets: Numbers) -> Numbers:
    """Numbers, from 1, of the lines that begin at these ascending offsets of a file, decompressed."""
    found = np.empty(len(offsets), np.int64)
    at, base, line = 0, 0, 1
    with opened(path) as file:
        while at < len(offsets) and (block := file.read(1 << 20)):
            ends = np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n")) + base
            base += len(block)
            until = int(np.searchsorted(offsets, base))
            found[at:until] = line + np.searchsorted(ends, offsets[at:until])
            at, line = until, line + len(ends)
    return found
