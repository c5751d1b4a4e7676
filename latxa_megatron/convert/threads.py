"""The same work on several files at once, by threads: what takes time is the disk, hashing and copying, which hold no lock."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

PIECE_BYTES = 64 << 20
"""What a thread holds in memory of a tensor at once."""

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
