"""Writes a torch_dist directory as megatron-core reads it, in the memory of a piece of a tensor, without a process group.

A tensor is written as pieces, each of which is read from wherever it comes from when its turn is there. The files are torch's
distributed checkpoint, written by torch's own writer; the same input gives the same bytes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from megatron.core.dist_checkpointing.core import CheckpointingConfig, save_config
from torch import Tensor
from torch.distributed.checkpoint import FileSystemWriter
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, TensorWriteData, WriteItem, WriteItemType


@dataclass(frozen=True)
class Piece:
    """A part of a stored tensor: where it begins, its sizes, and what reads it; the result has these sizes."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    read: Callable[[], Tensor]


@dataclass(frozen=True)
class Stored:
    """A tensor of the checkpoint, and the pieces that it is made of."""

    name: str
    sizes: tuple[int, ...]
    dtype: torch.dtype
    pieces: Sequence[Piece]


def write_torch_dist(directory: Path, tensors: Sequence[Stored], common: dict[str, Any]) -> None:
    """Fill an empty directory. common: what is no tensor, for common.pt.

    Raises OSError where the disk does, and what a piece's read raises.
    """
    writer = _Writer(directory)
    planner = _Planner(tensors)
    writer.set_up_storage_writer(True)
    plan = writer.prepare_global_plan([writer.prepare_local_plan(planner.create_local_plan())])[0]
    results = writer.write_data(plan, planner).value()
    writer.finish(planner.metadata(), [results])
    torch.save(common, directory / "common.pt")
    save_config(CheckpointingConfig("torch_dist", 1), str(directory))


class _Writer(FileSystemWriter):
    """Leaves out what is another thing each time: a random id, and the path."""

    def storage_meta(self) -> None:
        return None


class _Planner(SavePlanner):
    """Gives torch's writer the pieces; each is read when it is written."""

    def __init__(self, tensors: Sequence[Stored]) -> None:
        self._tensors = tensors
        self._reads: dict[MetadataIndex, Callable[[], Tensor]] = {}

    def metadata(self) -> Metadata:
        return Metadata(
            {
                tensor.name: TensorStorageMetadata(
                    TensorProperties(tensor.dtype), torch.Size(tensor.sizes), [_chunk(piece) for piece in tensor.pieces]
                )
                for tensor in self._tensors
            }
        )

    def create_local_plan(self) -> SavePlan:
        items = []
        for tensor in self._tensors:
            for i, piece in enumerate(tensor.pieces):
                index = MetadataIndex(tensor.name, torch.Size(piece.offsets), i)
                data = TensorWriteData(_chunk(piece), TensorProperties(tensor.dtype), torch.Size(piece.sizes))
                items.append(WriteItem(index, WriteItemType.SHARD, tensor_data=data))
                self._reads[index] = piece.read
        return SavePlan(items)

    def resolve_data(self, write_item: WriteItem) -> Tensor:
        return self._reads[write_item.index]()

    def set_up_planner(self, *_: Any, **__: Any) -> None:
        """There is no state dict to plan from."""

    def create_global_plan(self, all_plans: list[SavePlan]) -> tuple[list[SavePlan], Metadata]:
        return all_plans, self.metadata()

    def finish_plan(self, new_plan: SavePlan) -> SavePlan:
        return new_plan


def _chunk(piece: Piece) -> ChunkStorageMetadata:
    return ChunkStorageMetadata(torch.Size(piece.offsets), torch.Size(piece.sizes))
