"""Sources: named sets of files of documents and conversations, cut into chunks that do not depend on workers.

A chunk is a byte range of one file and owns the lines that begin in it, or whole row groups of a table, so any number of workers
reads the same records in the same shards. A compressed file is one chunk. Lines are read one at a time and bounded in size, rows
a few megabytes at a time: memory does not grow with the file.
"""

import glob
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from latxa_megatron.data.hub import HUB, fetch
from latxa_megatron.data.layouts import files_of_directory
from latxa_megatron.data.readers import (
    COMPRESSED,
    LINES,
    TABLES,
    Chunk,
    Place,
    cut_lines,
    file_format,
    is_compressed,
    is_table,
    too_long,
)
from latxa_megatron.data.records import Record, Skipped, parse, parse_row
from latxa_megatron.data.tables import cut, rows
from latxa_megatron.errors import LatxaError

CHUNK_BYTES = 64 << 20
"""Bytes of a source that become one shard: the work that a kill can cost."""

MAX_LINE_BYTES = 64 << 20
"""The longest JSONL line that is read. Tokenizing takes many times a line's bytes of memory."""


@dataclass(frozen=True)
class Source:
    """A named set of files.

    hold_out: the share of its documents that stay out of the store (conversations all stay in). field: the one that has the text.
    """

    name: str
    paths: tuple[Path, ...]
    hold_out: float = 0.0
    field: str = "text"


def find(name: str, patterns: list[str], hold_out: float = 0.0, field: str = "text") -> Source:
    """The source whose files match the patterns, sorted; a pattern can be a data set's directory or its name on the hub, too.

    Raises LatxaError for a pattern without a file, an empty file, and a data set of which it is not clear what is meant.
    """
    paths: list[Path] = []
    for pattern in patterns:
        found = fetch(pattern) if pattern.startswith(HUB) else _matches(pattern)
        if not found:
            raise LatxaError(f"{pattern}: there is no such file (source '{name}')")
        paths += [path for path in found if path not in paths]
    for path in paths:
        if file_format(path.name) is None:
            known = f"{', '.join(LINES)}, with {' or '.join(COMPRESSED)} where it is compressed, or in {' or '.join(TABLES)}"
            raise LatxaError(f"{path}: is neither JSONL nor a table (source '{name}'); its name must end in {known}")
        if path.stat().st_size == 0:
            raise LatxaError(f"{path}: is empty (source '{name}')")
    return Source(name, tuple(paths), hold_out, field)


def _matches(pattern: str) -> list[Path]:
    """The files of a path, a glob, a data set's directory, or one and its split, as in DIRECTORY:train."""
    directory, _, split = pattern.rpartition(":")
    if directory and not Path(pattern).exists() and Path(directory).is_dir():
        return files_of_directory(Path(directory), split)
    matches = [pattern] if Path(pattern).exists() else glob.glob(pattern, recursive=True)  # noqa: PTH207 (takes absolute ones)
    found = sorted(Path(match) for match in matches)
    return [file for path in found for file in (files_of_directory(path) if path.is_dir() else [path])]


def chunks(path: Path, chunk_bytes: int = CHUNK_BYTES, *, field: str = "text") -> list[Chunk]:
    """The chunks of a file, at least one. Raises LatxaError for a damaged table, and for one without the field."""
    if is_table(path):
        return cut(path, chunk_bytes, field)
    size = path.stat().st_size
    if is_compressed(path):
        return [Chunk(path, 0, None, size, window=chunk_bytes)]
    ends = [min(start + chunk_bytes, size) for start in range(0, size, chunk_bytes)]
    return [Chunk(path, start, end, end - start) for start, end in zip([0, *ends], ends, strict=False)]


def records(chunk: Chunk, max_line_bytes: int = MAX_LINE_BYTES, *, field: str = "text") -> Iterator[Record]:
    """The records of a chunk. Raises LatxaError with file and line (or row) for what is no record."""
    for found in _parsed(chunk, max_line_bytes, field, in_bytes=False):
        if isinstance(found, Skipped):
            raise LatxaError(found.why)
        yield found


def records_or_why(chunk: Chunk, max_line_bytes: int = MAX_LINE_BYTES, *, field: str = "text") -> Iterator[Record | Skipped]:
    """The same, with what is no record, or too long, as Skipped. A damaged file is an error all the same."""
    return _parsed(chunk, max_line_bytes, field, in_bytes=True)


def _parsed(chunk: Chunk, max_line_bytes: int, field: str, *, in_bytes: bool) -> Iterator[Record | Skipped]:
    if is_table(chunk.path):
        for number, row in rows(chunk, field):
            place = Place(chunk.path, number)
            found = _or_why(place, parse_row, row, place, field)
            if isinstance(found, Record) and len(found.line) > max_line_bytes:
                found = Skipped(place, str(too_long(place, "row", max_line_bytes)))
            yield found
    else:
        for offset, line in cut_lines(chunk, max_line_bytes):
            place = Place(chunk.path, offset, in_bytes)
            if len(line) > max_line_bytes:
                yield Skipped(place, str(too_long(place, "line", max_line_bytes)))
            elif line.strip():
                yield _or_why(place, parse, line, place, field)


def _or_why(place: Place, parsing: Callable[..., Record], *arguments: object) -> Record | Skipped:
    try:
        return parsing(*arguments)
    except LatxaError as error:
        return Skipped(place, str(error))


def held_out(document_id: str, share: float) -> bool:
    """Whether a document is in the part that stays out of training: a function of its id alone, about `share` of all ids."""
    digest = hashlib.blake2b(document_id.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2**64


def held_out_documents(source: Source) -> list[Record]:
    """The documents of a source that its store does not have."""
    return [
        record
        for path in source.paths
        for chunk in chunks(path, field=source.field)
        for record in records(chunk, field=source.field)
        if record.text is not None and held_out(record.id, source.hold_out)
    ]
