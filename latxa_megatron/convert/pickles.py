"""The pickles of a torch_dist directory, read without running any code of theirs.

What is of a class or a function that is not known here is an object without content.
"""

import io
import pickle
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import Metadata
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
    if not isinstance(found, Metadata):
        raise ValueError("no list of tensors")
    return found


class _OfMetadata(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and isinstance(found := getattr(torch, name, None), torch.dtype):
            return found
        return super().find_class(module, name) if (module, name) in _OF_METADATA else Unknown
