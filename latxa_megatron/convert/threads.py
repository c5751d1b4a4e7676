"""The same work on several files at once, by threads: what takes time is the disk, hashing and copying, which hold no lock."""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")
_END: Any = object()

PIECE_BYTES = 8 << 20
"""What a thread holds in memory of a tensor at once. The C library keeps blocks of this size for the next piece; those of
64 MiB come from the kernel each time, and its work on their pages took an export longer than reading, hashing and writing."""

Report = Callable[[int, int], None]
"""Told of the bytes that are done, and of all there are."""


def in_threads(
    workers: int, work: Callable[[T, Callable[[int], None]], R], tasks: Sequence[T], total: int, report: Report
) -> list[R]:
    """work(task, tell) of each task, in order; work tells of each few bytes that it has done.

    Raises the first error that work raised; what else is under way ends when it tells next.
    """
    lock, ended = threading.Lock(), threading.Event()
    done = 0

    def tell(size: int) -> None:
        nonlocal done
        if ended.is_set():
            raise InterruptedError
        with lock:
            done += size
            report(done, total)

    with ThreadPoolExecutor(workers) as pool:
        futures = [pool.submit(work, task, tell) for task in tasks]
        try:
            for future in wait(futures, return_when=FIRST_EXCEPTION).done:
                future.result()
            return [future.result() for future in futures]
        except BaseException:
            ended.set()
            for future in futures:
                future.cancel()
            raise


def ahead(items: Iterable[T]) -> Iterator[T]:
    """The same items in order, each made by a thread of its own while the one before it is used."""
    source = iter(items)
    with ThreadPoolExecutor(1) as beside:
        coming = beside.submit(next, source, _END)
        while (item := coming.result()) is not _END:
            coming = beside.submit(next, source, _END)
            yield item
