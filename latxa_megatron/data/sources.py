"""Sources: JSONL files of documents (`text`) and conversations (`messages`), cut into chunks that do not depend on workers.

A chunk is a byte range of one file and owns the lines that begin in it, so any number of workers reads the same records in
the same shards. Lines are read one at a time and bounded in size: memory does not grow with the file.
"""

import glob
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latxa_megatron.errors import LatxaError

CHUNK_BYTES = 64 << 20
"""Bytes of a source that become one shard: the work that a kill can cost."""

MAX_LINE_BYTES = 64 << 20
"""The longest JSONL line that is read. Tokenizing takes many times a line's bytes of memory."""

Message = dict[str, Any]


@dataclass(frozen=True)
class Source:
    """A named set of files. hold_out is the share of its documents that stay out of the store (conversations all stay in)."""

    name: str
    paths: tuple[Path, ...]
    hold_out: float = 0.0


@dataclass(frozen=True)
class Chunk:
    """The lines of a file that begin in bytes [start, end)."""

    path: Path
    start: int
    end: int


@dataclass(frozen=True)
class Place:
    """A line by its byte offset; as text it is file:line, and only then are lines counted."""

    path: Path
    offset: int

    def __str__(self) -> str:
        with self.path.open("rb") as file:
            line, left = 1, self.offset
            while left > 0:
                block = file.read(min(left, 1 << 20))
                line += block.count(b"\n")
                left -= len(block)
        return f"{self.path}:{line}"


@dataclass(frozen=True)
class Record:
    """A document (text is set) or a conversation (messages is set)."""

    id: str
    place: Place
    text: str | None = None
    messages: list[Message] | None = None


def find(name: str, patterns: list[str], hold_out: float = 0.0) -> Source:
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
        if path.suffix not in (".jsonl", ".json", ".ndjson"):
            raise LatxaError(f"{path}: is not a JSONL file (source '{name}'); decompress or convert it to .jsonl first")
        if path.stat().st_size == 0:
            raise LatxaError(f"{path}: is empty (source '{name}')")
    return Source(name, tuple(paths), hold_out)


def chunks(path: Path, chunk_bytes: int = CHUNK_BYTES) -> list[Chunk]:
    size = path.stat().st_size
    return [Chunk(path, start, min(start + chunk_bytes, size)) for start in range(0, size, chunk_bytes)]


def records(chunk: Chunk, max_line_bytes: int = MAX_LINE_BYTES) -> Iterator[Record]:
    """The records of a chunk. Raises LatxaError with file and line for what is no record."""
    for offset, line in _lines(chunk, max_line_bytes):
        place = Place(chunk.path, offset)
        if line.strip():
            yield _record(line, place)


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
        for record in records(chunk)
        if record.text is not None and held_out(record.id, source.hold_out)
    ]


def _lines(chunk: Chunk, max_line_bytes: int) -> Iterator[tuple[int, bytes]]:
    with chunk.path.open("rb") as file:
        offset = chunk.start
        if chunk.start > 0:  # the line under the cut belongs to the chunk before
            file.seek(chunk.start - 1)
            while (head := file.readline(1 << 20)) and not head.endswith(b"\n"):
                pass
            offset = file.tell()
        while offset < chunk.end and (line := file.readline(max_line_bytes + 1)):
            if len(line) > max_line_bytes:
                raise LatxaError(
                    f"{Place(chunk.path, offset)}: the line is longer than {max_line_bytes >> 20} MB; "
                    "split the document into several"
                )
            yield offset, line
            offset += len(line)


def _record(line: bytes, place: Place) -> Record:
    try:
        value = json.loads(line)
    except UnicodeDecodeError:
        raise LatxaError(f"{place}: the line is not UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise LatxaError(f"{place}: the line is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise LatxaError(f"{place}: the line is not a JSON object with 'text' or 'messages'")
    turns = value.get("messages", value.get("conversations"))
    if turns is not None:
        for key in ("tools", "system"):
            if value.get(key):
                raise LatxaError(f"{place}: '{key}' beside the messages would be lost; put it into a system message")
        return Record(_id(value, line, place), place, messages=_messages(turns, place))
    text = value.get("text")
    if not isinstance(text, str):
        raise LatxaError(f"{place}: the object has neither a string 'text' nor a list 'messages'")
    return Record(_id(value, line, place), place, text=_whole(text, place))


def _id(value: dict[str, Any], line: bytes, place: Place) -> str:
    return _whole(str(value["id"]), place) if value.get("id") is not None else hashlib.sha256(line).hexdigest()


def _whole(text: str, place: Place) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise LatxaError(f"{place}: the text holds half of a surrogate pair, which is no character") from None
    return text


_SHAREGPT_ROLES = {"human": "user", "gpt": "assistant"}


def _messages(turns: Any, place: Place) -> list[Message]:
    """Messages as {"role", "content"}, from that form or ShareGPT's {"from", "value"}."""
    if not isinstance(turns, list) or not turns:
        raise LatxaError(f"{place}: a conversation is a list of at least one message")
    messages = []
    for turn in turns:
        if not isinstance(turn, dict):
            raise LatxaError(f"{place}: a message is an object with 'role' and 'content'")
        role, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
        if not isinstance(role, str) or not isinstance(content, str):
            raise LatxaError(f"{place}: a message needs a string 'role' and a string 'content'")
        if turn.get("tool_calls"):
            raise LatxaError(f"{place}: a message with 'tool_calls' is not supported; write the call into its content")
        messages.append({"role": _SHAREGPT_ROLES.get(role, role), "content": _whole(content, place)})
    return messages
