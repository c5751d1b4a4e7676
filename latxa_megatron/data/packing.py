"""Writes pack plans: which documents each pass has, and the rows that their slices fill. See docs/formats.md.

All sources are spread evenly over the whole plan: with epochs 4 and 1, each quarter of the plan has all of the one and another
quarter of the other. A pass ends wherever an epoch of some source does, so that no document is in a pass twice, and each is seen
again only when its source was seen whole. Where all epochs are one whole number, the passes are all equal, and share their rows.

A pass of more than WINDOW slices is packed in windows, each a part of every shard. So memory is bounded, by about 35 bytes for
each slice of a window, and what a window loses is a row or two of its hundreds of thousands.
"""

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import numpy.typing as npt

from latxa_megatron import _core
from latxa_megatron.data.mixture import Mix
from latxa_megatron.data.plan import FORMAT, MANIFEST, SLICE, VERSION, PackPlan, manifest_fingerprint
from latxa_megatron.data.store import TokenStore
from latxa_megatron.errors import LatxaError
from latxa_megatron.files import new_directory, write_json

WINDOW = 1 << 21
"""Slices that are packed at once. Of 16M documents, 2^20, 2^21, 2^23 fill 99.997, 99.998, 99.999% in 1.7, 2.0, 2.9 s of CPU."""
MOST_PASSES = 1 << 16
_WHOLE = 2**31 - 1  # as a sequence length: no document is cut

Packing = Literal["best_fit", "concat"]
_Parts = tuple[tuple[int, int], ...]  # of each shard's source, places in its order


def pack(out: Path, mixture: list[Mix], *, seq_length: int, seed: int, packing: Packing = "best_fit") -> PackPlan:
    """Write the plan of a mixture to a new directory; return it at once where `out` already holds exactly that plan.

    packing: "best_fit" cuts only what is longer than seq_length tokens; "concat" lays all documents end to end in a seeded order
    and cuts after each seq_length positions, so that all rows but the last of a pass are full. Attention crosses documents in
    neither. Raises LatxaError where nothing is left to pack, or `out` holds something else.
    """
    stores = [TokenStore(mix.store) for mix in mixture]
    _check(stores, mixture, seq_length)
    inputs = {
        "seq_length": seq_length,
        "seed": seed,
        "packing": packing,
        "stores": [
            {"fingerprint": store.fingerprint, "epochs": dict(sorted(mix.epochs.items()))}
            for store, mix in zip(stores, mixture, strict=True)
        ],
    }
    if out.exists():
        plan = PackPlan(out, check_stores=False)
        if {key: plan.manifest.get(key) for key in inputs} != inputs:
            raise LatxaError(f"{out}: holds a plan of other inputs; remove it or name another directory")
        moved = [str(mix.store.resolve()) for mix in mixture]
        if plan.manifest["store_paths"] != moved:
            write_json(out / MANIFEST, {**plan.manifest, "store_paths": moved})
        return PackPlan(out)
    with new_directory(out) as partial:
        manifest: dict[str, Any] = {"format": FORMAT, "version": VERSION, **inputs}
        manifest["passes"], manifest["sha256"] = _write(partial, stores, mixture, seq_length, seed, packing)
        manifest["fingerprint"] = manifest_fingerprint(manifest)
        manifest["store_paths"] = [str(mix.store.resolve()) for mix in mixture]
        write_json(partial / MANIFEST, manifest)
    return PackPlan(out)


def _check(stores: list[TokenStore], mixture: list[Mix], seq_length: int) -> None:
    if not 1 <= seq_length < 2**31:
        raise LatxaError(f"a sequence length of {seq_length} is outside 1 ... 2147483647")
    if max(len(stores), *(len(store.shard_infos) for store in stores)) > 65536:
        raise LatxaError("a plan has at most 65536 stores of 65536 shards; join small source files and build again")
    if not all(0 < epochs < math.inf for mix in mixture for epochs in mix.epochs.values()):
        raise LatxaError("epochs are above 0 and finite")
    if sum(math.ceil(epochs) for epochs in {e for mix in mixture for e in mix.epochs.values()}) > MOST_PASSES:
        raise LatxaError(f"the different epochs sum up to more than {MOST_PASSES}; lower them")
    if len({store.manifest["tokenizer"]["fingerprint"] for store in stores}) > 1:
        raise LatxaError("the stores were built with different tokenizers; build them again with one")
    for store, mix in zip(stores, mixture, strict=True):
        for source in mix.epochs:
            if source not in store.manifest["sources"]:
                known = ", ".join(store.manifest["sources"])
                raise LatxaError(f"{mix.store}: has no source '{source}'; there are {known}")


@dataclass
class _Source:
    """One source of one store. Documents and slices are those of two or more tokens; its order is the same in each epoch."""

    epochs: Fraction
    documents: int
    slices: int
    order: _core.Permutation

    def part(self, begin: Fraction, end: Fraction) -> tuple[int, int]:
        """Places [first, last) in the order of the documents that are seen between two points in [0, 1] of the plan.

        No epoch of the source ends between the two.
        """
        begun = math.floor(begin * self.epochs)
        first, last = (round((point * self.epochs - begun) * self.documents) for point in (begin, end))
        return first, last


@dataclass
class _Shard:
    """A shard of the mixture, and the number in its source of its first document of two or more tokens."""

    shard: _core.Shard
    store: int
    number: int
    source: _Source
    first: int


