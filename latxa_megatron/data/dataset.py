"""Batches of a pack plan, gathered by the C++ core."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from latxa_megatron import _core
from latxa_megatron.data.plan import PackPlan
from latxa_megatron.errors import LatxaError


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


class PackedDataset:
    """The samples of a plan. Sample N depends on the plan and N alone; reading holds no state. Costs O(positions).

    sources: names of the sources of its stores' shards; those of one name, in several stores, are one source.
    """

    def __init__(self, plan: Path) -> None:
        self.plan = PackPlan(plan)
        shards = [store.shards for store in self.plan.stores]
        self._gatherer = _core.Gatherer(shards, self.plan.row_offsets, self.plan.slices.view("u1"))
        names = [[info.source for info in store.shard_infos] for store in self.plan.stores]
        self.sources = list(dict.fromkeys(name for store in names for name in store))
        self._source_of_shard = np.array([self.sources.index(name) for store in names for name in store], np.int64)
        self._first_shard = np.cumsum([0, *(len(store) for store in names)])

    def __len__(self) -> int:
        return len(self.plan)

    @property
    def seq_length(self) -> int:
        return self.plan.seq_length

    def document_positions(self, first: int, last: int) -> npt.NDArray[np.int64]:
        """Positions of each document, or piece of one, in samples first to last - 1, without reading them."""
        rows = self.plan.rows(first, last)
        borders = self.plan.row_offsets
        return np.concatenate([self.plan.slices["length"][borders[r] : borders[r + 1]] for r in rows]).astype(np.int64) - 1

    def longest_padded(self, unit: int) -> int:
        """Positions of the plan's longest sample when each document, and what is left after the last, is padded to a multiple."""
        lengths = self.plan.slices["length"].astype(np.int64) - 1
        starts = self.plan.row_offsets[:-1]
        left = self.seq_length - np.add.reduceat(lengths, starts)
        return int((np.add.reduceat(-(-lengths // unit), starts) - (-left // unit)).max()) * unit

    def batch(self, samples: list[int]) -> Batch:
        """The samples with these numbers. Raises IndexError past the end, LatxaError where a file is damaged."""
        for sample in samples:
            if not 0 <= sample < len(self.plan):
                raise IndexError(f"sample {sample} of a plan with {len(self.plan)}")
        rows = [self.plan.row(n) for n in samples]
        try:
            arrays = self._gatherer.batch(rows, self.seq_length, 0)
        except _core.StoreError as error:
            raise LatxaError(f"{self.plan.directory}: {error}; pack again") from None
        arrays["sources"] = self._sources(rows)
        return Batch(**{name: torch.from_numpy(array) for name, array in arrays.items()}, samples=samples)

    def _sources(self, rows: list[int]) -> npt.NDArray[np.int64]:
        """Batch.sources of some rows."""
        found = np.zeros((len(rows), self.seq_length), np.int64)
        for i, r in enumerate(rows):
            slices = self.plan.slices[self.plan.row_offsets[r] : self.plan.row_offsets[r + 1]]
            source = self._source_of_shard[self._first_shard[slices["store"]] + slices["shard"]]
            positions = np.repeat(source, slices["length"].astype(np.int64) - 1)
            found[i, : len(positions)] = positions
        return found
