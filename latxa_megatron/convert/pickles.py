"""The pickles of a torch_dist directory, read without running any code of theirs.

What is of a class or a function that is not known here is an object without content.
"""

import io
import pickle
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

_OF_METADATA = {
    *(("torch.distributed.checkpoint.metadata", name) for name in ("Metadata", "MetadataIndex", "StorageMeta")),
    *(("torch.distributed.checkpoint.metadata", f"{kind}StorageMetadata") for kind in ("Tensor", "Bytes", "Chunk")),
    *(("torch.distributed.checkpoint.metadata", name) for name in ("TensorProperties", "_MEM_FORMAT_ENCODING")),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch.serialization", "_get_layout"),
    ("torch", "Size"),
    ("collections", "OrderedDict"),
}
"""Module and name of all that the list of tensors is made of, but for torch's types."""


class Unknown:
    """In place of an object of a class that is not known as safe."""

    def __new__(cls, *_: Any, **__: Any) -> "Unknown":
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        pass


def load_safely(content: bytes) -> Any:
    """What torch.save wrote. Raises what torch.load does where it is damaged."""
    unknown = get_unsafe_globals_in_checkpoint(io.BytesIO(content))
    with safe_globals([(Unknown, name) for name in unknown]):
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def read_metadata(file: Path) -> Metadata:
    """.metadata, the list of tensors and where they stand, of which torch's own reader runs all. Damaged, it raises anything."""
    found = _OfMetadata(io.BytesIO(file.read_bytes())).load()
    if not isinstance(found, Metadata) or not all(_is_described(*item) for item in found.state_dict_metadata.items()):
        raise ValueError("no list of tensors")
    for info in found.storage_data.values():
        if [type(each) for each in (info.relative_path, info.offset, info.length)] != [str, int, int]:
            raise ValueError("no list of places")
    return found


def _is_described(name: Any, stored: Any) -> bool:
    """Whether an entry of the list has all that is asked of it. Raises AttributeError or TypeError where it lacks something."""
    if not isinstance(stored, TensorStorageMetadata):
        return isinstance(name, str)
    sizes = [stored.size, *(each for chunk in stored.chunks for each in (chunk.offsets, chunk.sizes))]
    typed = isinstance(name, str) and isinstance(stored.properties.dtype, torch.dtype)
    return typed and all(isinstance(each, torch.Size) and len(each) == len(stored.size) for each in sizes)


class _OfMetadata(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and isinstance(found := getattr(torch, name, None), torch.dtype):
            return found
        return super().find_class(module, name) if (module, name) in _OF_METADATA else Unknown