def _shards(stores: list[TokenStore], mixture: list[Mix], seq_length: int, seed: int) -> list[_Shard]:
    """All shards with documents to see, in the order of stores."""
    shards = []
    for s, (store, mix) in enumerate(zip(stores, mixture, strict=True)):
        sources: dict[str, _Source] = {}
        for h, (info, shard) in enumerate(zip(store.shard_infos, store.shards, strict=True)):
            empty = _Source(Fraction(mix.epochs.get(info.source, 1.0)), 0, 0, _core.Permutation(1, 0))
            source = sources.setdefault(info.source, empty)
            documents, slices = _core.count_slices(shard, 0, len(shard), seq_length)
            shards.append(_Shard(shard, s, h, source, source.documents))
            source.documents += documents
            source.slices += slices
        for name, source in sources.items():
            source.order = _core.Permutation(max(source.documents, 1), _key(seed, "part", s, name))
    return [shard for shard in shards if shard.source.documents]


def _ends(shards: list[_Shard]) -> list[Fraction]:
    """The points in (0, 1] of the plan where an epoch of some source ends, and 1."""
    ends = {Fraction(1)}
    for epochs in {shard.source.epochs for shard in shards}:
        ends.update(Fraction(k) / epochs for k in range(1, math.floor(epochs) + 1))
    return sorted(ends)


def _write(
    out: Path, stores: list[TokenStore], mixture: list[Mix], seq_length: int, seed: int, packing: Packing
) -> tuple[list[dict[str, int]], dict[str, str]]:
    """Write rows.bin and slices.bin; the passes, each with its first row, its rows and the key of its order, and both hashes."""
    shards = _shards(stores, mixture, seq_length, seed)
    passes: list[dict[str, int]] = []
    packed: dict[_Parts, tuple[int, int]] = {}  # equal passes share their rows
    with (out / "rows.bin").open("wb") as row_file, (out / "slices.bin").open("wb") as slice_file:
        rows = _Rows(row_file, slice_file)
        begin = Fraction(0)
        for end in _ends(shards):
            parts = tuple(shard.source.part(begin, end) for shard in shards)
            begin = end
            if parts not in packed:
                first = rows.count
                (_best_fit if packing == "best_fit" else _concat)(rows, shards, parts, seq_length, seed)
                packed[parts] = first, rows.count - first
            if packed[parts][1]:
                key = _key(seed, "order", len(passes))
                passes.append({"first_row": packed[parts][0], "rows": packed[parts][1], "key": key})
    if not passes:
        raise LatxaError(f"{', '.join(str(s.directory) for s in stores)}: no document has two tokens; nothing to pack")
    return passes, {"rows.bin": rows.row_hash.hexdigest(), "slices.bin": rows.slice_hash.hexdigest()}


class _Rows:
    """rows.bin and slices.bin as they grow, and their hashes."""

    def __init__(self, row_file: BinaryIO, slice_file: BinaryIO) -> None:
        self._row_file, self._slice_file = row_file, slice_file
        self.row_hash, self.slice_hash = hashlib.sha256(), hashlib.sha256()
        self.slices = 0
        self.count = -1  # the first value of rows.bin ends no row
        self.end(np.zeros(1, np.int64))

    def add(self, slices: npt.NDArray[np.void]) -> None:
        self._slice_file.write(slices.view(np.uint8).data)
        self.slice_hash.update(slices.view(np.uint8).data)
        self.slices += len(slices)

    def end(self, ends: npt.NDArray[np.int64]) -> None:
        """Rows that end after so many slices of the file."""
        data = np.ascontiguousarray(ends, "<i8").data
        self._row_file.write(data)
        self.row_hash.update(data)
        self.count += len(ends)


def _best_fit(rows: _Rows, shards: list[_Shard], parts: _Parts, seq_length: int, seed: int) -> None:
    """Best-fit decreasing of each window's slices."""
    for ranges in _windows(shards, parts, seq_length):
        slices = _core.cut(ranges, seq_length).view(SLICE)
        offsets, items = _core.best_fit_decreasing(slices["length"] - np.uint32(1), seq_length)
        rows.end(offsets[1:] + rows.slices)
        for block in range(0, len(items), 1 << 16):
            rows.add(slices.take(items[block : block + (1 << 16)]))  # twice as fast as slices[...]


def _concat(rows: _Rows, shards: list[_Shard], parts: _Parts, seq_length: int, seed: int) -> None:
    """Each window's documents in a seeded order, one stream over all windows, cut every seq_length positions."""
    room = seq_length
    for number, ranges in enumerate(_windows(shards, parts, seq_length)):
        documents = _core.cut(ranges, _WHOLE)
        slices, ends, room = _core.concatenate(documents, seq_length, room, _key(seed, "concat", number))
        rows.end(ends + rows.slices)
        rows.add(slices.view(SLICE))
    if room < seq_length:
        rows.end(np.array([rows.slices], np.int64))


def _windows(shards: list[_Shard], parts: _Parts, seq_length: int) -> Iterator[list[_core.Range]]:
    """What each window cuts: of every shard the documents that are seen in one of as many equal parts as there are windows."""
    seen = {(id(shard.source), part): shard.source for shard, part in zip(shards, parts, strict=True)}
    slices = sum(source.slices * (last - first) // source.documents for (_, (first, last)), source in seen.items())
    count = slices // WINDOW + 1
    begins = [shard.first for shard in shards]
    for w in range(count):
        ranges = []
        for i, (each, (part_first, part_last)) in enumerate(zip(shards, parts, strict=True)):
            first, last = (len(each.shard) * n // count for n in (w, w + 1))
            if part_first == part_last or first == last:
                continue
            order = each.source.order
            ranges.append(_core.Range(each.shard, each.store, each.number, first, last, order, part_first, part_last, begins[i]))
            if w + 1 < count:
                begins[i] += _core.count_slices(each.shard, first, last, seq_length)[0]
        yield ranges


def _key(seed: int, *purpose: object) -> int:
    """63 bits that differ for each seed and purpose, and stay a JSON number."""
    digest = hashlib.blake2b(repr((seed, *purpose)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
