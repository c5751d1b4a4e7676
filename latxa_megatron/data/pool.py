"""The same function on many tasks, in this process or in several."""

import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from typing import Any, TypeVar

from latxa_megatron.errors import LatxaError

T = TypeVar("T")
R = TypeVar("R")


class Pool:
    """Processes that each call start(*how) first; with one worker, this process does. A context manager.

    All of its methods raise the first error that work raised, and LatxaError where a process was killed.
    """

    def __init__(self, workers: int, start: Callable[..., None], *how: Any) -> None:
        self._workers = workers
        self._pool: ProcessPoolExecutor | None = None
        if workers > 1:
            self._pool = ProcessPoolExecutor(workers, get_context("spawn"), _start, (start, how))
        else:
            start(*how)

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *error: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def each(self, work: Callable[[T], R], tasks: Sequence[T], done: Callable[[T], None] = lambda task: None) -> list[R]:
        """work(task) of each task, in order. done: told of each as it is finished."""
        results: dict[int, R] = {}
        for i, result in self.as_done(work, tasks):
            results[i] = result
            done(tasks[i])
        return [results[i] for i in range(len(tasks))]

    def as_done(self, work: Callable[[T], R], tasks: Iterable[T]) -> Generator[tuple[int, R]]:
        """(number of a task, work(task)) of each task as it is finished, in any order."""
        if self._pool is None:
            yield from ((i, work(task)) for i, task in enumerate(tasks))
            return
        with _named_if_killed():
            numbers = {self._pool.submit(work, task): i for i, task in enumerate(tasks)}
            for future in as_completed(numbers):
                yield numbers[future], future.result()

    def in_order(self, work: Callable[[T], R], tasks: Iterable[T]) -> Generator[tuple[T, R]]:
        """(task, work(task)) of each task, in order; takes few more tasks than it has finished."""
        if self._pool is None:
            yield from ((task, work(task)) for task in tasks)
            return
        running: deque[tuple[T, Future[R]]] = deque()
        with _named_if_killed():
            for task in tasks:
                running.append((task, self._pool.submit(work, task)))
                if len(running) > 2 * self._workers:
                    first, future = running.popleft()
                    yield first, future.result()
            for first, future in running:
                yield first, future.result()


@contextmanager
def _named_if_killed() -> Generator[None]:
    try:
        yield
    except BrokenProcessPool:
        raise LatxaError("a worker was killed, probably for want of memory; start again with fewer --workers") from None


def _start(start: Callable[..., None], how: tuple[Any, ...]) -> None:
    one_thread()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    start(*how)


def one_thread() -> None:
    """Let tokenizers run in the calling thread: this process is one of many."""
    os.environ.update(TOKENIZERS_PARALLELISM="false", RAYON_NUM_THREADS="1")


def _end_with_parent() -> None:
    """A worker whose parent was killed must not write on, into the files of the one that is started again."""
    parent = parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
