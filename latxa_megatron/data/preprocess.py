"""What Megatron-LM's tools/preprocess_data.py makes of JSONL, byte for byte: PREFIX_KEY_document.bin and .idx.

Not a token store: no manifest, no masks, and Megatron-LM's choices. Control tokens spelled in a text become control tokens,
what the tokenizer puts around a text (Llama's BOS) is there, and so is a document of which no token is left.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import orjson

from latxa_megatron.data import sources as src
from latxa_megatron.data.engine import inserted
from latxa_megatron.data.indexed import Counts, IndexedWriter
from latxa_megatron.data.megatron_tokenizer import SENTENCEPIECE, MegatronTokenizer, hugging_face, sentence_piece
from latxa_megatron.data.pool import Pool
from latxa_megatron.data.readers import Chunk, Place, lines
from latxa_megatron.data.records import no_json
from latxa_megatron.errors import LatxaError

Progress = Callable[[int, int], None]
Line = tuple[int, bytes]
"""Its offset in the file, and what stands in it."""

_BLOCK_BYTES = 8 << 20
"""What a worker does at a time; the ids go back to the process that writes."""

_BATCH_BYTES = 1 << 20
"""What is tokenized at once."""


@dataclass(frozen=True)
class Options:
    """Megatron-LM's. partitions: documents are dealt out to so many parts, which are written one after the other."""

    tokenizer: str
    keys: tuple[str, ...] = ("text",)
    append_eod: bool = False
    include_special_tokens: bool = True
    trust_remote_code: bool = False
    workers: int = 1
    partitions: int = 1
    keep_sequential_samples: bool = False
    tokenizer_type: str = "HuggingFaceTokenizer"

    def load(self) -> MegatronTokenizer:
        if self.tokenizer_type in SENTENCEPIECE:
            return sentence_piece(self.tokenizer)
        return hugging_face(self.tokenizer, around=self.include_special_tokens, trust_remote_code=self.trust_remote_code)


class Encoded(NamedTuple):
    """Documents in a row: ids end to end, the length of each sequence, and how many sequences each document has."""

    ids: npt.NDArray[Any]
    lengths: Counts
    sequences: Counts


Found = dict[str, Encoded]
"""By key."""

_NONE = Encoded(np.empty(0, np.uint16), np.empty(0, np.int32), np.empty(0, np.int32))


def preprocess(files: list[Path], prefix: str, options: Options, progress: Progress = lambda documents, size: None) -> None:
    """Write PREFIX_KEY_document.bin and .idx for each key. progress: called with the documents and bytes read so far.

    Raises LatxaError, and leaves nothing behind, for a file, tokenizer or line that cannot be used.
    """
    tokenizer = options.load()
    if options.append_eod and tokenizer.eod is None:
        raise LatxaError(f"--append-eod: the tokenizer {options.tokenizer} has no end-of-sequence token")
    tokenizer.accelerate(_beginning(files[0], options.keys))
    parts = 1 if options.keep_sequential_samples else options.partitions
    Path(prefix).parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        writers = {key: _writers(stack, f"{prefix}_{key}_document", tokenizer.dtype, parts) for key in options.keys}
        documents = size = 0
        here = tokenizer if options.workers == 1 else None
        pool = stack.enter_context(Pool(options.workers, _start, options, here, tokenizer.accelerated))
        for block, found in stack.enter_context(closing(pool.in_order(_encode_task, _blocks(files)))):
            for key, encoded in found.items():
                for part, writer in enumerate(writers[key]):
                    writer.add(*_dealt(encoded, (part - documents) % parts, parts))
            documents += len(encoded.sequences)
            size += block.size
            progress(documents, size)
        for first, *others in writers.values():
            for writer in others:
                first.append(writer)
            first.finish()


def _writers(stack: ExitStack, name: str, dtype: npt.DTypeLike, parts: int) -> list[IndexedWriter]:
    names = [name, *(f"{name}.{part}" for part in range(1, parts))]
    return [stack.enter_context(closing(IndexedWriter(each, dtype))) for each in names]


def _dealt(encoded: Encoded, first: int, step: int) -> Encoded:
    """Every step-th document, from the first one on."""
    if step == 1:
        return encoded
    chosen = np.arange(len(encoded.sequences)) % step == first
    of_sequence = np.repeat(chosen, encoded.sequences)
    of_token = np.repeat(of_sequence, encoded.lengths)
    return Encoded(encoded.ids[of_token], encoded.lengths[of_sequence], encoded.sequences[chosen])


