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
    samples: list[int]  # their numbers in the plan


class PackedDataset:
    """The samples of a plan. Sample N depends on the plan and N alone; reading holds no state. Costs O(positions)."""

    def __init__(self, plan: Path) -> None:
        self.plan = PackPlan(plan)
        shards = [store.shards for store in self.plan.stores]
        self._gatherer = _core.Gatherer(shards, self.plan.row_offsets, self.plan.slices.view("u1"))

    def __len__(self) -> int:
        return len(self.plan)

    @property
    def seq_length(self) -> int:
        return self.plan.seq_length

    def document_positions(self, first: int, last: int) -> npt.NDArray[np.int64]:
        """Positions of each document, or piece of one, in samples first to last - 1, without reading them."""
        rows = [self.plan.row(sample) for sample in range(first, last)]
        borders = self.plan.row_offsets
        return np.concatenate([self.plan.slices["length"][borders[r] : borders[r + 1]] for r in rows]).astype(np.int64) - 1

    def batch(self, samples: list[int]) -> Batch:
        """The samples with these numbers. Raises IndexError past the end, LatxaError where a file is damaged."""
        for sample in samples:
            if not 0 <= sample < len(self.plan):
                raise IndexError(f"sample {sample} of a plan with {len(self.plan)}")
        try:
            arrays = self._gatherer.batch([self.plan.row(n) for n in samples], self.seq_length, 0)
        except _core.StoreError as error:
            raise LatxaError(f"{self.plan.directory}: {error}; pack again") from None
        return Batch(**{name: torch.from_numpy(array) for name, array in arrays.items()}, samples=samples)
