"""Shard tasks on the processes of one machine."""

import os
import threading
from collections.abc import Callable, Generator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from pathlib import Path

from latxa_megatron.data.shards import Encoders, Task, Written, finished, write_shards
from latxa_megatron.data.tokenizer import SpecialTokens, Tokenizer
from latxa_megatron.errors import LatxaError

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


def on_this_machine(tokenizer: Tokenizer, workers: int) -> Execute:
    """In this process, or on as many others."""

    def execute(tasks: list[Task]) -> Generator[tuple[Task, list[Written]]]:
        if workers > 1 and len(tasks) > 1:
            yield from _in_processes(tasks, tokenizer, min(workers, len(tasks)))
        else:
            encoders = Encoders(tokenizer)
            for task in tasks:
                yield task, write_shards(encoders, task)

    return execute


def _in_processes(tasks: list[Task], tokenizer: Tokenizer, workers: int) -> Generator[tuple[Task, list[Written]]]:
    how = (tokenizer.directory, tokenizer.special_tokens, tokenizer.accelerated)
    with ProcessPoolExecutor(workers, get_context("spawn"), _start_worker, how) as pool:
        running = {pool.submit(_write_in_worker, task): task for task in tasks}
        try:
            for future in as_completed(running):
                yield running[future], future.result()
        except BrokenProcessPool:
            raise LatxaError("a worker was killed, probably for want of memory; start again with fewer --workers") from None
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def encoders_of(tokenizer_directory: Path, special_tokens: SpecialTokens, accelerated: bool) -> Encoders:
    """Those of a process that works for a build, of the tokenizer that the build has proved."""
    _one_thread()
    tokenizer = Tokenizer(tokenizer_directory, special_tokens)
    if accelerated:
        tokenizer.accelerate_as_proved()
    return Encoders(tokenizer)


_worker_encoders: Encoders


def _start_worker(tokenizer_directory: Path, special_tokens: SpecialTokens, accelerated: bool) -> None:
    global _worker_encoders  # one tokenizer for each worker process, loaded once
    start_worker()
    _worker_encoders = encoders_of(tokenizer_directory, special_tokens, accelerated)


def start_worker() -> None:
    """What a worker process does first: it is one of many, and ends with its parent."""
    _one_thread()
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _one_thread() -> None:
    os.environ.update(TOKENIZERS_PARALLELISM="false", RAYON_NUM_THREADS="1")


def _end_with_parent() -> None:
    """A worker whose build was killed must not write on, into the shards of the one that is started again."""
    parent = parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _write_in_worker(task: Task) -> list[Written]:
    return write_shards(_worker_encoders, task)
