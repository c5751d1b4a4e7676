"""Rows of Parquet and Arrow files (.arrow is what `datasets` saves), a batch at a time, and where such a file is cut.

A chunk is one or more whole row groups (Parquet) or record batches (Arrow). One that is far larger than a shard is read from its
beginning, as a compressed file is, and becomes several shards. Only the columns that a record needs are read; memory is that of
a few megabytes of rows, and of a page or record batch.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from latxa_megatron.data.readers import Chunk
from latxa_megatron.data.records import columns
from latxa_megatron.errors import LatxaError

if TYPE_CHECKING:
    import pyarrow as pa

_BATCH_BYTES = 4 << 20
_BATCH_ROWS = 1024
_END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"


class _Group(NamedTuple):
    """A row group or record batch. bytes: uncompressed ones, in Parquet of all columns."""

    rows: int
    bytes: int


Row = dict[str, Any]


def cut(path: Path, chunk_bytes: int, field: str = "text") -> list[Chunk]:
    """The chunks of a table, each of chunk_bytes or more; one from 2 chunk_bytes on has windows of about chunk_bytes.

    Raises LatxaError for a damaged file, and for one that has no column of texts or conversations.
    """
    with _reading(path):
        groups = _file(path, field).groups()
    file_bytes, total = path.stat().st_size, sum(group.bytes for group in groups) or 1
    found: list[Chunk] = []
    start = row = weight = before = 0
    for i, group in enumerate(groups):
        row, weight = row + group.rows, weight + group.bytes
        if weight >= chunk_bytes or i == len(groups) - 1:
            shards = weight // chunk_bytes
            window = -(-(row - start) // shards) if shards >= 2 and row - start >= 2 else None
            size = (before + weight) * file_bytes // total - before * file_bytes // total
            found.append(Chunk(path, start, row, size, window))
            start, before, weight = row, before + weight, 0
    return found or [Chunk(path, 0, 0, file_bytes)]


def rows(chunk: Chunk, field: str = "text") -> Iterator[tuple[int, Row | None]]:
    """(number, row) of each row of a chunk; None for a row that is not UTF-8. Raises LatxaError for a damaged file."""
    start, end = chunk.start, chunk.end or 0
    with _reading(chunk.path):
        for first, batch in _file(chunk.path, field).batches(start, end):
            skip = max(0, start - first)
            yield from enumerate(_as_python(batch.slice(skip, end - first - skip)), first + skip)


def _as_python(batch: "pa.RecordBatch") -> list[Row | None]:
    try:
        return list(batch.to_pylist())
    except UnicodeDecodeError:
        if len(batch) == 1:
            return [None]
        return [row for i in range(len(batch)) for row in _as_python(batch.slice(i, 1))]


class _Parquet:
    def __init__(self, path: Path, field: str) -> None:
        import pyarrow.parquet as pq

        self._file = pq.ParquetFile(str(path), pre_buffer=False, buffer_size=1 << 20, page_checksum_verification=True)
        self._columns = _known(path, self._file.schema_arrow.names, field)

    def groups(self) -> list[_Group]:
        metadata = self._file.metadata  # where it is damaged, asking for a group's columns would end the process
        found = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
        if sum(group.num_rows for group in found) != metadata.num_rows:
            raise ValueError("its row groups have other rows than the footer says")
        return [_Group(group.num_rows, group.total_byte_size) for group in found]

    def batches(self, start: int, end: int) -> Iterator[tuple[int, "pa.RecordBatch"]]:
        """(number of the first row, rows) of batches that together have the rows [start, end), and some around them."""
        at = 0
        for i, group in enumerate(self.groups()):
            first, at = at, at + group.rows
            if at <= start or first >= end:
                continue
            size = max(1, min(_BATCH_ROWS, _BATCH_BYTES * group.rows // (group.bytes or 1)))
            for batch in self._file.iter_batches(size, row_groups=[i], columns=self._columns, use_threads=False):
                if first + len(batch) > start and first < end:
                    yield first, batch
                first += len(batch)
            if first != at:
                raise ValueError(f"row group {i + 1} has other rows than it says")


class _Arrow:
    """Arrow's IPC formats: the stream, which has no index, and the file."""

    def __init__(self, path: Path, field: str) -> None:
        import pyarrow as pa

        self._source = pa.memory_map(str(path))
        whole = self._source.read_at(6, 0) == b"ARROW1"
        if not whole and self._source.read_at(8, max(0, self._source.size() - 8)) != _END_OF_STREAM:
            raise pa.ArrowInvalid("the stream has no end")
        self._reader = pa.ipc.open_file(self._source) if whole else pa.ipc.open_stream(self._source)
        self._columns = _known(path, self._reader.schema.names, field)

    def _batches(self) -> "Iterator[pa.RecordBatch]":
        import pyarrow as pa

        if isinstance(self._reader, pa.ipc.RecordBatchFileReader):
            found = (self._reader.get_batch(i) for i in range(self._reader.num_record_batches))
        else:
            found = iter(self._reader)
        return (batch.select(self._columns) for batch in found)

    def groups(self) -> list[_Group]:
        return [_Group(len(batch), batch.get_total_buffer_size()) for batch in self._batches()]

    def batches(self, start: int, end: int) -> Iterator[tuple[int, "pa.RecordBatch"]]:
        at = 0
        for batch in self._batches():
            first, at = at, at + len(batch)
            if at <= start:
                continue
            if first >= end:
                break
            batch.validate(full=True)  # its bytes are used as they lie in the file, and offsets in them as they are
            size = max(1, min(_BATCH_ROWS, _BATCH_BYTES * len(batch) // (batch.nbytes or 1)))
            for i in range(max(0, start - first) // size * size, len(batch), size):
                if first + i < end:
                    yield first + i, batch.slice(i, size)


def _known(path: Path, names: list[str], field: str) -> list[str]:
    """The columns that are read, of those that there are."""
    if not {field, "messages", "conversations"} & set(names):
        raise LatxaError(
            f"{path}: has neither a column '{field}' nor 'messages'; its columns are {', '.join(names)}; --field names the texts'"
        )
    return [name for name in dict.fromkeys(columns(field)) if name in names]


def _file(path: Path, field: str) -> _Parquet | _Arrow:
    return _Parquet(path, field) if path.suffix == ".parquet" else _Arrow(path, field)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        import pyarrow as pa
    except ImportError:
        raise LatxaError(f"{path}: needs pyarrow to be read; pip install 'latxa-megatron[parquet]'") from None
    try:
        yield
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        raise LatxaError(f"{path}: is damaged, cut short or of another format ({reason}); make it again") from None
