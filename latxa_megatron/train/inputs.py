"""From a batch to what this rank's model is given: its share of the positions, laid end to end, with the document borders."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.packed_seq_params import PackedSeqParams
from torch import Tensor

from latxa_megatron.data.dataset import Batch, PackedDataset
from latxa_megatron.model.context import own_positions
from latxa_megatron.model.device import to_device


def padded_length(dataset: PackedDataset) -> int:
    """Positions of a sample as it is trained on: the plan's, or with context parallelism those of the most padded sample.

    Context parallelism cuts each document into 2 cp equal pieces, so each is padded to a multiple of that.
    """
    cp = parallel_state.get_context_parallel_world_size()
    if cp == 1:
        return dataset.seq_length
    unit = 16 * cp * parallel_state.get_tensor_model_parallel_world_size()  # FP8 wants 16 positions on each rank
    return math.ceil(dataset.longest_padded(2 * cp) / unit) * unit


@dataclass(frozen=True)
class Inputs:
    """A microbatch on this process's device: what the model and its loss are given of this rank's t positions.

    tokens, position_ids, labels: int64 [1, t]. loss_mask: float32 [t]. sources: [t]. borders: those of the documents, int32.
    longest: at least the positions of the longest document.
    """

    tokens: Tensor
    position_ids: Tensor
    labels: Tensor
    loss_mask: Tensor
    sources: Tensor
    borders: Tensor
    longest: int

    def of_model(self) -> dict[str, Any]:
        """GPTModel's arguments, in THD format: documents do not see each other."""
        return {
            "input_ids": self.tokens,
            "position_ids": self.position_ids,
            "attention_mask": None,
            "labels": self.labels,
            "packed_seq_params": PackedSeqParams(
                qkv_format="thd",
                cu_seqlens_q=self.borders,
                cu_seqlens_kv=self.borders,
                max_seqlen_q=self.longest,
                max_seqlen_kv=self.longest,
            ),
        }


@dataclass(frozen=True)
class Share:
    """The positions of a batch that this rank holds, t of them; without context parallelism that is all b s.

    places: where in the b s positions laid end to end each stands, int64 [t]; for one that pads a document, its last one.
    loss_mask: float32 [t]. borders: those of the padded documents over all ranks' positions, int32.
    """

    batch: Batch
    places: Tensor
    loss_mask: Tensor
    borders: Tensor

    def of(self, values: Tensor) -> Tensor:
        """This rank's part of [b, s] values."""
        return values.reshape(-1)[self.places]

    def inputs(self) -> Inputs:
        return Inputs(
            tokens=to_device(self.of(self.batch.tokens)).view(1, -1),
            position_ids=to_device(self.of(self.batch.position_ids)).view(1, -1),
            labels=to_device(self.of(self.batch.labels)).view(1, -1),
            loss_mask=to_device(self.loss_mask),
            sources=to_device(self.of(self.batch.sources)),
            borders=to_device(self.borders),
            longest=int(self.borders.diff().max()),
        )


def share(batch: Batch, positions: int) -> Share:
    """This rank's share of a batch that is padded to so many positions, a multiple of its samples' padded_length."""
    cp, rank = parallel_state.get_context_parallel_world_size(), parallel_state.get_context_parallel_rank()
    if cp == 1:
        return Share(batch, torch.arange(batch.tokens.numel()), batch.loss_mask.reshape(-1), batch.cu_seqlens)
    unit = 2 * cp
    lengths = batch.cu_seqlens.diff().long()
    padded = (lengths + unit - 1) // unit * unit
    if rest := positions - int(padded.sum()):  # one more document, of padding alone
        lengths, padded = torch.cat([lengths, torch.zeros(1).long()]), torch.cat([padded, torch.tensor([rest])])
    ends = padded.cumsum(0)
    offset = torch.arange(positions) - torch.repeat_interleave(ends - padded, padded)
    length, start = (torch.repeat_interleave(each, padded) for each in (lengths, lengths.cumsum(0) - lengths))
    places = (start + torch.minimum(offset, length - 1)).clamp(min=0)
    borders = torch.cat([torch.zeros(1), ends]).int()
    own = own_positions(borders, cp, rank)
    loss_mask = batch.loss_mask.reshape(-1)[places] * (offset < length)
    return Share(batch, places[own], loss_mask[own], borders)
