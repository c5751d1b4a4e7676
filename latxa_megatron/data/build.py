"""`latxa data build`: sources to a token store.

Each chunk of each file becomes one shard, whatever worker does it, and a shard's summary is written after its files: a build
that was killed is started again with the same command, keeps the shards that are done, and ends with the same bytes.
"""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from latxa_megatron.data import sources as src
from latxa_megatron.data.chat import check_template
from latxa_megatron.data.ray_cluster import on_ray
from latxa_megatron.data.records import Record
from latxa_megatron.data.shards import WORK, Task, Written, finished
from latxa_megatron.data.shares import Share, joined
from latxa_megatron.data.sources import Source
from latxa_megatron.data.store import FORMAT, MANIFEST, SKIPPED, VERSION, TokenStore, existing_store, manifest_fingerprint
from latxa_megatron.data.tokenizer import SpecialTokens, Tokenizer
from latxa_megatron.data.workers import Progress, on_this_machine, run
from latxa_megatron.errors import LatxaError
from latxa_megatron.files import InUse, fingerprint, locked, move_into_place, sha256, write_atomically, write_json

_PROOF_CHARACTERS = 250_000
"""Text of each source on which a faster tokenizer is compared with the reference."""


def build_store(
    out: Path,
    tokenizer_directory: Path,
    sources: list[Source],
    *,
    workers: int | None = None,
    ray: str | None = None,
    skip_errors: bool = False,
    special_tokens: SpecialTokens = "text",
    progress: Progress = lambda done, total: None,
    say: Callable[[str], None] = lambda line: None,
) -> TokenStore:
    """Tokenize sources into a new store at `out`; return it at once where it already holds exactly these inputs.

    workers: processes on this machine, by default one for each processor, at most 8; or ray: the address of a Ray cluster whose
    machines see the same files.
    skip_errors: leave lines out that are no record, and say which in the store's skipped.txt. special_tokens: what control tokens
    are that stand literally in a text. say: told which tokenizer runs.
    Raises LatxaError (and leaves nothing behind) for bad input, and where `out` holds something else.
    """
    build = _Build(out, Tokenizer(tokenizer_directory, special_tokens), sources, skip_errors, say)
    if out.exists():
        return build.existing()
    build.partial.mkdir(parents=True, exist_ok=True)
    with locked(build.partial, "building this store"):
        if out.exists():  # the build that held the lock before this one has finished
            return build.existing()
        build.resume_or_start()
        try:
            tasks = build.tasks(aside=ray is not None)
            execute = on_ray(build.tokenizer, ray) if ray else on_this_machine(build.tokenizer, workers)
            shards = run(tasks, execute, progress)
            build.check_unchanged()
            build.finish(shards)
        except LatxaError:
            build.give_up()
            raise
    return TokenStore(out)


def build_share(
    out: Path,
    tokenizer_directory: Path,
    sources: list[Source],
    share: Share,
    *,
    workers: int | None = None,
    skip_errors: bool = False,
    special_tokens: SpecialTokens = "text",
    progress: Progress = lambda done, total: None,
    say: Callable[[str], None] = lambda line: None,
) -> TokenStore | None:
    """Do one share of build_store's work; the last one to finish makes the store, and the others return None.

    Raises LatxaError as build_store does, where another process does this share, and where the others began from other inputs.
    What is done stays there: the other shares go on.
    """
    build = _Build(out, Tokenizer(tokenizer_directory, special_tokens), sources, skip_errors, say)
    if out.exists():
        return build.existing()
    with joined(build.partial, share, build.resume_or_start):
        if out.exists():
            return build.existing()
        if not build.begun():
            raise LatxaError(f"{build.partial}: others build here from other inputs; stop them, or name another --out")
        tasks = build.tasks(aside=True)
        run(share.tasks(tasks), on_this_machine(build.tokenizer, workers), progress)
        build.check_unchanged()
    try:
        with locked(build.partial, "building this store"):
            if out.exists():
                return build.existing()
            written = [finished(task) for task in tasks]
            if None in written:
                return None
            build.finish([shard for shards in written for shard in shards or []])
    except InUse:  # another one is still at work, or is making the store
        return None
    except FileNotFoundError:
        if not out.exists():  # it is not that another one has just moved the finished store into place
            raise
        return None
    return TokenStore(out)


