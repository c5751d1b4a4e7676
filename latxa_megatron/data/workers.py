"""Shard tasks on the processes of one machine."""

import os
from collections.abc import Callable, Generator
from contextlib import closing
from pathlib import Path

from latxa_megatron.data.pool import Pool
from latxa_megatron.data.shards import Encoders, Task, Written, finished, write_shards
from latxa_megatron.data.sources import CHUNK_BYTES
from latxa_megatron.data.tokenizer import SpecialTokens, Tokenizer

Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all) of the sources."""

Execute = Callable[[list[Task]], Generator[tuple[Task, list[Written]]]]
"""Does tasks, and yields each with its shards as it is done, in any order."""


def run(tasks: list[Task], execute: Execute, progress: Progress) -> list[Written]:
    """Write the shards that are not there yet; all of the tasks' shards, in order."""
    total = sum(task.chunk.size for task in tasks)
    done = 0
    written: dict[Path, list[Written]] = {}

    def finish(task: Task, shards: list[Written]) -> None:
        nonlocal done
        written[task.prefix] = shards
        done += task.chunk.size
        progress(done, total)

    progress(0, total)
    left = []
    for task in tasks:
        if (shards := finished(task)) is not None:
            finish(task, shards)
        else:
            left.append(task)
    with closing(execute(left)) as done_now:
        for task, shards in done_now:
            finish(task, shards)
    return [shard for task in tasks for shard in written[task.prefix]]


MOST_WORKERS = 8
"""Processes that are started unasked: each holds a tokenizer of its own, of some 700 MB for Llama 3's."""


def on_this_machine(tokenizer: Tokenizer, workers: int | None) -> Execute:
    """In this process, or on as many others; on as many as there are processors and work for, where that is not given."""

    def execute(tasks: list[Task]) -> Generator[tuple[Task, list[Written]]]:
        work = sum(task.chunk.size for task in tasks) // CHUNK_BYTES
        wanted = workers or min(len(os.sched_getaffinity(0)), MOST_WORKERS, work)
        if wanted > 1 and len(tasks) > 1:
            yield from _in_processes(tasks, tokenizer, min(wanted, len(tasks)))
        else:
            encoders = Encoders(tokenizer)
            for task in tasks:
                yield task, write_shards(encoders, task)

    return execute


def _in_processes(tasks: list[Task], tokenizer: Tokenizer, workers: int) -> Generator[tuple[Task, list[Written]]]:
    with Pool(workers, _start, tokenizer.directory, tokenizer.special_tokens, tokenizer.accelerated) as pool:
        for i, shards in pool.as_done(_write, tasks):
            yield tasks[i], shards


def encoders_of(tokenizer_directory: Path, special_tokens: SpecialTokens, accelerated: bool) -> Encoders:
    """Those of a process that works for a build, of the tokenizer that the build has proved."""
    tokenizer = Tokenizer(tokenizer_directory, special_tokens)
    if accelerated:
        tokenizer.accelerate_as_proved()
    return Encoders(tokenizer)


_worker_encoders: Encoders


def _start(tokenizer_directory: Path, special_tokens: SpecialTokens, accelerated: bool) -> None:
    global _worker_encoders  # one tokenizer for each worker process, loaded once
    _worker_encoders = encoders_of(tokenizer_directory, special_tokens, accelerated)


def _write(task: Task) -> list[Written]:
    return write_shards(_worker_encoders, task)