class _Block(NamedTuple):
    """Some lines of a file: those of a chunk, or, of a compressed file, which one process reads, the lines themselves."""

    chunk: Chunk
    size: int
    lines: list[Line] | None = None


def _blocks(files: list[Path]) -> Iterator[_Block]:
    for file in files:
        for chunk in src.chunks(file, _BLOCK_BYTES):
            if chunk.end is not None:
                yield _Block(chunk, chunk.end - chunk.start)
            else:
                for group in _groups(lines(chunk, src.MAX_LINE_BYTES), _BLOCK_BYTES):
                    yield _Block(chunk, sum(len(line) for _, line in group), group)


def _groups(every: Iterable[Line], size: int) -> Iterator[list[Line]]:
    """Lines in groups of so many bytes, or a few more."""
    group: list[Line] = []
    held = 0
    for line in every:
        group.append(line)
        held += len(line[1])
        if held >= size:
            yield group
            group, held = [], 0
    if group:
        yield group


_worker: tuple[Options, MegatronTokenizer]


def _start(options: Options, tokenizer: MegatronTokenizer | None, fast: bool) -> None:
    global _worker  # one tokenizer for each process, loaded once
    if tokenizer is None:
        tokenizer = options.load()
        if fast:
            tokenizer.accelerate([])
    _worker = options, tokenizer


def _encode_task(block: _Block) -> Found:
    return _encode_block(block, *_worker)


def _encode_block(block: _Block, options: Options, tokenizer: MegatronTokenizer) -> Found:
    every = block.lines if block.lines is not None else lines(block.chunk, src.MAX_LINE_BYTES)
    found: dict[str, list[Encoded]] = {key: [] for key in options.keys}
    for group in _groups(every, _BATCH_BYTES):
        parsed = [parse(line, Place(block.chunk.path, offset), options.keys) for offset, line in group if line.strip()]
        for i, key in enumerate(options.keys):
            found[key].append(_encode([document[i] for document in parsed], options.append_eod, tokenizer))
    return {key: _joined(batches) for key, batches in found.items()}


def _joined(batches: list[Encoded]) -> Encoded:
    columns = zip(_NONE, *batches, strict=True)
    return Encoded(*(np.concatenate(column) for column in columns))


def _encode(documents: list[list[str]], append_eod: bool, tokenizer: MegatronTokenizer) -> Encoded:
    """Documents, each a list of sequences. A sequence of no token is left out; the last that is there gets the EOD."""
    of_document = np.repeat(np.arange(len(documents)), [len(sequences) for sequences in documents])
    ids, offsets = tokenizer.encode([text for sequences in documents for text in sequences])
    lengths = np.diff(offsets).astype(np.int32)
    there = np.flatnonzero(lengths)
    sequences = np.bincount(of_document[there], minlength=len(documents)).astype(np.int32)
    lengths = lengths[there]
    if append_eod:
        last = np.cumsum(sequences)[sequences > 0] - 1
        ids = inserted(ids, offsets[1:][there][last], np.full(len(last), tokenizer.eod))
        lengths[last] += 1
    return Encoded(ids.astype(tokenizer.dtype, copy=False), lengths, sequences)


def parse(line: bytes, place: Place, keys: tuple[str, ...]) -> list[list[str]]:
    """The sequences of each key of a line: one of a text, several of a list. Raises LatxaError with file and line."""
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError:
        value = _slowly(line, place)
    found = []
    for key in keys:
        texts = value.get(key) if isinstance(value, dict) else None
        texts = [texts] if isinstance(texts, str) else texts
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise LatxaError(f"{place}: the line is no JSON object with a string '{key}'")
        found.append(texts)
    return found


def _slowly(line: bytes, place: Place) -> Any:
    """A line that orjson refuses: it has NaN or deep nesting, or half of a surrogate pair, or it is no JSON."""
    try:
        value = json.loads(line)
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeError:
        raise LatxaError(f"{place}: the line is not UTF-8, or holds half of a surrogate pair") from None
    except (ValueError, RecursionError) as error:
        raise no_json(place, error) from None
    return value


def _beginning(file: Path, keys: tuple[str, ...]) -> list[str]:
    """The first texts of a file, to prove a faster tokenizer on."""
    every = (line for chunk in src.chunks(file) for line in lines(chunk, src.MAX_LINE_BYTES))
    parsed = [parse(line, Place(file, offset), keys) for offset, line in next(_groups(every, _BATCH_BYTES), []) if line.strip()]
    return [text for document in parsed for sequences in document for text in sequences]
