"""Writes safetensors files tensor by tensor, each in pieces; the safetensors library wants all of a file's tensors in memory.

The format: 8 bytes with the length of a JSON header, the header, the numbers (https://github.com/huggingface/safetensors).
"""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from latxa_megatron.convert.hashed import hashed
from latxa_megatron.convert.threads import ahead

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Entry:
    """A tensor of a file, and its rows in pieces, in order; these are asked for when the file is written."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    pieces: Iterator[Tensor]

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def write_safetensors(
    path: Path, entries: Sequence[Entry], sums: dict[str, str], report: Callable[[int], None] = lambda size: None
) -> None:
    """Write a file, and put its SHA-256 into sums by its name. report: told of the bytes of each piece.

    Raises OSError where the disk does, and what the pieces raise.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for entry in entries:
        begin, end = end, end + entry.bytes
        header[entry.name] = {"dtype": NAMES[entry.dtype], "shape": list(entry.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with hashed(path, sums) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for entry in entries:
            for piece in ahead(entry.pieces):
                report(file.write(piece.contiguous().view(torch.uint8).numpy().data))
        if file.tell() != 8 + len(text) + end:
            raise AssertionError(f"{path}: the pieces are not as large as the tensors")
