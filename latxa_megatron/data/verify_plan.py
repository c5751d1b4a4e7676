"""What can be wrong inside a pack plan whose files have the right lengths: its passes, its rows and its slices.

Rows are read in blocks of about a million slices, so that a plan of any size costs some 100 MB.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from latxa_megatron.data.plan import PackPlan
from latxa_megatron.data.store import TokenStore

_SLICES = 1 << 20
"""Slices looked at once."""


def pass_faults(plan: PackPlan) -> list[str]:
    """Passes that leave rows out, or share some of another's rows but not all."""
    faults = []
    rows = 0
    known: set[tuple[int, int]] = set()
    for number, p in enumerate(plan.manifest["passes"]):
        place = (p["first_row"], p["rows"])
        if p["first_row"] == rows and p["rows"] > 0:
            rows += p["rows"]
        elif place not in known:
            faults.append(f"pass {number} has {p['rows']} rows from row {p['first_row']}, where no pass of this length begins")
        known.add(place)
    if not faults and rows != len(plan.row_offsets) - 1:
        faults.append(f"its passes have {rows} rows, rows.bin has {len(plan.row_offsets) - 1}")
    return faults


def row_faults(plan: PackPlan, stores: list[TokenStore] | None) -> list[tuple[str, str]]:
    """(file, what) for rows without order and for each kind of slice that cannot be; without stores, fewer kinds are known."""
    if what := _offset_fault(plan.row_offsets, plan.seq_length):
        return [("rows.bin", what)]
    long_rows = _Count("rows", f"have more than {plan.seq_length} positions")
    outside = _Count("slices", f"have a length outside 2 ... {plan.seq_length + 1}")
    unknown = _Count("slices", "name a store, shard or document that is not there")
    overhang = _Count("slices", "name tokens past the end of their document")
    documents = _Documents(stores) if stores else None
    for first_row, last_row in _blocks(plan.row_offsets):
        offsets = plan.row_offsets[first_row : last_row + 1]
        first = int(offsets[0])
        slices = np.asarray(plan.slices[first : int(offsets[-1])])
        lengths = slices["length"].astype(np.int64)
        long_rows.add(np.add.reduceat(lengths - 1, offsets[:-1] - first) > plan.seq_length, first_row)
        outside.add((lengths < 2) | (lengths > plan.seq_length + 1), first)
        if documents:
            ends = documents.lengths(slices)
            unknown.add(ends < 0, first)
            overhang.add((ends >= 0) & (slices["start"] + lengths > ends), first)
    return [("slices.bin", str(count)) for count in (long_rows, outside, unknown, overhang) if count.n]


class _Count:
    """How many of some things are wrong in one way, and which is the first."""

    def __init__(self, things: str, what: str) -> None:
        self.n = 0
        self._things, self._what, self._first = things, what, -1

    def add(self, wrong: npt.NDArray[np.bool_], first: int) -> None:
        """Count those of the things numbered first, first + 1, ... that are wrong."""
        found = np.flatnonzero(wrong)
        if len(found) and not self.n:
            self._first = first + int(found[0])
        self.n += len(found)

    def __str__(self) -> str:
        return f"{self.n} {self._things} {self._what}, the first is number {self._first}"


def _offset_fault(offsets: npt.NDArray[np.int64], seq_length: int) -> str | None:
    if offsets[0] != 0:
        return "does not begin with 0"
    for first in range(0, len(offsets) - 1, _SLICES):
        counts = np.diff(offsets[first : first + _SLICES + 1])
        wrong = np.flatnonzero((counts < 1) | (counts > seq_length))
        if len(wrong):
            row = int(wrong[0])
            return f"row {first + row} has {int(counts[row])} slices, outside 1 ... {seq_length}"
    return None


def _blocks(offsets: npt.NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """(first row, last row + 1) of blocks of about _SLICES slices."""
    row = 0
    while row < len(offsets) - 1:
        last = int(np.searchsorted(offsets, offsets[row] + _SLICES, side="right")) - 1
        last = max(last, row + 1)
        yield row, last
        row = last


class _Documents:
    """Lengths of the stores' documents, from memory maps of their indexes."""

    def __init__(self, stores: list[TokenStore]) -> None:
        self._stores = stores
        self._lengths: dict[int, Any] = {}

    def lengths(self, slices: npt.NDArray[np.void]) -> npt.NDArray[np.int64]:
        """Tokens of each slice's document, int64 [slices]; -1 where there is no such document."""
        found = np.full(len(slices), -1, np.int64)
        places = slices["store"].astype(np.int64) << 16 | slices["shard"]
        order = np.argsort(places, kind="stable")
        shards, starts = np.unique(places[order], return_index=True)
        for place, of_shard in zip(shards.tolist(), np.split(order, starts[1:]), strict=True):
            lengths = self._of_shard(place >> 16, place & 0xFFFF)
            documents = slices["document"][of_shard]
            there = documents < len(lengths)
            found[of_shard[there]] = lengths[documents[there]]
        return found

    def _of_shard(self, store: int, shard: int) -> Any:
        """int32 [documents]; empty where the stores have no such shard."""
        if store >= len(self._stores) or shard >= len(self._stores[store].shard_infos):
            return np.empty(0, np.int32)
        place = store << 16 | shard
        if place not in self._lengths:
            found, info = self._stores[store], self._stores[store].shard_infos[shard]
            index = found.directory / f"{info.name}.idx"
            if not index.is_file() or index.stat().st_size < 34 + 4 * info.documents:
                return np.empty(0, np.int32)
            self._lengths[place] = np.memmap(index, "<i4", "r", offset=34, shape=(info.documents,))
        return self._lengths[place]
