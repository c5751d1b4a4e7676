"""Near duplicates: of the candidates that share a bucket, those whose exact Jaccard index reaches the threshold.

A text is dropped where an earlier one that is kept has at least the threshold of its 5-grams in common (as sets). So what is
dropped is always like something that stays, and chains (a like b, b like c) do not drop c for a.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt

from latxa_megatron.data.cleaning.judge import Task, records
from latxa_megatron.data.cleaning.rules import Rules, text_of
from latxa_megatron.data.cleaning.words import words
from latxa_megatron.data.records import Record

Numbers = npt.NDArray[np.int64]

_COMPARED = 100
"""Kept texts of one group with which a text is compared, the first ones; it bounds the cost of groups of unlike texts."""


@dataclass(frozen=True)
class Groups:
    """Texts that share a bucket: members[i] is in group[i], both numbers; sorted by member."""

    members: Numbers
    group: Numbers

    @property
    def candidates(self) -> Numbers:
        return np.unique(self.members)


def groups(pairs: Sequence[npt.NDArray[np.uint32]], numbers: Sequence[Numbers], left: npt.NDArray[np.bool_]) -> Groups:
    """The groups of each bucket's pairs, of which one begins where the one before ended while they are of one group.

    numbers: of each task, the numbers of its texts among all records. left: by that number, whether a record is still there.
    """
    members, group = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    first = 0
    for some in pairs:
        if not len(some):
            continue
        a, b = _numbers(some[:, :2], numbers), _numbers(some[:, 2:], numbers)
        begins = np.concatenate([[True], a[1:] != b[:-1]])
        label = first + np.cumsum(begins) - 1
        members += [a[begins], b]
        group += [label[begins], label]
        first = int(label[-1]) + 1
    all_members, all_groups = np.concatenate(members), np.concatenate(group)
    stay = left[all_members]
    all_members, all_groups = all_members[stay], all_groups[stay]
    shared = np.bincount(all_groups, minlength=1)[all_groups] > 1
    all_members, all_groups = all_members[shared], all_groups[shared]
    order = np.lexsort((all_groups, all_members))
    return Groups(all_members[order], all_groups[order])


def _numbers(of_task: npt.NDArray[np.uint32], numbers: Sequence[Numbers]) -> Numbers:
    found = np.empty(len(of_task), np.int64)
    for task in np.unique(of_task[:, 0]):
        where = of_task[:, 0] == task
        found[where] = numbers[task][of_task[where, 1]]
    return found


@dataclass(frozen=True)
class Candidates:
    """The records of a task that are compared, by their number in it, ascending."""

    task: Task
    rules: Rules
    wanted: Numbers


def write_shingles(candidates: Candidates) -> None:
    """Write the set of shingles of each candidate, sorted, end to end (.shingles), and where each ends (.ends.npy)."""
    from latxa_megatron.data.cleaning.signatures import shingles

    task, ends, end = candidates.task, [], 0
    wanted = iter(candidates.wanted.tolist())
    following = next(wanted, None)
    with task.file("shingles").open("wb") as file:
        for i, record in enumerate(records(task, candidates.rules)):
            if following is None:
                break
            if i == following and isinstance(record, Record):
                some = np.unique(shingles(words(text_of(record))))
                some.tofile(file)
                end += len(some)
                ends.append(end)
                following = next(wanted, None)
    np.save(task.file("ends.npy"), np.array(ends, np.int64))


class ShingleSets:
    """The sets that write_shingles wrote, by the number of the record; memory maps."""

    def __init__(self, tasks: Sequence[Task], candidates: Sequence[Numbers]) -> None:
        """candidates: of each task, those of its records by their number among all records, ascending."""
        self._places: dict[int, tuple[npt.NDArray[np.uint64], int, int]] = {}
        for task, numbers in zip(tasks, candidates, strict=True):
            if len(numbers):
                values = _mapped(task.file("shingles"))
                ends = np.load(task.file("ends.npy")).tolist()
                for number, start, end in zip(numbers.tolist(), [0, *ends], ends, strict=False):
                    self._places[number] = values, start, end

    def __getitem__(self, number: int) -> npt.NDArray[np.uint64]:
        values, start, end = self._places[number]
        return values[start:end]


def _mapped(path: Path) -> npt.NDArray[np.uint64]:
    return np.memmap(path, np.uint64, "r")


def jaccard(a: npt.NDArray[np.uint64], b: npt.NDArray[np.uint64]) -> float:
    """Of two sorted sets: what they have in common, as a share of all that is in either."""
    common = len(np.intersect1d(a, b, assume_unique=True))
    return common / (len(a) + len(b) - common)


def near_duplicates(found: Groups, sets: ShingleSets, threshold: float) -> dict[int, tuple[int, float]]:
    """Of each record that is dropped, the first kept one that it is like, and their Jaccard index."""
    kept: dict[int, list[int]] = defaultdict(list)
    dropped: dict[int, tuple[int, float]] = {}
    bounds = np.flatnonzero(np.diff(found.members, prepend=-1, append=-1))
    for start, end in pairwise(bounds):
        number, of_groups = int(found.members[start]), found.group[start:end].tolist()
        own = sets[number]
        for other in sorted({other for group in of_groups for other in kept[group]}):
            theirs = sets[other]
            if min(len(own), len(theirs)) < threshold * max(len(own), len(theirs)):
                continue  # the index is at most the quotient of the sizes
            if (score := jaccard(own, theirs)) >= threshold:
                dropped[number] = other, score
                break
        else:
            for group in of_groups:
                if len(kept[group]) < _COMPARED:
                    kept[group].append(number)
    return dropped
