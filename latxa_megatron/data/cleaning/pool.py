"""The same function on many tasks, in one process or several, with the results in the order of the tasks."""

from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any, TypeVar

from latxa_megatron.data.workers import start_worker
from latxa_megatron.errors import LatxaError

T = TypeVar("T")
R = TypeVar("R")


class Pool:
    """Processes that each call start(*how) first; with one worker, this process does. A context manager."""

    def __init__(self, workers: int, start: Callable[..., None], *how: Any) -> None:
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
        """work(task) of each task, in order. done: told of each as it is finished. Raises the first error that work raised."""
        results: dict[int, R] = {}
        if self._pool is None:
            for i, task in enumerate(tasks):
                results[i] = work(task)
                done(task)
        else:
            numbers = {self._pool.submit(work, task): i for i, task in enumerate(tasks)}
            try:
                for future in as_completed(numbers):
                    results[numbers[future]] = future.result()
                    done(tasks[numbers[future]])
            except BrokenProcessPool:
                raise LatxaError("a worker was killed, probably for want of memory; start again with fewer --workers") from None
        return [results[i] for i in range(len(tasks))]


def _start(start: Callable[..., None], how: tuple[Any, ...]) -> None:
    start_worker()
    start(*how)
