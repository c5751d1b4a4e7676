"""Pack plans: which slices of which documents fill each sample, for one sequence length. See docs/formats.md.

A plan is a list of passes over the stores. A pass sees each of its documents once; its samples come in the order of a keyed
bijection. A store with epochs=2.5 is in three passes, the third with half of its documents, drawn by the seed.
"""

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from latxa_megatron import _core
from latxa_megatron.data.store import TokenStore
from latxa_megatron.errors import LatxaError
from latxa_megatron.files import fingerprint, new_directory, read_json, sha256, write_json

FORMAT = "latxa-pack-plan"
VERSION = 1
MANIFEST = "manifest.json"

SLICE = np.dtype([("store", "<u2"), ("shard", "<u2"), ("document", "<u4"), ("start", "<u4"), ("length", "<u4")])
"""A record of slices.bin, 16 bytes; csrc/gather.h has the same."""


@dataclass(frozen=True)
class Mix:
    """A store in the mixture, and how often each document of each of its sources is seen."""

    store: Path
    epochs: dict[str, float]


def pack(out: Path, mixture: list[Mix], *, seq_length: int, seed: int) -> "PackPlan":
    """Write the plan of a mixture to a new directory; return it at once where `out` already holds exactly that plan.

    Raises LatxaError where nothing is left to pack, or `out` holds something else.
    """
    stores = [TokenStore(mix.store) for mix in mixture]
    _check(stores, mixture, seq_length)
    inputs = {
        "seq_length": seq_length,
        "seed": seed,
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
        passes = _write(partial, stores, mixture, seq_length, seed)
        manifest: dict[str, Any] = {"format": FORMAT, "version": VERSION, **inputs, "passes": passes}
        manifest["sha256"] = {name: sha256(partial / name) for name in ("rows.bin", "slices.bin")}
        manifest["fingerprint"] = _manifest_fingerprint(manifest)
        manifest["store_paths"] = [str(mix.store.resolve()) for mix in mixture]
        write_json(partial / MANIFEST, manifest)
    return PackPlan(out)


def _manifest_fingerprint(manifest: dict[str, Any]) -> str:
    """SHA-256 over what a plan is; where its stores stand does not enter."""
    return fingerprint({key: value for key, value in manifest.items() if key not in ("fingerprint", "store_paths")})


def _check(stores: list[TokenStore], mixture: list[Mix], seq_length: int) -> None:
    if not 1 <= seq_length < 2**31:
        raise LatxaError(f"a sequence length of {seq_length} is outside 1 ... 2147483647")
    if max(len(stores), *(len(store.shard_infos) for store in stores)) > 65536:
        raise LatxaError("a plan has at most 65536 stores of 65536 shards; join small source files and build again")
    if not all(0 < epochs < math.inf for mix in mixture for epochs in mix.epochs.values()):
        raise LatxaError("epochs are above 0 and finite")
    if len({store.manifest["tokenizer"]["fingerprint"] for store in stores}) > 1:
        raise LatxaError("the stores were built with different tokenizers; build them again with one")
    for store, mix in zip(stores, mixture, strict=True):
        for source in mix.epochs:
            if source not in store.manifest["sources"]:
                known = ", ".join(store.manifest["sources"])
                raise LatxaError(f"{mix.store}: has no source '{source}'; there are {known}")


def _write(out: Path, stores: list[TokenStore], mixture: list[Mix], seq_length: int, seed: int) -> list[dict[str, int]]:
    """Write rows.bin and slices.bin; the passes, each with its first row, its rows and the key of its order."""
    passes: list[dict[str, int]] = []
    packed: dict[bytes, tuple[int, int]] = {}  # equal passes share their rows
    rows = slices_written = 0
    with (out / "rows.bin").open("wb") as row_file, (out / "slices.bin").open("wb") as slice_file:
        row_file.write(np.zeros(1, "<i8").tobytes())
        number = 0
        while len(slices := _slices_of_pass(stores, mixture, number, seq_length, seed)):
            digest = hashlib.sha256(slices.tobytes()).digest()
            if digest not in packed:
                offsets, items = _core.best_fit_decreasing((slices["length"] - 1).astype(np.uint32), seq_length)
                slice_file.write(slices[items].tobytes())
                row_file.write((offsets[1:] + slices_written).astype("<i8").tobytes())
                packed[digest] = (rows, len(offsets) - 1)
                rows += len(offsets) - 1
                slices_written += len(slices)
            first, count = packed[digest]
            passes.append({"first_row": first, "rows": count, "key": _key(seed, "order", number)})
            number += 1
    if not passes:
        raise LatxaError(f"{', '.join(str(s.directory) for s in stores)}: no document has two tokens; nothing to pack")
    return passes


def _slices_of_pass(
    stores: list[TokenStore], mixture: list[Mix], number: int, seq_length: int, seed: int
) -> npt.NDArray[np.void]:
    """The slices of all documents that pass `number` sees, in the order of stores, shards and documents."""
    parts = []
    for s, (store, mix) in enumerate(zip(stores, mixture, strict=True)):
        seen: dict[str, int] = {}  # documents of each source in the shards before
        totals = _documents(store)
        for h, (info, shard) in enumerate(zip(store.shard_infos, store.shards, strict=True)):
            share = min(1.0, mix.epochs.get(info.source, 1.0) - number)
            if share <= 0:
                continue
            lengths = shard.lengths
            documents = np.flatnonzero(lengths >= 2)
            if share < 1:
                first, total = seen.get(info.source, 0), totals[info.source]
                seen[info.source] = first + len(documents)
                key = _key(seed, "part", number, s, info.source)
                documents = documents[_in_share(first, len(documents), total, share, key)]
            parts.append(_cut(s, h, documents, lengths[documents], seq_length))
    return np.concatenate(parts) if parts else np.empty(0, SLICE)


def _documents(store: TokenStore) -> dict[str, int]:
    """How many documents of each source have a token to predict."""
    counts: dict[str, int] = {}
    for info, shard in zip(store.shard_infos, store.shards, strict=True):
        counts[info.source] = counts.get(info.source, 0) + int((shard.lengths >= 2).sum())
    return counts


def _cut(store: int, shard: int, documents: Any, lengths: Any, seq_length: int) -> npt.NDArray[np.void]:
    """Slices of at most seq_length + 1 tokens, neighbours sharing one token: each token but the first is a label once."""
    counts = -(-(lengths.astype(np.int64) - 1) // seq_length)
    which = np.repeat(np.arange(len(documents)), counts)
    start = (np.arange(len(which)) - np.repeat(np.cumsum(counts) - counts, counts)) * seq_length
    slices = np.empty(len(which), SLICE)
    slices["store"], slices["shard"] = store, shard
    slices["document"], slices["start"] = documents[which], start
    slices["length"] = np.minimum(lengths[which] - start, seq_length + 1)
    return slices


def _in_share(first: int, count: int, total: int, share: float, key: int) -> npt.NDArray[np.bool_]:
    """Whether documents first ... first + count - 1 of a source are among the round(share * total) that the key draws."""
    order, wanted = _core.Permutation(max(total, 1), key), round(share * total)
    return np.fromiter((order[i] < wanted for i in range(first, first + count)), bool, count)


def _key(seed: int, *purpose: object) -> int:
    """63 bits that differ for each seed and purpose, and stay a JSON number."""
    digest = hashlib.blake2b(repr((seed, *purpose)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


class PackPlan:
    """A finished plan: sample N is `row(N)`, a function of the plan alone.

    Raises LatxaError for a directory that is none, and (with check_stores) where a store is gone or is another one.
    """

    def __init__(self, directory: Path, *, check_stores: bool = True) -> None:
        if not (directory / MANIFEST).is_file():
            raise LatxaError(f"{directory}: is not a pack plan (it has no {MANIFEST}); `latxa data pack` makes one")
        self.directory = directory
        self.manifest: dict[str, Any] = read_json(directory / MANIFEST)
        if self.manifest.get("format") != FORMAT or self.manifest.get("version") != VERSION:
            raise LatxaError(f"{directory / MANIFEST}: is not a pack plan of version {VERSION}; pack again")
        if self.manifest.get("fingerprint") != _manifest_fingerprint(self.manifest):
            raise LatxaError(f"{directory / MANIFEST}: was changed since it was written; pack again")
        try:
            self.row_offsets = np.memmap(directory / "rows.bin", "<i8", "r")
            self.slices = np.memmap(directory / "slices.bin", SLICE, "r")
            rows = max(p["first_row"] + p["rows"] for p in self.manifest["passes"])
            if len(self.row_offsets) != rows + 1 or self.row_offsets[-1] != len(self.slices):
                raise ValueError("they do not belong together")
        except (OSError, ValueError) as error:
            raise LatxaError(
                f"{directory}: rows.bin or slices.bin is missing or cut short ({error}); remove the plan and pack again"
            ) from None
        if check_stores:
            self.stores = [TokenStore(Path(path)) for path in self.manifest["store_paths"]]
            for store, packed in zip(self.stores, self.manifest["stores"], strict=True):
                if store.fingerprint != packed["fingerprint"]:
                    raise LatxaError(f"{store.directory}: is not the store that {directory} was packed from; pack again")
        self._orders = [_core.Permutation(p["rows"], p["key"]) for p in self.manifest["passes"]]
        self._ends = np.cumsum([p["rows"] for p in self.manifest["passes"]])

    @property
    def fingerprint(self) -> str:
        return str(self.manifest["fingerprint"])

    @property
    def seq_length(self) -> int:
        return int(self.manifest["seq_length"])

    def __len__(self) -> int:
        """Samples of all passes."""
        return int(self._ends[-1])

    def row(self, sample: int) -> int:
        """The row of the plan's arrays that sample N is."""
        number = int(np.searchsorted(self._ends, sample, side="right"))
        before = int(self._ends[number - 1]) if number else 0
        return int(self.manifest["passes"][number]["first_row"]) + int(self._orders[number][sample - before])

    def efficiency(self) -> float:
        """Share of all positions that hold a token."""
        used = slots = 0
        positions = self.slices["length"].astype(np.int64) - 1
        for p in self.manifest["passes"]:
            first, last = self.row_offsets[p["first_row"]], self.row_offsets[p["first_row"] + p["rows"]]
            used += int(positions[first:last].sum())
            slots += p["rows"] * self.seq_length
        return used / slots
