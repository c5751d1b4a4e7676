"""`latxa data clean`: sources without other languages, evaluation items, exact and near duplicates, and a report of each drop.

Each source is read in tasks of about 64 MB, once to judge every record by itself and to sign it, once more to write what stays,
and in between only for what may be a near duplicate. Which record stays is decided by input order alone, so the result does not
depend on the number of workers. Signatures lie on the disk, about 1 KB for each record; memory holds the words of one text for
each worker, the evaluation sets, and the ledger's columns.
"""

import importlib.util
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np

from latxa_megatron.data import sources as src
from latxa_megatron.data.cleaning.contamination import EvaluationSets, read_evaluation_sets
from latxa_megatron.data.cleaning.judge import Columns, Judge, Task
from latxa_megatron.data.cleaning.language import LanguageIdentifier
from latxa_megatron.data.cleaning.ledger import Ledger, Numbers, exact_duplicates, ledger, line_numbers
from latxa_megatron.data.cleaning.output import outputs, write
from latxa_megatron.data.cleaning.report import REPORT, Report, report
from latxa_megatron.data.cleaning.rules import Rule, Rules
from latxa_megatron.data.pool import Pool
from latxa_megatron.data.readers import TABLES, Chunk
from latxa_megatron.data.sources import Source
from latxa_megatron.errors import LatxaError
from latxa_megatron.files import new_directory, write_json

Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all) of two readings of the sources."""

DROPPED = "dropped.jsonl"


def clean(
    out: Path,
    sources: list[Source],
    rules: Rules,
    *,
    workers: int = 1,
    progress: Progress = lambda done, total: None,
) -> Report:
    """Write what stays of sources to a new directory `out`, with dropped.jsonl and report.json.

    Raises LatxaError (and leaves nothing behind) for bad input, where `out` exists, and without the extra `clean`.
    """
    _check(sources, rules)
    with new_directory(out) as partial:
        scratch = partial / "scratch"
        scratch.mkdir()
        inputs = {path: _state(path) for source in (*sources, *rules.against) for path in source.paths}
        evaluation = read_evaluation_sets(rules.against) if rules.against else None
        tasks = [task for source in sources for task in _tasks(source, scratch)]
        tasks = [Task(i, task.source, task.chunks, scratch) for i, task in enumerate(tasks)]
        done = _counter(tasks, progress)
        with Pool(min(workers, max(len(tasks), 1)), _start, rules, evaluation) as pool:
            all_records = ledger(tasks, pool.each(_read, tasks, done))
            if rules.exact:
                numbers, firsts = exact_duplicates(all_records)
                all_records.drop(Rule.EXACT, numbers, firsts, np.ones(len(numbers)))
            if rules.near is not None:
                _drop_near(all_records, rules, scratch, pool)
            found = outputs(all_records, rules, partial, _lines(all_records, pool))
            pool.each(write, found, lambda output: done(output.task))
        with (partial / DROPPED).open("wb") as file:
            for task in tasks:
                with task.file("dropped").open("rb") as part:
                    shutil.copyfileobj(part, file)
        for path, state in inputs.items():
            if _state(path) != state:
                raise LatxaError(f"{path}: has changed while it was read; start again")
        told = report(all_records, rules, evaluation, [output.file.name for output in found], partial / DROPPED)
        write_json(partial / REPORT, told.as_json())
        shutil.rmtree(scratch)
    return told


def _check(sources: list[Source], rules: Rules) -> None:
    if any(importlib.util.find_spec(name) is None for name in ("datatrove", "py3langid", "xxhash")):
        raise LatxaError("data clean needs datatrove, py3langid and xxhash: pip install 'latxa-megatron[clean]'")
    for source in (*sources, *rules.against):
        for path in source.paths:
            if path.suffix in TABLES:
                raise LatxaError(f"{path}: is a table; data clean reads lines of JSON, and keeps those that stay as they are")
    names = [source.name for source in sources]
    for some, what in ((names, "sources"), ([each.name for each in rules.against], "evaluation sets")):
        if len(set(some)) != len(some):
            raise LatxaError(f"two {what} have the same name; give each its own")
    for name in names:
        if Path(name).name != name:
            raise LatxaError(f"--source {name}: is a file's name, too, and must not contain a slash")
        for other in names:
            if other.startswith(f"{name}-"):
                raise LatxaError(f"--source {other}: {name}-*.jsonl.zst would match its files, too; rename one")
    if rules.languages:
        LanguageIdentifier().check(code for codes in rules.languages.values() for code in codes)


def _state(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


def _tasks(source: Source, scratch: Path) -> list[Task]:
    """Chunks of a source that follow each other, until they have a chunk's bytes."""
    found: list[list[Chunk]] = [[]]
    for path in source.paths:
        for chunk in src.chunks(path):
            if sum(each.size for each in found[-1]) + chunk.size > src.CHUNK_BYTES and found[-1]:
                found.append([])
            found[-1].append(chunk)
    return [Task(0, source, tuple(chunks), scratch) for chunks in found]


