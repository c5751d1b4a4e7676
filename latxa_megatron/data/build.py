"""`latxa data build`: sources to a token store.

Each chunk of each file becomes one shard, whatever worker does it, and a shard's summary is written after its files: a build
that was killed is started again with the same command, keeps the shards that are done, and ends with the same bytes.
"""

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from latxa_megatron.data import sources as src
from latxa_megatron.data.chat import check_template
from latxa_megatron.data.records import Record
from latxa_megatron.data.shards import Encoders, Task, Written, finished, write_shards
from latxa_megatron.data.sources import Source
from latxa_megatron.data.store import FORMAT, MANIFEST, SKIPPED, VERSION, TokenStore, existing_store, manifest_fingerprint
from latxa_megatron.data.tokenizer import SpecialTokens, Tokenizer
from latxa_megatron.errors import LatxaError
from latxa_megatron.files import fingerprint, locked, move_into_place, sha256, write_atomically, write_json

Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all) of the sources."""

_PROOF_CHARACTERS = 250_000
"""Text of each source on which a faster tokenizer is compared with the reference."""


def build_store(
    out: Path,
    tokenizer_directory: Path,
    sources: list[Source],
    *,
    workers: int = 1,
    skip_errors: bool = False,
    special_tokens: SpecialTokens = "text",
    progress: Progress = lambda done, total: None,
    say: Callable[[str], None] = lambda line: None,
) -> TokenStore:
    """Tokenize sources into a new store at `out`; return it at once where it already holds exactly these inputs.

    skip_errors: leave lines out that are no record, and say which in the store's skipped.txt. special_tokens: what control tokens
    are that stand literally in a text. say: told which tokenizer runs.
    Raises LatxaError (and leaves nothing behind) for bad input, and where `out` holds something else.
    """
    tokenizer = Tokenizer(tokenizer_directory, special_tokens)
    before = _stamps(sources)
    inputs = _inputs(tokenizer, sources, skip_errors)
    if out.exists():
        return existing_store(out, inputs)
    partial = out.with_name(out.name + ".partial")
    partial.mkdir(parents=True, exist_ok=True)
    with locked(partial, "building this store"):
        if out.exists():  # the build that held the lock before this one has finished
            return existing_store(out, inputs)
        _resume_or_start(partial, fingerprint(inputs))
        try:
            with_mask = _has_conversations(sources)
            if with_mask:
                check_template(tokenizer)
            say(f"tokenizer: {tokenizer.accelerate(_texts(sources))}")
            tasks = _tasks(partial, sources, 8 if tokenizer.vocab_size <= 65536 else 4, with_mask, skip_errors)
            shards = _run(tasks, tokenizer, workers, progress)
            _check_unchanged(before, _stamps(sources))
            if not any(shard.info.documents for shard in shards):
                names = ", ".join(str(path) for source in sources for path in source.paths)
                raise LatxaError(f"{names}: no document is left for the store; the files hold none, or all are held out")
        except LatxaError:
            _clear(partial)
            partial.rmdir()
            raise
        _finish(partial, inputs, with_mask, shards)
        move_into_place(partial, out)
    return TokenStore(out)


def _finish(partial: Path, inputs: dict[str, Any], with_mask: bool, shards: list[Written]) -> None:
    """Write the manifest, and what was skipped; remove what only a build in progress needs."""
    skipped = [line for shard in shards for line in shard.skipped]
    if skipped:
        write_atomically(partial / SKIPPED, "".join(f"{line}\n" for line in skipped))
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        **inputs,
        "mask": "spans" if with_mask else "all",
        "shards": [asdict(shard.info) for shard in shards if shard.info.documents],
        **({"skipped": len(skipped)} if skipped else {}),
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


def _inputs(tokenizer: Tokenizer, sources: list[Source], skip_errors: bool) -> dict[str, Any]:
    """All that decides a store's bytes, as JSON; what is as it was before there was a choice is not named."""
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
        "settings": {
            "chunk_bytes": src.CHUNK_BYTES,
            "order": [source.name for source in sources],
            **({"on_error": "skip"} if skip_errors else {}),
            **({"special_tokens": tokenizer.special_tokens} if tokenizer.special_tokens != "text" else {}),
        },
        "sources": {
            source.name: {
                "hold_out": source.hold_out,
                **({"field": source.field} if source.field != "text" else {}),
                "files": [{"path": str(p), "bytes": p.stat().st_size, "sha256": sha256(p)} for p in source.paths],
            }
            for source in sources
        },
    }


