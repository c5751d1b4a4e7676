"""Reads parts of the tensors in a torch_dist directory: one layer of a stacked tensor, say, in the memory of that part."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadPlan, ReadItem
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

from latxa_megatron.errors import LatxaError


class TorchDistReader:
    """The tensors of a checkpoint by name, whatever ranks wrote it. Needs no process group.

    Raises LatxaError for a directory that is no torch_dist checkpoint.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._reader = FileSystemReader(directory)
        try:
            self._metadata = self._reader.read_metadata()
        except Exception as error:  # the metadata is a pickle: a damaged one raises anything
            raise LatxaError(f"{directory}: is not a whole torch_dist checkpoint ({error})") from None
        self._reader.set_up_storage_reader(self._metadata, True)

    def _stored(self, name: str) -> TensorStorageMetadata:
        stored = self._metadata.state_dict_metadata.get(name)
        if not isinstance(stored, TensorStorageMetadata):
            raise LatxaError(f"{self._directory}: has no tensor {name}; it is the checkpoint of another model")
        return stored

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._stored(name).size)

    def read(self, name: str, layer: int | None = None) -> Tensor:
        """A tensor, or with `layer` one entry of its first axis, which is not in the result."""
        stored = self._stored(name)
        sizes = list(stored.size) if layer is None else [1, *stored.size[1:]]
        offsets = [0] * len(sizes) if layer is None else [layer, *[0] * (len(sizes) - 1)]
        part = torch.empty(sizes, dtype=stored.properties.dtype)
        chunk = ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes))
        items = create_read_items_for_chunk_list(name, stored, [chunk])
        try:
            self._reader.read_data(LoadPlan(items), _Into(part)).wait()
        except (OSError, EOFError, RuntimeError, KeyError) as error:
            raise LatxaError(f"{self._directory}: {name} cannot be read; the checkpoint is damaged ({error})") from None
        return part if layer is None else part[0]


class _Into(DefaultLoadPlanner):
    """Puts what is read into one tensor."""

    def __init__(self, tensor: Tensor) -> None:
        super().__init__()
        self._tensor = tensor

    def resolve_tensor(self, read_item: ReadItem) -> Tensor:
        place = self._tensor
        for axis, (start, length) in enumerate(zip(read_item.dest_offsets, read_item.lengths, strict=True)):
            place = place.narrow(axis, start, length)
        return place

    def commit_tensor(self, read_item: ReadItem, tensor: Any) -> None:
        """Nothing is left to do: the tensor was written in place."""
