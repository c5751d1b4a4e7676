"""`latxa data build`: sources to a token store.

Each chunk of each file becomes one shard, whatever worker does it, and a shard's summary is written after its files: a build
that was killed is started again with the same command, keeps the shards that are done, and ends with the same bytes.
"""

import itertools
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import numpy as np

from latxa_megatron import _core
from latxa_megatron.data import sources as src
from latxa_megatron.data.chat import Tokens, check_template, encode_conversation
from latxa_megatron.data.sources import Chunk, Record, Source
from latxa_megatron.data.store import FORMAT, MANIFEST, VERSION, ShardInfo, TokenStore, manifest_fingerprint
from latxa_megatron.data.tokenizer import Tokenizer
from latxa_megatron.errors import LatxaError
from latxa_megatron.files import fingerprint, locked, move_into_place, read_json, sha256, write_atomically, write_json

_BATCH = 64
_BATCH_CHARACTERS = 1 << 20
"""Documents tokenized at once: enough to keep the tokenizer's threads busy, few enough to bound its memory."""

Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all) of the sources."""


@dataclass(frozen=True)
class _Task:
    """One shard to write: NAME.bin, .idx, .mask and .json under `prefix`."""

    prefix: Path
    chunk: Chunk
    source: str
    hold_out: float
    token_type: int
    with_mask: bool


def build_store(
    out: Path,
    tokenizer_directory: Path,
    sources: list[Source],
    *,
    workers: int = 1,
    progress: Progress = lambda done, total: None,
) -> TokenStore:
    """Tokenize sources into a new store at `out`; return it at once where it already holds exactly these inputs.

    Raises LatxaError (and leaves nothing behind) for bad input, and where `out` holds something else.
    """
    tokenizer = Tokenizer(tokenizer_directory)
    inputs = _inputs(tokenizer, sources)
    if out.exists():
        return _existing(out, inputs)
    partial = out.with_name(out.name + ".partial")
    partial.mkdir(parents=True, exist_ok=True)
    with locked(partial, "building this store"):
        if out.exists():  # the build that held the lock before this one has finished
            return _existing(out, inputs)
        _resume_or_start(partial, fingerprint(inputs))
        try:
            with_mask = _has_conversations(sources)
            if with_mask:
                check_template(tokenizer)
            tasks = _tasks(partial, sources, 8 if tokenizer.vocab_size <= 65536 else 4, with_mask)
            shards = _run(tasks, tokenizer_directory, workers, progress)
            if not shards:
                names = ", ".join(str(path) for source in sources for path in source.paths)
                raise LatxaError(f"{names}: no document is left for the store; the files hold none, or all are held out")
        except LatxaError:
            _clear(partial)
            partial.rmdir()
            raise
        _finish(partial, inputs, with_mask, shards)
        move_into_place(partial, out)
    return TokenStore(out)


def _existing(out: Path, inputs: dict[str, Any]) -> TokenStore:
    if not (out / MANIFEST).is_file():
        raise LatxaError(f"{out}: exists and is no token store; remove it or name another directory")
    store = TokenStore(out)
    if {key: store.manifest.get(key) for key in inputs} != inputs:
        raise LatxaError(f"{out}: holds a store of other inputs; remove it or name another directory")
    return store


def _finish(partial: Path, inputs: dict[str, Any], with_mask: bool, shards: list[ShardInfo]) -> None:
    """Write the manifest; remove what only a build in progress needs."""
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        **inputs,
        "mask": "spans" if with_mask else "all",
        "shards": [asdict(shard) for shard in shards],
    }
    manifest["fingerprint"] = manifest_fingerprint(manifest)
    write_json(partial / MANIFEST, manifest)
    for left in [partial / "inputs", *partial.glob("*.json")]:
        if left.name != MANIFEST:
            left.unlink()


def _clear(partial: Path) -> None:
    """Empty a build's directory, its note first: what a kill leaves of it is then never taken for finished shards."""
    (partial / "inputs").unlink(missing_ok=True)
    for file in partial.iterdir():
        file.unlink()


def _inputs(tokenizer: Tokenizer, sources: list[Source]) -> dict[str, Any]:
    """All that decides a store's bytes, as JSON."""
    if len({source.name for source in sources}) != len(sources):
        raise LatxaError("two sources have the same name; give each its own")
    return {
        "tokenizer": {
            "fingerprint": tokenizer.fingerprint,
            "vocab_size": tokenizer.vocab_size,
            "bos": tokenizer.bos_id,
            "document_end": tokenizer.document_end_id,
            "template": fingerprint(tokenizer.chat_template) if tokenizer.chat_template else None,
        },
        "settings": {"chunk_bytes": src.CHUNK_BYTES, "order": [source.name for source in sources]},
        "sources": {
            source.name: {
                "hold_out": source.hold_out,
                "files": [{"path": str(p), "bytes": p.stat().st_size, "sha256": sha256(p)} for p in source.paths],
            }
            for source in sources
        },
    }