def _stamps(sources: list[Source]) -> dict[Path, tuple[int, int]]:
    """Size and time of change of every file."""
    return {path: (stat.st_size, stat.st_mtime_ns) for source in sources for path in source.paths for stat in [path.stat()]}


def _check_unchanged(before: dict[Path, tuple[int, int]], after: dict[Path, tuple[int, int]]) -> None:
    """Raise LatxaError for a file that was written to since its hash was taken: the store would be of neither content."""
    for path, stamp in before.items():
        if after[path] != stamp:
            raise LatxaError(f"{path}: was changed while the store was built; start again when nothing writes to it")


def _resume_or_start(partial: Path, inputs: str) -> None:
    """Keep what a killed build of the same inputs left, and nothing else."""
    note = partial / "inputs"
    if not (note.is_file() and note.read_text() == inputs):
        _clear(partial)
        write_atomically(note, inputs)


def _has_conversations(sources: list[Source]) -> bool:
    """Whether the first record of any file is a conversation."""
    firsts = (next(_first_records(source, path), None) for source in sources for path in source.paths)
    return any(record is not None and record.messages is not None for record in firsts)


def _first_records(source: Source, path: Path) -> Iterator[Record]:
    """The records of a file's first chunk."""
    read = src.records_or_why(src.chunks(path)[0], field=source.field)
    return (record for record in read if isinstance(record, Record))


def _texts(sources: list[Source]) -> list[str]:
    """The beginning of each source's documents, and what its conversations say."""
    found = []
    for source in sources:
        left = _PROOF_CHARACTERS
        for record in _first_records(source, source.paths[0]):
            texts = [record.text] if record.text is not None else [m["content"] for m in record.messages or []]
            found += [text[:left] for text in texts]
            left -= sum(map(len, texts))
            if left <= 0:
                break
    return found


def _tasks(directory: Path, sources: list[Source], token_type: int, with_mask: bool, skip_errors: bool) -> list[Task]:
    pieces = [(source, chunk) for source in sources for path in source.paths for chunk in src.chunks(path)]
    return [
        Task(directory / f"{i:05d}", chunk, source, token_type, with_mask, skip_errors, src.CHUNK_BYTES)
        for i, (source, chunk) in enumerate(pieces)
    ]


def _bytes(task: Task) -> int:
    """Those of the file that a task reads."""
    return task.chunk.path.stat().st_size if task.chunk.end is None else task.chunk.end - task.chunk.start


def _run(tasks: list[Task], tokenizer: Tokenizer, workers: int, progress: Progress) -> list[Written]:
    """Write the shards that are not there yet; all of them in order."""
    total = sum(map(_bytes, tasks))
    done = 0
    written: dict[Path, list[Written]] = {}

    def finish(task: Task, shards: list[Written]) -> None:
        nonlocal done
        written[task.prefix] = shards
        done += _bytes(task)
        progress(done, total)

    progress(0, total)
    left = []
    for task in tasks:
        if (shards := finished(task)) is not None:
            finish(task, shards)
        else:
            left.append(task)
    if workers > 1 and len(left) > 1:
        how = (tokenizer.directory, tokenizer.special_tokens, tokenizer.accelerated)
        with ProcessPoolExecutor(min(workers, len(left)), get_context("spawn"), _start_worker, how) as pool:
            running = {pool.submit(_write_in_worker, task): task for task in left}
            try:
                for future in as_completed(running):
                    finish(running[future], future.result())
            except BrokenProcessPool:
                raise LatxaError("a worker was killed, probably for want of memory; start again with fewer --workers") from None
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    else:
        encoders = Encoders(tokenizer)
        for task in left:
            finish(task, write_shards(encoders, task))
    return [shard for task in tasks for shard in written[task.prefix]]


_worker_encoders: Encoders


def _start_worker(tokenizer_directory: Path, special_tokens: SpecialTokens, accelerated: bool) -> None:
    global _worker_encoders  # one tokenizer for each worker process, loaded once
    os.environ.update(TOKENIZERS_PARALLELISM="false", RAYON_NUM_THREADS="1")
    threading.Thread(target=_end_with_parent, daemon=True).start()
    tokenizer = Tokenizer(tokenizer_directory, special_tokens)
    if accelerated:
        tokenizer.accelerate_as_proved()
    _worker_encoders = Encoders(tokenizer)


def _end_with_parent() -> None:
    """A worker whose build was killed must not write on, into the shards of the one that is started again."""
    parent = parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _write_in_worker(task: Task) -> list[Written]:
    return write_shards(_worker_encoders, task)
