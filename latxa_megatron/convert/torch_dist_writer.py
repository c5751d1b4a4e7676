"""Writes a torch_dist directory as megatron-core reads it, in the memory of a piece of a tensor, without a process group.

A tensor is written as pieces, each of which is read from wherever it comes from when its turn is there. A file of the directory
is pieces one after the other, each as torch.save writes it; which stands where is in torch's metadata. The same input gives the
same bytes.
"""

import math
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import torch
from megatron.core.dist_checkpointing.core import CheckpointingConfig, save_config
from torch import Tensor
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from latxa_megatron.convert.hashed import HashedFile, hashed
from latxa_megatron.convert.threads import ahead
from latxa_megatron.convert.torch_dist_reader import COMMON, METADATA
from latxa_megatron.files import sha256

CONFIG = "metadata.json"


@dataclass(frozen=True)
class Stored:
    """A tensor of the checkpoint."""

    name: str
    sizes: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True)
class Piece:
    """A part of a tensor: where it begins, its sizes, and what reads it; the result has these sizes."""

    tensor: Stored
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    read: Callable[[], Tensor]

    @property
    def bytes(self) -> int:
        return math.prod(self.sizes) * self.tensor.dtype.itemsize


class TorchDistWriter:
    """Fills an empty directory. write_file may be called by several threads, each with another number."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._sums: dict[str, str] = {}
        self._places: dict[int, list[tuple[Piece, _StorageInfo]]] = {}
        self._objects: dict[str, _StorageInfo] = {}

    def write_file(self, number: int, pieces: Sequence[Piece], report: Callable[[int], None] = lambda size: None) -> None:
        """Write a file of pieces, in their order. report: told of the bytes of each piece.

        Raises OSError where the disk does, and what a piece's read raises.
        """
        path = self._directory / f"__0_{number}.distcp"
        places = []
        with hashed(path, self._sums) as file:
            for piece, content in zip(pieces, ahead(piece.read() for piece in pieces), strict=True):
                begin = file.tell()
                _save(content, file)
                places.append((piece, _StorageInfo(path.name, begin, file.tell() - begin)))
                report(piece.bytes)
        self._places[number] = places

    def write_empty(self, number: int, names: Sequence[str]) -> None:
        """Write a file of objects without content, as megatron-core does for modules that have no state of their own."""
        path = self._directory / f"__0_{number}.distcp"
        with hashed(path, self._sums) as file:
            for name in names:
                begin = file.tell()
                _save([None], file)
                self._objects[name] = _StorageInfo(path.name, begin, file.tell() - begin)

    def finish(self, common: dict[str, Any]) -> dict[str, str]:
        """Write the metadata of all that was written; the SHA-256 of each file. common: what is no tensor."""
        tensors: dict[Stored, list[ChunkStorageMetadata]] = {}
        storage: dict[MetadataIndex, _StorageInfo] = {}
        for _, places in sorted(self._places.items()):
            for piece, info in places:
                chunk = ChunkStorageMetadata(torch.Size(piece.offsets), torch.Size(piece.sizes))
                tensors.setdefault(piece.tensor, []).append(chunk)
                storage[MetadataIndex(piece.tensor.name, chunk.offsets)] = info
        storage |= {MetadataIndex(name): info for name, info in self._objects.items()}
        described: dict[str, Any] = dict.fromkeys(self._objects, BytesStorageMetadata())
        for tensor, chunks in tensors.items():
            properties = TensorProperties(tensor.dtype)
            described[tensor.name] = TensorStorageMetadata(properties, torch.Size(tensor.sizes), chunks)
        (self._directory / METADATA).write_bytes(pickle.dumps(Metadata(described, storage_data=storage)))
        torch.save(common, self._directory / COMMON)
        save_config(CheckpointingConfig("torch_dist", 1), str(self._directory))
        return {**self._sums, **{name: sha256(self._directory / name) for name in (METADATA, COMMON, CONFIG)}}


def _save(value: Any, file: HashedFile) -> None:
    """torch.save; OSError where the disk says so."""
    try:
        torch.save(value, cast("IO[bytes]", file))
    except RuntimeError:  # where the disk is full torch goes on to end its archive, and says that alone
        if file.failed is None:
            raise
        raise file.failed from None
