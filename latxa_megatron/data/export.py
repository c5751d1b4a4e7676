"""`latxa data export`: the samples of a plan in training order, as packed records or as Megatron-Bridge's packed Parquet.

A file holds a fixed number of samples, so its bytes depend on the plan and its place alone, and any number of threads writes the
same export. Its summary is written after it: an export that was killed is started again with the same command, keeps the files
that are done, and ends with the same bytes. Memory is a few blocks for each thread.
"""

import errno
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from latxa_megatron import _core
from latxa_megatron.data import export_parquet
from latxa_megatron.data.dataset import PlanReader
from latxa_megatron.data.exported import FORMAT, MANIFEST, SUFFIXES, VERSION, Export, manifest_fingerprint
from latxa_megatron.data.plan import PackPlan
from latxa_megatron.errors import LatxaError
from latxa_megatron.files import fingerprint, locked, move_into_place, read_json, sha256, write_atomically, write_json

FILE_POSITIONS = 1 << 28
"""Positions in a file, 1 GiB of int32 tokens: a trillion are 4000 files, and what a kill loses is a file for each thread."""
_BLOCK_POSITIONS = 1 << 18
"""Positions gathered, hashed and written at once: a block stays in the processor's cache."""

Layout = Literal["records", "parquet"]
Progress = Callable[[int, int], None]
"""Called with (samples written, samples in all)."""


