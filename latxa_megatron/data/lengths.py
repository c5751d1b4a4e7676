"""How long the documents of a source are: how many have each length, counted from the .idx files without reading a token."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

_PENDING = 1 << 22
"""Lengths that are gathered before those that are equal are counted together: memory is bounded by the different lengths."""

Counted = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]


@dataclass(frozen=True)
class Bar:
    """Documents of low <= tokens < high, and the tokens that they have together."""

    low: int
    high: int
    documents: int
    tokens: int


@dataclass(frozen=True)
class Lengths:
    """values: the different lengths in tokens, int64 [k], ascending; counts: how many documents have each, int64 [k]."""

    values: npt.NDArray[np.int64]
    counts: npt.NDArray[np.int64]

    @property
    def documents(self) -> int:
        return int(self.counts.sum())

    @property
    def tokens(self) -> int:
        return int(self.values @ self.counts)

    def quantile(self, q: float) -> int:
        """The shortest length that a share q of the documents does not exceed."""
        at_or_below = np.cumsum(self.counts)
        return int(self.values[np.searchsorted(at_or_below, max(q * at_or_below[-1], 1))])

    def bars(self, most: int) -> list[Bar]:
        """A histogram over lengths 0, 1, 2, 3, 4, 6, 8, 12, ... (two bars each time that the length doubles) up to `most`."""
        powers = [1 << k for k in range(most.bit_length() + 1)]
        edges = sorted({0, *powers, *(3 * power for power in powers[:-1])})
        documents = np.concatenate([[0], np.cumsum(self.counts)])
        tokens = np.concatenate([[0], np.cumsum(self.values * self.counts)])
        bars = []
        for low, high in pairwise(edges):
            a, b = np.searchsorted(self.values, [low, high])
            bars.append(Bar(low, high, int(documents[b] - documents[a]), int(tokens[b] - tokens[a])))
        return bars


def count(shards: Iterable[npt.NDArray[np.int32]]) -> Lengths:
    """Lengths of the documents of all shards, from the lengths int32 [n] of each. Costs O(n log n) time for each shard."""
    parts: list[Counted] = []
    pending = 0
    for lengths in shards:
        values, counts = np.unique(lengths, return_counts=True)
        parts.append((values.astype(np.int64), counts))
        pending += len(values)
        if pending > _PENDING:
            parts = [_joined(parts)]
            pending = len(parts[0][0])
    return Lengths(*_joined(parts))


def _joined(parts: list[Counted]) -> Counted:
    values, where = np.unique(np.concatenate([values for values, _ in parts]), return_inverse=True)
    counts = np.zeros(len(values), np.int64)
    np.add.at(counts, where, np.concatenate([counts for _, counts in parts]))
    return values, counts
