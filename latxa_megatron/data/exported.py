"""Exports, read: the samples of a plan in training order, as packed records in a few large files. See docs/formats.md.

A sample is one read of one file: a parallel file system sees large sequential reads, and no stores. `export.py` writes them.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from latxa_megatron import _core
from latxa_megatron.errors import LatxaError
from latxa_megatron.files import fingerprint, read_json

FORMAT = "latxa-export"
VERSION = 1
MANIFEST = "manifest.json"
SUFFIXES = {"records": ("records", "index"), "parquet": ("idx.parquet",)}
"""The files of each layout."""

_OPEN_FILES = 64
"""Files that are kept open; training reads them one after the other."""


def manifest_fingerprint(manifest: dict[str, Any]) -> str:
    """SHA-256 over all of a manifest but the fingerprint itself."""
    return fingerprint({key: value for key, value in manifest.items() if key != "fingerprint"})


class Export:
    """A finished export. Raises LatxaError for a directory that is none, or whose manifest was changed by hand."""

    def __init__(self, directory: Path) -> None:
        if not (directory / MANIFEST).is_file():
            raise LatxaError(f"{directory}: is not an export (it has no {MANIFEST}); `latxa data export` makes one")
        self.directory = directory
        self.manifest: dict[str, Any] = read_json(directory / MANIFEST)
        if self.manifest.get("format") != FORMAT or self.manifest.get("version") != VERSION:
            raise LatxaError(f"{directory / MANIFEST}: is not an export of version {VERSION}; export again")
        if self.manifest.get("fingerprint") != manifest_fingerprint(self.manifest):
            raise LatxaError(f"{directory / MANIFEST}: was changed since it was written; export again")

    @property
    def layout(self) -> str:
        return str(self.manifest["layout"])

    @property
    def fingerprint(self) -> str:
        """That of the plan whose samples these are."""
        return str(self.manifest["plan"])

    @property
    def seq_length(self) -> int:
        return int(self.manifest["seq_length"])

    @property
    def vocab_size(self) -> int:
        return int(self.manifest["vocab_size"])

    def __len__(self) -> int:
        return int(self.manifest["samples"])


class ExportReader:
    """The samples of an export, for PackedDataset. sources: as in PackedDataset. Raises LatxaError for the Parquet layout."""

    def __init__(self, export: Export) -> None:
        if export.layout != "records":
            raise LatxaError(f"{export.directory}: holds Parquet for Megatron-Bridge; latxa reads a plan or `--format records`")
        self.export = export
        self.sources = [str(name) for name in export.manifest["sources"]]
        self._in_file = int(export.manifest["samples_per_file"])
        self._files: dict[int, _core.RecordFile] = {}

    def batch(self, samples: list[int]) -> dict[str, npt.NDArray[Any]]:
        """The arrays of dataset.Batch. Raises LatxaError where a file is missing or damaged."""
        try:
            places = [(self.file(n // self._in_file), n % self._in_file) for n in samples]
            return dict(_core.read_records(places, self.export.seq_length, 0))
        except (_core.StoreError, IndexError) as error:
            raise LatxaError(f"{error}; export again") from None

    def documents(self, first: int, last: int) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
        """Of samples first to last - 1, a file at a time: the positions of each document, and each sample's first document."""
        for begin in range(first - first % self._in_file, last, self._in_file):
            try:
                file = self.file(begin // self._in_file)
                tokens, borders = file.documents(max(first - begin, 0), min(last - begin, self._in_file))
            except (_core.StoreError, IndexError) as error:
                raise LatxaError(f"{error}; export again") from None
            yield tokens - 1, borders

    def all_documents(self) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
        """The same of all samples."""
        return self.documents(0, len(self.export))

    def file(self, number: int) -> _core.RecordFile:
        """A file of the export, opened where it is not open yet. Raises StoreError where it is missing or damaged."""
        file = self._files.pop(number, None)
        if file is None:
            file = _core.RecordFile(str(self.export.directory / f"{number:05d}"), len(self.sources))
            if len(self._files) == _OPEN_FILES:
                del self._files[next(iter(self._files))]  # the one that was not read for longest
        self._files[number] = file
        return file
