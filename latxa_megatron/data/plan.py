"""Pack plans, read: which slices of which documents fill each sample, for one sequence length. See docs/formats.md.

A plan is a list of passes over the stores. A pass sees each of its documents once; its samples come in the order of a keyed
bijection. `packing.py` writes plans.
"""

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from latxa_megatron import _core
from latxa_megatron.data.store import TokenStore
from latxa_megatron.errors import LatxaError
from latxa_megatron.files import fingerprint, read_json

FORMAT = "latxa-pack-plan"
VERSION = 2
MANIFEST = "manifest.json"

SLICE = np.dtype([("store", "<u2"), ("shard", "<u2"), ("document", "<u4"), ("start", "<u4"), ("length", "<u4")])
"""A record of slices.bin, 16 bytes; csrc/gather.h has the same."""


def manifest_fingerprint(manifest: dict[str, Any]) -> str:
    """SHA-256 over what a plan is; where its stores stand does not enter."""
    return fingerprint({key: value for key, value in manifest.items() if key not in ("fingerprint", "store_paths")})


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
        if self.manifest.get("fingerprint") != manifest_fingerprint(self.manifest):
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
        self._ends = list(accumulate(p["rows"] for p in self.manifest["passes"]))

    @property
    def fingerprint(self) -> str:
        return str(self.manifest["fingerprint"])

    @property
    def seq_length(self) -> int:
        return int(self.manifest["seq_length"])

    def __len__(self) -> int:
        """Samples of all passes."""
        return self._ends[-1]

    @property
    def vocab_size(self) -> int:
        """The largest token id + 1 of its stores' tokenizer."""
        return max(int(store.manifest["tokenizer"]["vocab_size"]) for store in self.stores)

    def row(self, sample: int) -> int:
        """The row of the plan's arrays that sample N is."""
        number = bisect_right(self._ends, sample)
        before = self._ends[number - 1] if number else 0
        return int(self.manifest["passes"][number]["first_row"]) + int(self._orders[number][sample - before])

    def slices_of(self, sample: int) -> npt.NDArray[np.void]:
        """The slices, SLICE [n], of sample N."""
        row = self.row(sample)
        return np.asarray(self.slices[self.row_offsets[row] : self.row_offsets[row + 1]])

    def rows(self, first: int, last: int) -> npt.NDArray[np.int64]:
        """The rows of samples first to last - 1, int64 [last - first]. Raises IndexError past the end."""
        if not 0 <= first <= last <= len(self):
            raise IndexError(f"samples {first} to {last} of a plan with {len(self)}")
        parts = [np.empty(0, np.int64)]
        begin = 0
        for p, order, end in zip(self.manifest["passes"], self._orders, self._ends, strict=True):
            if begin < last and first < end:
                parts.append(p["first_row"] + order.images(max(first, begin) - begin, min(last, end) - begin))
            begin = end
        return np.concatenate(parts)

    def efficiency(self) -> float:
        """Share of all positions that hold a token."""
        used = sum(times * int((slices["length"].astype(np.int64) - 1).sum()) for slices, times in self._blocks())
        return used / (len(self) * self.seq_length)

    def pieces(self) -> tuple[int, int]:
        """Slices in all samples, and those of them that begin inside a document."""
        counts = [(times * len(slices), times * int((slices["start"] > 0).sum())) for slices, times in self._blocks()]
        return sum(count for count, _ in counts), sum(inside for _, inside in counts)

    def times_seen(self) -> list[list[npt.NDArray[np.uint32]]]:
        """How often each document is seen: [store][shard] has an array uint32 [documents]. Counted from the slices, not foretold.

        Costs O(documents + slices), and 4 bytes for each document of the stores.
        """
        shards = [len(shard) for store in self.stores for shard in store.shards]
        first_document = np.cumsum([0, *shards])
        first_shard = np.cumsum([0, *(len(store.shards) for store in self.stores)])
        seen = np.zeros(first_document[-1], np.uint32)
        for slices, times in self._blocks():
            begun = slices[slices["start"] == 0]  # one for each time that a pass has a document
            seen[first_document[first_shard[begun["store"]] + begun["shard"]] + begun["document"]] += np.uint32(times)
        by_shard = [seen[a:b] for a, b in pairwise(first_document)]
        return [by_shard[a:b] for a, b in pairwise(first_shard)]

    def _blocks(self) -> Iterator[tuple[npt.NDArray[np.void], int]]:
        """All slices, a million at a time, of one pass or several with the same rows; and how many passes have them."""
        for (first, rows), times in Counter((p["first_row"], p["rows"]) for p in self.manifest["passes"]).items():
            begin, end = int(self.row_offsets[first]), int(self.row_offsets[first + rows])
            for block in range(begin, end, 1 << 20):
                yield np.asarray(self.slices[block : min(block + (1 << 20), end)]), times
