"""Lines of a source file, as it is or compressed with gzip or zstd, with the byte at which each begins.

Rows of Parquet and Arrow files are read in tables.py, in chunks and with places of the same kind.
"""

import gzip
import io
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import zstandard

from latxa_megatron.errors import LatxaError

COMPRESSED = (".gz", ".zst")
LINES = (".jsonl", ".json", ".ndjson")
TABLES = (".parquet", ".arrow")

_BUFFER = 1 << 20
"""With Python's own 8 KB, reading lines takes twice the time, of books as of pages."""


@dataclass(frozen=True)
class Chunk:
    """The lines of a file that begin in its bytes [start, end), decompressed ones where it is compressed, or a table's rows.

    end: None is the file's end. size: bytes of the file, as it lies there, that the chunk stands for. window: bytes or rows of
    one shard, where the chunk becomes several; None where it becomes one.
    """

    path: Path
    start: int
    end: int | None
    size: int
    window: int | None = None


@dataclass(frozen=True)
class Place:
    """A line by its byte offset, or a row by its number from 0.

    As text it is file:line, and only then are lines counted; or file:byte, for many of them; or file:row, counted from 1.
    """

    path: Path
    offset: int
    in_bytes: bool = False

    def __str__(self) -> str:
        if is_table(self.path):
            return f"{self.path}:row {self.offset + 1}"
        if self.in_bytes:
            return f"{self.path}:byte {self.offset}"
        with opened(self.path) as file:
            line, left = 1, self.offset
            while left > 0 and (block := file.read(min(left, 1 << 20))):
                line += block.count(b"\n")
                left -= len(block)
        return f"{self.path}:{line}"


def file_format(name: str) -> str | None:
    """What a file's name says it holds: ".jsonl" (lines, compressed or not), ".parquet", ".arrow", or nothing that is known."""
    path = Path(name)
    if is_table(path):
        return path.suffix
    return ".jsonl" if (path.with_suffix("") if is_compressed(path) else path).suffix in LINES else None


def is_compressed(path: Path) -> bool:
    return path.suffix in COMPRESSED


def is_table(path: Path) -> bool:
    return path.suffix in TABLES


def opened(path: Path) -> BinaryIO:
    """A file's decompressed bytes. Reading raises EOFError where a compressed one is cut short."""
    if path.suffix == ".gz":
        return gzip.open(path, "rb")  # type: ignore[return-value]
    if path.suffix == ".zst":
        return io.BufferedReader(_Zstd(path), _BUFFER)
    return path.open("rb", _BUFFER)


class _Zstd(io.RawIOBase):
    """The frames of a .zst file, one after the other; zstandard's own reader takes a frame that is cut short for a whole one."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self._frame: zstandard.ZstdDecompressionObj | None = None
        self._compressed, self._ready = b"", memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "memoryview") -> int:  # type: ignore[override]
        while not self._ready:
            compressed = self._compressed or self._file.read(1 << 17)
            if not compressed:
                if self._frame is not None:
                    raise EOFError("it ends inside a frame")
                return 0
            self._frame = self._frame or zstandard.ZstdDecompressor().decompressobj()
            self._ready = memoryview(self._frame.decompress(compressed))
            self._compressed = b""
            if self._frame.eof:
                self._compressed, self._frame = self._frame.unused_data, None
        n = min(len(buffer), len(self._ready))
        buffer[:n] = self._ready[:n]
        self._ready = self._ready[n:]
        return n

    def close(self) -> None:
        self._file.close()
        super().close()


def lines(chunk: Chunk, max_line_bytes: int) -> Iterator[tuple[int, bytes]]:
    """(offset, line) of each line of a chunk. Raises LatxaError for a longer one, and for a file that does not decompress."""
    for offset, line in cut_lines(chunk, max_line_bytes):
        if len(line) > max_line_bytes:
            raise too_long(Place(chunk.path, offset), "line", max_line_bytes)
        yield offset, line


def cut_lines(chunk: Chunk, max_line_bytes: int) -> Iterator[tuple[int, bytes]]:
    """The same with the first max_line_bytes + 1 bytes of each line that is longer."""
    whole: int | None = None
    try:
        for whole, line in _lines(chunk, max_line_bytes):
            yield whole, line
    except (EOFError, gzip.BadGzipFile, zlib.error, zstandard.ZstdError) as error:
        where, after = (chunk.path, "") if whole is None else (Place(chunk.path, whole), " after this line")
        raise LatxaError(f"{where}: the file is damaged or cut short{after} ({error}); compress it again") from None


def _lines(chunk: Chunk, max_line_bytes: int) -> Iterator[tuple[int, bytes]]:
    with opened(chunk.path) as file:
        offset = chunk.start
        if chunk.start > 0:  # the line under the cut belongs to the chunk before
            left = chunk.start - 1
            if not is_compressed(chunk.path):
                left -= file.seek(left)
            while left > 0 and (block := file.read(min(left, 1 << 20))):
                left -= len(block)
            offset += _rest(file) - 1
        while (chunk.end is None or offset < chunk.end) and (line := file.readline(max_line_bytes + 1)):
            yield offset, line
            offset += len(line)
            if len(line) > max_line_bytes and not line.endswith(b"\n"):
                offset += _rest(file)


def _rest(file: BinaryIO) -> int:
    """Reads to the end of a line; its bytes."""
    size = 0
    while head := file.readline(1 << 20):
        size += len(head)
        if head.endswith(b"\n"):
            break
    return size


def too_long(place: Place, what: str, max_bytes: int) -> LatxaError:
    return LatxaError(f"{place}: the {what} is longer than {max_bytes >> 20} MB; split the document into several")
