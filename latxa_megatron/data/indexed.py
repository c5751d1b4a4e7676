"""Megatron's .bin and .idx, written as megatron-core's own builder does: documents of several sequences, of one, or of none.

A token store has one sequence a document and is written in C++; this is for output that must be Megatron-LM's byte for byte.
"""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

_MAGIC = b"MMIDIDX\x00\x00"
_VERSION = 1
_CODES = {"int32": 4, "uint16": 8}
_PIECE = 1 << 20

Counts = npt.NDArray[np.int32]


class IndexedWriter:
    """NAME.bin grows as documents come; the lengths (4 bytes a sequence, 4 a document) are held until finish().

    Both are written under names that end in .tmp: finish() renames them, and close() removes them where it was not reached.
    """

    def __init__(self, prefix: str, dtype: npt.DTypeLike) -> None:
        self.dtype = np.dtype(dtype)
        self._paths = {suffix: Path(f"{prefix}.{suffix}") for suffix in ("bin", "idx")}
        self._bin: Any = self._temporary("bin").open("wb+")
        self._lengths: list[Counts] = []
        self._sequences: list[Counts] = []

    def add(self, ids: npt.NDArray[Any], lengths: Counts, sequences: Counts) -> None:
        """Append documents: ids end to end, the length of each sequence, and how many sequences each document has."""
        self._bin.write(ids.astype(self.dtype, copy=False).data)
        self._lengths.append(lengths.astype(np.int32))
        self._sequences.append(sequences.astype(np.int32))

    def append(self, other: "IndexedWriter") -> None:
        """Append all of another one's documents."""
        other._bin.seek(0)
        while block := other._bin.read(_PIECE << 4):
            self._bin.write(block)
        self._lengths += other._lengths
        self._sequences += other._sequences

    def finish(self) -> None:
        lengths, sequences = (np.concatenate([np.empty(0, np.int32), *all_]) for all_ in (self._lengths, self._sequences))
        self._bin.close()
        with self._temporary("idx").open("wb") as index:
            index.write(_MAGIC + _VERSION.to_bytes(8, "little") + bytes([_CODES[self.dtype.name]]))
            index.write(len(lengths).to_bytes(8, "little") + (len(sequences) + 1).to_bytes(8, "little"))
            index.write(lengths.data)
            _write_sums(index, lengths[:-1], self.dtype.itemsize, none=not len(lengths))
            _write_sums(index, sequences, 1)
        for suffix, path in self._paths.items():
            self._temporary(suffix).replace(path)

    def close(self) -> None:
        self._bin.close()
        for suffix in self._paths:
            self._temporary(suffix).unlink(missing_ok=True)

    def _temporary(self, suffix: str) -> Path:
        return self._paths[suffix].with_name(f"{self._paths[suffix].name}.tmp")


def _write_sums(file: Any, counts: Counts, unit: int, *, none: bool = False) -> None:
    """0 and the sums of the first 1, 2, ... counts, in units, as int64; nothing at all if none."""
    if none:
        return
    last = np.zeros(1, np.int64)
    file.write(last.data)
    for start in range(0, len(counts), _PIECE):
        sums = last + np.cumsum(counts[start : start + _PIECE], dtype=np.int64)
        last = sums[-1:]
        file.write((sums * unit).data)
