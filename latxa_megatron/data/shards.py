"""A chunk of a source to shards of a token store: read, tokenize, write.

A shard has the documents whose line begins in one window of the source's (decompressed) bytes, or a table's rows of one window,
so its bytes depend on nothing else. A plain file is cut into chunks of one window each; a compressed file can only be read from
its beginning, so it is one chunk of many windows, and so is a large row group. A shard's summary is written after its files: a
shard with a summary is done.
"""

import itertools
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

from latxa_megatron import _core
from latxa_megatron.data import sources as src
from latxa_megatron.data.conversations import Conversation, ConversationEncoder
from latxa_megatron.data.readers import Chunk
from latxa_megatron.data.records import Record, Skipped
from latxa_megatron.data.sources import Source
from latxa_megatron.data.store import ShardInfo
from latxa_megatron.data.tokenizer import Tokenizer
from latxa_megatron.errors import LatxaError
from latxa_megatron.files import read_json, sha256, write_json

_BATCH = 512
_BATCH_CHARACTERS = 1 << 21
"""Documents tokenized at once: enough to keep the tokenizer's threads busy, few enough to bound its memory."""


@dataclass(frozen=True)
class Task:
    """A chunk to make shards of: NAME.bin, .idx and .mask under `prefix`, or, where it has windows, under NAME-WINDOW.

    aside: files are written in a directory of the attempt's own and then moved, because on another machine a process that was
    given up for dead may still be writing the same shards.
    """

    prefix: Path
    chunk: Chunk
    source: Source
    token_type: int
    with_mask: bool
    skip_errors: bool
    aside: bool = False


class Encoders:
    """What a process turns records into tokens with; conversations only where the store has masks."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer

    @cached_property
    def conversations(self) -> ConversationEncoder:
        return ConversationEncoder(self.tokenizer)


@dataclass(frozen=True)
class Written:
    """A shard, and the lines that were left out of it, each as one line of text."""

    info: ShardInfo
    skipped: list[str]


def finished(task: Task) -> list[Written] | None:
    """What an earlier build left of a task that it had done."""
    summary = task.prefix.with_suffix(".json")
    return [_read(value) for value in read_json(summary)] if summary.exists() else None


def write_shards(encoders: Encoders, task: Task) -> list[Written]:
    """Write a task's shards that are not there yet; all of them, in order. Raises LatxaError for what is no record."""
    with _place(task) as place:
        return _write_all(encoders, task, place)


WORK = "work"
"""The directory, in that of a build, for what only those at work need."""


@contextmanager
def _place(task: Task) -> Iterator[Path]:
    """The directory to write a task's files in."""
    if task.aside:
        work = task.prefix.parent / WORK
        work.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=work) as place:
            yield Path(place)
    else:
        yield task.prefix.parent