def _resume_or_start(partial: Path, inputs: str) -> None:
    """Keep what a killed build of the same inputs left, and nothing else."""
    note = partial / "inputs"
    if not (note.is_file() and note.read_text() == inputs):
        _clear(partial)
        write_atomically(note, inputs)


def _has_conversations(sources: list[Source]) -> bool:
    """Whether the first record of any file is a conversation."""
    firsts = (next(src.records(chunk), None) for source in sources for p in source.paths for chunk in src.chunks(p)[:1])
    return any(record is not None and record.messages is not None for record in firsts)


def _tasks(directory: Path, sources: list[Source], token_type: int, with_mask: bool) -> list[_Task]:
    pieces = [(source, chunk) for source in sources for path in source.paths for chunk in src.chunks(path)]
    return [
        _Task(directory / f"{i:05d}", chunk, source.name, source.hold_out, token_type, with_mask)
        for i, (source, chunk) in enumerate(pieces)
    ]


def _run(tasks: list[_Task], tokenizer_directory: Path, workers: int, progress: Progress) -> list[ShardInfo]:
    """Write the shards that are not there yet; all of them in order, but for those without a document."""
    total = sum(task.chunk.end - task.chunk.start for task in tasks)
    done = 0
    infos: dict[str, ShardInfo] = {}

    def finished(task: _Task, info: ShardInfo) -> None:
        nonlocal done
        infos[info.name] = info
        done += task.chunk.end - task.chunk.start
        progress(done, total)

    progress(0, total)
    left = []
    for task in tasks:
        summary = task.prefix.with_suffix(".json")
        if summary.exists():
            finished(task, ShardInfo(**read_json(summary)))
        else:
            left.append(task)
    if workers > 1 and len(left) > 1:
        with ProcessPoolExecutor(min(workers, len(left)), get_context("spawn"), _start_worker, (tokenizer_directory,)) as pool:
            running = {pool.submit(_write_shard_in_worker, task): task for task in left}
            try:
                for future in as_completed(running):
                    finished(running[future], future.result())
            except BrokenProcessPool:
                raise LatxaError("a worker was killed, probably for want of memory; start again with fewer --workers") from None
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    elif left:
        tokenizer = Tokenizer(tokenizer_directory)
        for task in left:
            finished(task, _write_shard(tokenizer, task))
    return [infos[task.prefix.name] for task in tasks if infos[task.prefix.name].documents]


_worker_tokenizer: Tokenizer


def _start_worker(tokenizer_directory: Path) -> None:
    global _worker_tokenizer  # one tokenizer for each worker process, loaded once
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _worker_tokenizer = Tokenizer(tokenizer_directory)


def _end_with_parent() -> None:
    """A worker whose build was killed must not write on, into the shards of the one that is started again."""
    parent = parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _write_shard_in_worker(task: _Task) -> ShardInfo:
    return _write_shard(_worker_tokenizer, task)


def _write_shard(tokenizer: Tokenizer, task: _Task) -> ShardInfo:
    writer = _core.ShardWriter(str(task.prefix), task.token_type, task.with_mask)
    for tokens in _encode(tokenizer, task):
        ids = np.asarray(tokens.ids, dtype=np.int32)
        writer.add(ids, np.asarray(tokens.spans, dtype=np.int32).reshape(-1, 2))
    sums = {}
    if writer.documents:
        writer.finish()
        suffixes = ["bin", "idx"] + (["mask"] if task.with_mask else [])
        sums = {suffix: sha256(task.prefix.with_suffix(f".{suffix}")) for suffix in suffixes}
    info = ShardInfo(task.prefix.name, task.source, writer.documents, writer.tokens, writer.trained_tokens, sums)
    write_json(task.prefix.with_suffix(".json"), asdict(info))
    return info


def _encode(tokenizer: Tokenizer, task: _Task) -> Iterator[Tokens]:
    for batch in _batches(src.records(task.chunk)):
        kept = [r for r in batch if r.text is None or not src.held_out(r.id, task.hold_out)]
        texts = [r.text for r in kept if r.text is not None]
        ids, offsets = tokenizer.encode_documents(texts)
        encoded = iter([ids[start:end].tolist() for start, end in itertools.pairwise(offsets)])
        for record in kept:
            yield _tokens(tokenizer, record, encoded, task)


def _batches(records: Iterator[Record]) -> Iterator[list[Record]]:
    batch: list[Record] = []
    characters = 0
    for record in records:
        batch.append(record)
        characters += len(record.text or "")
        if len(batch) == _BATCH or characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _tokens(tokenizer: Tokenizer, record: Record, encoded: Iterator[list[int]], task: _Task) -> Tokens:
    if record.messages is None:
        ids = next(encoded)
        return Tokens(ids, [(0, len(ids))])
    if not task.with_mask:
        raise LatxaError(f"{record.place}: a conversation among the documents of '{task.source}'; give it its own source")
    if task.hold_out:
        raise LatxaError(f"{record.place}: hold_out is for documents, and '{task.source}' has conversations; set it to 0 there")
    return encode_conversation(tokenizer, record.messages, record.place)
