"""Batches of a pack plan or of its export, gathered by the C++ core."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from latxa_megatron import _core
from latxa_megatron.data import exported
from latxa_megatron.data.exported import Export, ExportReader
from latxa_megatron.data.plan import MANIFEST, PackPlan
from latxa_megatron.errors import LatxaError
from latxa_megatron.files import read_json


@dataclass(frozen=True)
class Batch:
    """b samples of s positions. Labels are the next tokens; position_ids count from 0 in each document.

    cu_seqlens are the document borders over the b*s positions laid end to end, from 0 to b*s; padding at a sample's end is a
    document of its own with loss_mask 0.
    """

    tokens: Tensor  # int64 [b, s]
    labels: Tensor  # int64 [b, s]
    loss_mask: Tensor  # float32 [b, s], 1 where the label is trained
    position_ids: Tensor  # int64 [b, s]
    cu_seqlens: Tensor  # int32 [documents + 1]
    sources: Tensor  # int64 [b, s], place of the document's source in PackedDataset.sources; 0 in padding
    samples: list[int]  # their numbers in the plan


def open_samples(path: Path) -> PackPlan | Export:
    """The plan, or the export of one, at `path`. Raises LatxaError where there is none, or a plan's stores are gone."""
    if (path / MANIFEST).is_file():
        manifest = read_json(path / MANIFEST)
        if isinstance(manifest, dict) and manifest.get("format") == exported.FORMAT:
            return Export(path)
    return PackPlan(path)


class PackedDataset:
    """The samples of a plan, or of its export, which has the same. Sample N depends on the plan and N alone; reading holds no
    state. Costs O(positions).

    sources: names of the sources of its stores' shards; those of one name, in several stores, are one source.
    """

    def __init__(self, path: Path) -> None:
        self.plan = open_samples(path)
        self._reader = PlanReader(self.plan) if isinstance(self.plan, PackPlan) else ExportReader(self.plan)
        self.sources = self._reader.sources

    def __len__(self) -> int:
        return len(self.plan)

    @property
    def seq_length(self) -> int:
        return self.plan.seq_length

    def document_positions(self, first: int, last: int) -> npt.NDArray[np.int64]:
        """Positions of each document, or piece of one, in samples first to last - 1, without reading them."""
        if not 0 <= first <= last <= len(self.plan):
            raise IndexError(f"samples {first} to {last} of a plan with {len(self.plan)}")
        return np.concatenate([np.empty(0, np.int64), *(lengths for lengths, _ in self._reader.documents(first, last))])

    def longest_padded(self, unit: int) -> int:
        """Positions of the plan's longest sample when each document, and what is left after the last, is padded to a multiple."""
        longest = 0
        for lengths, borders in self._reader.all_documents():
            starts = borders[:-1]
            left = self.seq_length - np.add.reduceat(lengths, starts)
            longest = max(longest, int((np.add.reduceat(-(-lengths // unit), starts) - (-left // unit)).max()))
        return longest * unit

    def most_documents(self) -> int:
        """Documents of the plan's fullest sample, and one more for the padding at its end."""
        return max(int(np.diff(borders).max()) for _, borders in self._reader.all_documents()) + 1

    def batch(self, samples: list[int]) -> Batch:
        """The samples with these numbers. Raises IndexError past the end, LatxaError where a file is damaged."""
        for sample in samples:
            if not 0 <= sample < len(self.plan):
                raise IndexError(f"sample {sample} of a plan with {len(self.plan)}")
        arrays = self._reader.batch(samples)
        return Batch(**{name: torch.from_numpy(array) for name, array in arrays.items()}, samples=samples)


class PlanReader:
    """The samples of a plan, gathered from its stores, for PackedDataset and for exports. sources: as in PackedDataset."""

    def __init__(self, plan: PackPlan) -> None:
        self.plan = plan
        self.sources = list(dict.fromkeys(info.source for store in plan.stores for info in store.shard_infos))
        number = {name: i for i, name in enumerate(self.sources)}
        stores = [
            [(shard, number[info.source]) for shard, info in zip(store.shards, store.shard_infos, strict=True)]
            for store in plan.stores
        ]
        self.gatherer = _core.Gatherer(stores, plan.row_offsets, plan.slices.view("u1"))

    def batch(self, samples: list[int]) -> dict[str, npt.NDArray[Any]]:
        """The arrays of Batch. Raises LatxaError where a file is damaged."""
        rows = [self.plan.row(n) for n in samples]
        try:
            return dict(self.gatherer.batch(rows, self.plan.seq_length, 0))
        except _core.StoreError as error:
            raise LatxaError(f"{self.plan.directory}: {error}; pack again") from None

    def documents(self, first: int, last: int) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
        """Of samples first to last - 1, in blocks: the positions of each document, and each sample's first document."""
        for begin in range(first, last, _SAMPLES):
            rows = self.plan.rows(begin, min(begin + _SAMPLES, last))
            starts, counts = self.plan.row_offsets[rows], self.plan.row_offsets[rows + 1] - self.plan.row_offsets[rows]
            borders = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
            places = np.repeat(starts - borders[:-1], counts) + np.arange(borders[-1])
            yield self.plan.slices["length"][places].astype(np.int64) - 1, borders

    def all_documents(self) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
        """The same of all rows, each once, in whatever order."""
        for begin in range(0, len(self.plan.row_offsets) - 1, _SAMPLES):
            borders = np.asarray(self.plan.row_offsets[begin : begin + _SAMPLES + 1])
            yield self.plan.slices["length"][borders[0] : borders[-1]].astype(np.int64) - 1, borders - borders[0]


_SAMPLES = 1 << 16
"""Samples whose documents are looked at once."""