def _write_all(encoders: Encoders, task: Task, place: Path) -> list[Written]:
    written = []
    start, window = task.chunk.start, task.chunk.window
    if window is None:
        written.append(_write(encoders, task, place / task.prefix.name, _records(task, task.chunk)))
    else:
        while (summary := _window(task, len(written)).with_suffix(".json")).exists():
            written.append(_read(read_json(summary)))
        rest = _records(task, replace(task.chunk, start=start + len(written) * window))
        for number, group in itertools.groupby(rest, lambda record: (record.place.offset - start) // window):
            prefix = _window(task, number)
            written.append(_write(encoders, task, place / prefix.name, group))
            _finish(place / prefix.name, prefix, _as_json(written[-1]))
    _finish(place / task.prefix.name, task.prefix, [_as_json(each) for each in written])
    return written


def _finish(at: Path, prefix: Path, summary: object) -> None:
    """Write a summary, and move it and the files that it is of to their place where they are not there; the summary last."""
    write_json(at.with_suffix(".json"), summary)
    if at != prefix:
        for suffix in (".bin", ".mask", ".idx", ".json"):
            if (file := at.with_suffix(suffix)).exists():
                file.rename(prefix.with_suffix(suffix))


def _window(task: Task, number: int) -> Path:
    return task.prefix.with_name(f"{task.prefix.name}-{number:05d}")


def _as_json(written: Written) -> dict[str, object]:
    return {"info": asdict(written.info), "skipped": written.skipped}


def _read(value: dict[str, object]) -> Written:
    return Written(ShardInfo(**value["info"]), list(value["skipped"]))  # type: ignore[arg-type, call-overload]


def _records(task: Task, chunk: Chunk) -> Iterator[Record | Skipped]:
    read = src.records_or_why if task.skip_errors else src.records
    return read(chunk, field=task.source.field)


def _write(encoders: Encoders, task: Task, prefix: Path, records: Iterable[Record | Skipped]) -> Written:
    writer = _core.ShardWriter(str(prefix), task.token_type, task.with_mask)
    skipped: list[str] = []
    for batch in _batches(records):
        for some in _runs(batch):
            if some[0].text is not None:
                _add_documents(writer, encoders.tokenizer, task, some, skipped)
            else:
                _add_conversations(writer, encoders, task, some, skipped)
        skipped += [each.why for each in batch if isinstance(each, Skipped)]
    sums = {}
    if writer.documents:
        writer.finish()
        suffixes = ["bin", "idx"] + (["mask"] if task.with_mask else [])
        sums = {suffix: sha256(prefix.with_suffix(f".{suffix}")) for suffix in suffixes}
    info = ShardInfo(prefix.name, task.source.name, writer.documents, writer.tokens, writer.trained_tokens, sums)
    return Written(info, skipped)


def _runs(batch: list[Record | Skipped]) -> Iterator[list[Record]]:
    """The records of a batch, documents apart from conversations, in order."""
    records = [each for each in batch if isinstance(each, Record)]
    return (list(group) for _, group in itertools.groupby(records, lambda record: record.text is None))


def _add_documents(
    writer: _core.ShardWriter, tokenizer: Tokenizer, task: Task, records: list[Record], skipped: list[str]
) -> None:
    share = task.source.hold_out
    kept = [record for record in records if not (share and src.held_out(record.id, share))]
    if task.skip_errors and tokenizer.special_tokens == "error":
        kept = [record for record in kept if not _refused(tokenizer, record, skipped)]
    texts = [record.text or "" for record in kept]
    writer.add_whole(*tokenizer.encode_documents(texts, [record.place for record in kept]))


def _refused(tokenizer: Tokenizer, record: Record, skipped: list[str]) -> bool:
    try:
        tokenizer.check_text(record.text or "", record.place)
    except LatxaError as error:
        skipped.append(str(error))
        return True
    return False


def _add_conversations(
    writer: _core.ShardWriter, encoders: Encoders, task: Task, records: list[Record], skipped: list[str]
) -> None:
    what = None
    if not task.with_mask:
        what = f"a conversation among the documents of '{task.source.name}'; give it its own source"
    elif task.source.hold_out:
        what = f"hold_out is for documents, and '{task.source.name}' has conversations; set it to 0 there"
    if what and not task.skip_errors:
        raise LatxaError(f"{records[0].place}: {what}")
    if what:
        skipped += [f"{record.place}: {what}" for record in records]
        return
    refused: dict[int, LatxaError] | None = {} if task.skip_errors else None
    encoded = encoders.conversations.encode(
        [Conversation(record.messages or [], record.place, record.tools) for record in records], refused
    )
    for i in range(len(records)):
        if refused and i in refused:
            skipped.append(str(refused[i]))
        else:
            writer.add(*encoded[i])


def _batches(records: Iterable[Record | Skipped]) -> Iterator[list[Record | Skipped]]:
    batch: list[Record | Skipped] = []
    characters = 0
    for record in records:
        batch.append(record)
        characters += len(record.line) if isinstance(record, Record) else 0
        if len(batch) == _BATCH or characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
