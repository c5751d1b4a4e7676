"""The documents of a store or a plan by their sources: where each stands, which are the longest, and a fixed sample of them."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from latxa_megatron import _core
from latxa_megatron.data.store import TokenStore

_KEY = 33
"""Of the sample's order: the same documents of the same store, whoever looks."""


@dataclass(frozen=True)
class Place:
    """A document: its source, its store, and its number there, as `latxa data inspect STORE --sample` takes it."""

    source: str
    store: Path
    number: int


@dataclass(frozen=True)
class Part:
    """A shard of a source, and the number in its store of the shard's first document."""

    store: Path
    first: int
    shard: _core.Shard


def by_source(stores: list[TokenStore]) -> dict[str, list[Part]]:
    """The shards of each source; sources of one name in several stores are one."""
    found: dict[str, list[Part]] = {name: [] for store in stores for name in store.manifest["sources"]}
    for store in stores:
        first = 0
        for info, shard in zip(store.shard_infos, store.shards, strict=True):
            found[info.source].append(Part(store.directory, first, shard))
            first += len(shard)
    return found


@dataclass(frozen=True)
class Document:
    """A document's tokens, int64 [n], and whether each is trained, bool [n]."""

    place: Place
    tokens: npt.NDArray[np.int64]
    trained: npt.NDArray[np.bool_]


def read(source: str, part: Part, number: int) -> Document:
    """Document `number` of a part, counted from the part's first."""
    tokens = part.shard.tokens(number)
    trained = np.zeros(len(tokens), bool)
    for start, end in part.shard.spans(number):
        trained[start:end] = True
    return Document(Place(source, part.store, part.first + number), tokens, trained)


def drawn(source: str, parts: list[Part], most: int) -> Iterator[Document]:
    """At most so many documents of a source, all alike likely and none twice, in an order that depends on their number alone."""
    ends = np.cumsum([len(part.shard) for part in parts])
    total = int(ends[-1]) if parts else 0
    for place in _core.Permutation(max(total, 1), _KEY).images(0, min(most, total)).tolist():
        i = int(np.searchsorted(ends, place, side="right"))
        yield read(source, parts[i], place - (int(ends[i - 1]) if i else 0))


def longest(source: str, parts: list[Part], most: int) -> list[Document]:
    """The longest documents of a source, the longest first; of equal ones, the first in the store."""
    best: list[tuple[int, int, int]] = []  # minus the length, part, document
    for p, part in enumerate(parts):
        lengths = part.shard.lengths
        bound = np.partition(lengths, -most)[-most] if len(lengths) > most else -1
        at = [*np.flatnonzero(lengths > bound), *np.flatnonzero(lengths == bound)[:most]]
        best = sorted([*best, *((-int(lengths[i]), p, int(i)) for i in at)])[:most]
    return [read(source, parts[p], i) for _, p, i in best]