@dataclass
class _Build:
    """A store that is being made in `partial`."""

    out: Path
    tokenizer: Tokenizer
    sources: list[Source]
    skip_errors: bool
    say: Callable[[str], None]

    def __post_init__(self) -> None:
        self._stamps = _stamps(self.sources)
        self.inputs = _inputs(self.tokenizer, self.sources, self.skip_errors)
        self.partial = self.out.with_name(self.out.name + ".partial")
        self._note = self.partial / "inputs"

    def existing(self) -> TokenStore:
        """The store that is there already, if it is of these inputs."""
        return existing_store(self.out, self.inputs)

    def begun(self) -> bool:
        """Whether what is there was begun from the same inputs."""
        return self._note.is_file() and self._note.read_text() == fingerprint(self.inputs)

    def resume_or_start(self) -> None:
        """Keep what a killed build of the same inputs left, and nothing else."""
        if not self.begun():
            self._clear()
            write_atomically(self._note, fingerprint(self.inputs))

    @cached_property
    def with_mask(self) -> bool:
        """Whether the first record of any file is a conversation."""
        firsts = (next(_first_records(source, path), None) for source in self.sources for path in source.paths)
        return any(record is not None and record.messages is not None for record in firsts)

    def tasks(self, *, aside: bool) -> list[Task]:
        """All of the store, in order; the tokenizer is proved and the template checked first."""
        if self.with_mask:
            check_template(self.tokenizer)
        self.say(f"tokenizer: {self.tokenizer.accelerate(_texts(self.sources))}")
        token_type = 8 if self.tokenizer.vocab_size <= 65536 else 4
        pieces = [
            (source, chunk) for source in self.sources for path in source.paths for chunk in src.chunks(path, field=source.field)
        ]
        return [
            Task(self.partial / f"{i:05d}", chunk, source, token_type, self.with_mask, self.skip_errors, aside)
            for i, (source, chunk) in enumerate(pieces)
        ]

    def check_unchanged(self) -> None:
        """Raise LatxaError for a file that was written to since its hash was taken: the store would be of neither content."""
        for path, stamp in _stamps(self.sources).items():
            if stamp != self._stamps[path]:
                raise LatxaError(f"{path}: was changed while the store was built; start again when nothing writes to it")

    def finish(self, shards: list[Written]) -> None:
        """Write the manifest, and what was skipped; remove what only a build in progress needs; give the store its name."""
        skipped = [line for shard in shards for line in shard.skipped]
        if not any(shard.info.documents for shard in shards):
            names = ", ".join(str(path) for source in self.sources for path in source.paths)
            why = f"of {len(skipped):,} lines skipped the first is {skipped[0]}" if skipped else "the files hold none"
            raise LatxaError(f"{names}: no document is left for the store; {why}, or all are held out")
        if skipped:
            write_atomically(self.partial / SKIPPED, "".join(f"{line}\n" for line in skipped))
        manifest = {
            "format": FORMAT,
            "version": VERSION,
            **self.inputs,
            "mask": "spans" if self.with_mask else "all",
            "shards": [asdict(shard.info) for shard in shards if shard.info.documents],
            **({"skipped": len(skipped)} if skipped else {}),
        }
        manifest["fingerprint"] = manifest_fingerprint(manifest)
        write_json(self.partial / MANIFEST, manifest)
        for left in [self._note, *self.partial.glob("*.json")]:
            if left.name != MANIFEST:
                left.unlink()
        shutil.rmtree(self.partial / WORK, ignore_errors=True)
        move_into_place(self.partial, self.out)

    def give_up(self) -> None:
        """Remove what is there, also where a process that ends too late still writes."""
        self._note.unlink(missing_ok=True)
        shutil.rmtree(self.partial, ignore_errors=True)

    def _clear(self) -> None:
        """Empty the directory, the note first: what a kill leaves of it is then never taken for finished shards."""
        self._note.unlink(missing_ok=True)
        shutil.rmtree(self.partial / WORK, ignore_errors=True)
        for file in self.partial.iterdir():
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


def _first_records(source: Source, path: Path) -> Iterator[Record]:
    """The records of a file's first chunk."""
    read = src.records_or_why(src.chunks(path, field=source.field)[0], field=source.field)
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