def export(
    out: Path,
    plan_directory: Path,
    *,
    layout: Layout = "records",
    workers: int = 1,
    progress: Progress = lambda done, total: None,
) -> Export:
    """Write the samples of a plan to a new directory; return it at once where `out` already holds exactly that.

    Raises LatxaError where `out` holds something else, a store is damaged, or the disk is too small.
    """
    plan = PackPlan(plan_directory)
    if layout == "parquet":
        export_parquet.check_pyarrow()
    job = _Job(plan, PlanReader(plan), layout, max(FILE_POSITIONS // plan.seq_length, 1))
    inputs = job.inputs()
    if out.exists():
        return _existing(out, inputs)
    partial = out.with_name(out.name + ".partial")
    with _disk_errors(partial):
        partial.mkdir(parents=True, exist_ok=True)
        with locked(partial, "writing this export"):
            if out.exists():  # the one that held the lock before this one has finished
                return _existing(out, inputs)
            _resume_or_start(partial, fingerprint(inputs))
            _check_room(partial, job)
            try:
                files = _run(partial, job, workers, progress)
            except LatxaError:
                shutil.rmtree(partial)
                raise
            _finish(partial, job, {**inputs, "files": files})
            move_into_place(partial, out)
    return Export(out)


@dataclass(frozen=True)
class _Job:
    """What to write."""

    plan: PackPlan
    reader: PlanReader
    layout: Layout
    samples_per_file: int

    def inputs(self) -> dict[str, Any]:
        """All that decides an export's bytes, and what its reader needs of the plan and its stores."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "layout": self.layout,
            "plan": self.plan.fingerprint,
            "seq_length": self.plan.seq_length,
            "samples": len(self.plan),
            "samples_per_file": self.samples_per_file,
            "sources": self.reader.sources,
            "stores": self.plan.manifest["stores"],
            "tokenizer": self.plan.stores[0].manifest["tokenizer"]["fingerprint"],
            "vocab_size": self.plan.vocab_size,
        }

    def files(self) -> list[range]:
        """The samples of each file."""
        step = self.samples_per_file
        return [range(first, min(first + step, len(self.plan))) for first in range(0, len(self.plan), step)]

    def blocks(self, samples: range) -> Iterator[Any]:
        """The rows of a file's samples, some at a time, int64."""
        step = max(_BLOCK_POSITIONS // self.plan.seq_length, 1)
        for first in range(samples.start, samples.stop, step):
            yield self.plan.rows(first, min(first + step, samples.stop))


def _existing(out: Path, inputs: dict[str, Any]) -> Export:
    if not (out / MANIFEST).is_file() or read_json(out / MANIFEST).get("format") != FORMAT:
        raise LatxaError(f"{out}: exists and is no export; remove it or name another directory")
    found = Export(out)
    if {key: found.manifest.get(key) for key in inputs} != inputs:
        raise LatxaError(f"{out}: holds an export of another plan or format; remove it or name another directory")
    return found


@contextmanager
def _disk_errors(partial: Path) -> Iterator[None]:
    """What the disk refuses, as a sentence; the files that are done stay for another start."""
    try:
        yield
    except OSError as error:
        what = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else str(error.strerror or error)
        raise LatxaError(f"{error.filename or partial}: {what}; mend that and run the same command, which goes on") from None


def _resume_or_start(partial: Path, inputs: str) -> None:
    """Keep what a killed export of the same inputs left, and nothing else."""
    note = partial / "inputs"
    if not (note.is_file() and note.read_text() == inputs):
        note.unlink(missing_ok=True)  # first: what a kill leaves of the rest is then never taken for finished files
        for file in partial.iterdir():
            file.unlink()
        write_atomically(note, inputs)


def _check_room(partial: Path, job: _Job) -> None:
    """Refuse before the work what would fill the disk after hours of it. What Parquet will need is not known before."""
    if job.layout != "records":
        return
    width = 2 if job.reader.gatherer.token_type == 8 else 4
    needed = round(job.plan.efficiency() * len(job.plan) * job.plan.seq_length) * width
    written = sum(file.stat().st_size for file in partial.iterdir())
    free = shutil.disk_usage(partial).free
    if needed > written + free:
        raise LatxaError(
            f"{partial.parent}: the export needs {needed / 1e9:,.1f} GB, and the disk has {(written + free) / 1e9:,.1f}; "
            "free some or name another directory"
        )


def _run(partial: Path, job: _Job, workers: int, progress: Progress) -> list[dict[str, Any]]:
    """Write the files that are not there yet; the manifest's entries of all."""
    done = 0
    progress(done, len(job.plan))
    found: dict[int, dict[str, Any]] = {}
    with ThreadPoolExecutor(workers) as pool:
        running = {pool.submit(_file, partial, job, i, samples): i for i, samples in enumerate(job.files())}
        try:
            for future in as_completed(running):
                found[running[future]] = entry = future.result()
                done += entry["samples"]
                progress(done, len(job.plan))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return [found[i] for i in sorted(found)]


def _file(partial: Path, job: _Job, number: int, samples: range) -> dict[str, Any]:
    """One file, and the manifest's entry of it."""
    prefix = partial / f"{number:05d}"
    summary = prefix.with_suffix(".json")
    if summary.exists():
        return dict(read_json(summary))
    try:
        counts = (_write_records if job.layout == "records" else _write_parquet)(prefix, job, samples)
    except _core.StoreError as error:
        raise LatxaError(f"{job.plan.directory}: {error}; pack again") from None
    entry = {"name": prefix.name, "samples": len(samples), **counts}
    write_json(summary, entry)
    return entry


def _write_records(prefix: Path, job: _Job, samples: range) -> dict[str, Any]:
    """NAME.records and NAME.index."""
    counts: tuple[list[Any], ...] = ([], [], [])  # sizes and documents of records, tokens of documents
    trained, digest = 0, hashlib.sha256()
    records = prefix.with_suffix(".records")
    with records.open("wb") as file:
        for rows in job.blocks(samples):
            block, *new_counts, more_trained = job.reader.gatherer.records(rows, job.plan.seq_length)
            file.write(block.data)
            digest.update(block.data)
            for known, new in zip(counts, new_counts, strict=True):
                known.append(new)
            trained += more_trained
        file.flush()
        os.fsync(file.fileno())
    sizes, documents, tokens = map(np.concatenate, counts)
    index = _index(job.reader.gatherer.token_type, sizes, documents, tokens)
    with prefix.with_suffix(".index").open("wb") as file:
        file.write(index)
        file.flush()
        os.fsync(file.fileno())
    return {
        "documents": len(tokens),
        "positions": int(tokens.sum(dtype=np.int64)) - len(tokens),
        "trained_positions": trained,
        "sha256": {"records": digest.hexdigest(), "index": hashlib.sha256(index).hexdigest()},
    }


def _index(token_type: int, sizes: Any, documents: Any, lengths: Any) -> bytes:
    """What csrc/record_file.h reads: a header, where records and their documents begin, and the documents' tokens."""
    header = b"LATXREC\0" + np.array([1, token_type, len(sizes), len(lengths)], "<u8").tobytes()
    borders = [np.concatenate([[0], np.cumsum(each)]).astype("<u8").tobytes() for each in (sizes, documents)]
    return header + b"".join(borders) + lengths.astype("<u4").tobytes()


def _write_parquet(prefix: Path, job: _Job, samples: range) -> dict[str, Any]:
    """NAME.idx.parquet."""
    file = prefix.with_suffix(".idx.parquet")
    blocks = (job.reader.gatherer.flat(rows, job.plan.seq_length) for rows in job.blocks(samples))
    counts = export_parquet.write(file, blocks)
    return {**counts, "sha256": {"idx.parquet": sha256(file)}}


def _finish(partial: Path, job: _Job, manifest: dict[str, Any]) -> None:
    """Write the manifest, and what Bridge is given beside the rows; remove what only an export in progress needs."""
    if job.layout == "parquet":
        write_json(partial / export_parquet.METADATA, export_parquet.metadata(manifest["files"], job.plan.seq_length))
    manifest["fingerprint"] = manifest_fingerprint(manifest)
    write_json(partial / MANIFEST, manifest)
    names = {f"{entry['name']}.{suffix}" for entry in manifest["files"] for suffix in SUFFIXES[job.layout]}
    for file in partial.iterdir():
        if file.name not in {MANIFEST, *names, *([export_parquet.METADATA] if job.layout == "parquet" else [])}:
            file.unlink()
