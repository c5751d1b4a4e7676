"""Sources: named sets of files of documents and conversations, cut into chunks that do not depend on workers.

A chunk is a byte range of one file and owns the lines that begin in it, so any number of workers reads the same records in
the same shards. A compressed file is one chunk. Lines are read one at a time and bounded in size: memory does not grow with the
file.
"""

import glob
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from latxa_megatron.data.readers import COMPRESSED, Chunk, Place, is_compressed, lines
from latxa_megatron.data.records import Record, Skipped, parse
from latxa_megatron.errors import LatxaError

CHUNK_BYTES = 64 << 20
"""Bytes of a source that become one shard: the work that a kill can cost."""

MAX_LINE_BYTES = 64 << 20
"""The longest JSONL line that is read. Tokenizing takes many times a line's bytes of memory."""

_SUFFIXES = (".jsonl", ".json", ".ndjson")


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
    """The source whose files match the patterns, sorted. Raises LatxaError for a pattern without a file and an empty file."""
    paths: list[Path] = []
    for pattern in patterns:
        literal = Path(pattern)
        matches = [pattern] if literal.exists() else glob.glob(pattern, recursive=True)  # noqa: PTH207 (takes absolute ones)
        found = sorted(Path(match) for match in matches)
        if not found:
            raise LatxaError(f"{pattern}: there is no such file (source '{name}')")
        paths += [path for path in found if path not in paths]
    for path in paths:
        if path.is_dir():
            raise LatxaError(f"{path}: is a directory (source '{name}'); give its files, as in {path}/*.jsonl")
        if (path.with_suffix("") if is_compressed(path) else path).suffix not in _SUFFIXES:
            known = f"{', '.join(_SUFFIXES)}, with {' or '.join(COMPRESSED)} where it is compressed"
            raise LatxaError(f"{path}: is not a JSONL file (source '{name}'); its name must end in {known}")
        if path.stat().st_size == 0:
            raise LatxaError(f"{path}: is empty (source '{name}')")
    return Source(name, tuple(paths), hold_out, field)


def chunks(path: Path, chunk_bytes: int = CHUNK_BYTES) -> list[Chunk]:
    if is_compressed(path):
        return [Chunk(path, 0, None)]
    size = path.stat().st_size
    return [Chunk(path, start, min(start + chunk_bytes, size)) for start in range(0, size, chunk_bytes)]


def records(chunk: Chunk, max_line_bytes: int = MAX_LINE_BYTES, *, field: str = "text") -> Iterator[Record]:
    """The records of a chunk. Raises LatxaError with file and line for what is no record."""
    for offset, line in lines(chunk, max_line_bytes):
        if line.strip():
            yield parse(line, Place(chunk.path, offset), field)


def records_or_why(chunk: Chunk, max_line_bytes: int = MAX_LINE_BYTES, *, field: str = "text") -> Iterator[Record | Skipped]:
    """The same, with what is no record as Skipped. A line that is too long, or a damaged file, is an error all the same."""
    for offset, line in lines(chunk, max_line_bytes):
        place = Place(chunk.path, offset, in_bytes=True)
        if line.strip():
            try:
                yield parse(line, place, field)
            except LatxaError as error:
                yield Skipped(place, str(error))


def held_out(document_id: str, share: float) -> bool:
    """Whether a document is in the part that stays out of training: a function of its id alone, about `share` of all ids."""
    digest = hashlib.blake2b(document_id.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2**64


def held_out_documents(source: Source) -> list[Record]:
    """The documents of a source that its store does not have."""
    return [
        record
        for path in source.paths
        for chunk in chunks(path)
        for record in records(chunk, field=source.field)
        if record.text is not None and held_out(record.id, source.hold_out)
    ]