def _counter(tasks: list[Task], progress: Progress) -> Callable[[Task], None]:
    """Of tasks that are done, in either reading."""
    sizes = [sum(chunk.size for chunk in task.chunks) for task in tasks]
    total, so_far = 2 * sum(sizes), 0
    progress(0, total)

    def done(task: Task) -> None:
        nonlocal so_far
        so_far += sizes[task.number]
        progress(so_far, total)

    return done


_judge: Judge


def _start(rules: Rules, evaluation: EvaluationSets | None) -> None:
    global _judge  # one language model and one index of evaluation items for each worker process
    _judge = Judge(rules, evaluation)


def _read(task: Task) -> Columns:
    return _judge.read(task)


def _drop_near(of: Ledger, rules: Rules, scratch: Path, pool: Pool) -> None:
    """Drop near duplicates among what is left."""
    from latxa_megatron.data.cleaning import near, signatures

    threshold = rules.near or 1.0
    count, _ = signatures.buckets(threshold)
    pool.each(_pairs, [(scratch, threshold, bucket) for bucket in range(count)])
    signed = _signed(of)
    pairs = [signatures.read_pairs(scratch, bucket) for bucket in range(count)]
    groups = near.groups(pairs, signed, of.left)
    candidates = [
        groups.candidates[slice(*np.searchsorted(groups.candidates, [start, end]))] for start, end in pairwise(of.starts)
    ]
    compared = [
        near.Candidates(task, rules, numbers - start)
        for task, numbers, start in zip(of.tasks, candidates, of.starts[:-1], strict=True)
        if len(numbers)
    ]
    pool.each(near.write_shingles, compared)
    dropped = near.near_duplicates(groups, near.ShingleSets(of.tasks, candidates), threshold)
    numbers = np.array(list(dropped), np.int64)
    others, scores = np.array(list(dropped.values()), np.float64).reshape(-1, 2).T
    of.drop(Rule.NEAR, numbers, others.astype(np.int64), scores)


def _pairs(what: tuple[Path, float, int]) -> None:
    from latxa_megatron.data.cleaning.signatures import write_pairs

    write_pairs(*what)


def _signed(of: Ledger) -> list[Numbers]:
    """Of each task, the numbers of the records that have signatures: those that no rule of the first reading drops."""
    by_itself = (of.rule == Rule.KEPT) | (of.rule == Rule.EXACT)
    return [start + np.flatnonzero(by_itself[start:end]) for start, end in pairwise(of.starts)]


def _lines(of: Ledger, pool: Pool) -> Numbers:
    """The number of each record's line in its file."""
    found = np.empty(len(of.rule), np.int64)
    where = [np.flatnonzero(of.file == i) for i in range(len(of.files))]
    unique = [np.unique(of.offset[some], return_inverse=True) for some in where]
    counted = pool.each(_count, [(path, offsets) for path, (offsets, _) in zip(of.files, unique, strict=True)])
    for some, (_, inverse), numbers in zip(where, unique, counted, strict=True):
        found[some] = numbers[inverse]
    return found


def _count(what: tuple[Path, Numbers]) -> Numbers:
    return line_numbers(*what)
