"""Asking a run to stop: SIGTERM or SIGUSR1, as schedulers send before a job's time is over."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

from latxa_megatron.model import device

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


@contextmanager
def held_back() -> Iterator[None]:
    """Let the signals wait while a block runs, for this thread and the processes that it starts, which have no handlers."""
    resource_tracker.ensure_running()  # multiprocessing starts it with the first process, and lets SIGTERM through after that
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class StopSignals:
    """While the block runs, the signals no longer end the process: they ask for an end after the step under way."""

    def __init__(self) -> None:
        self._asked = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():  # elsewhere Python takes no handlers
            self._before = {number: signal.signal(number, self._ask) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._asked = True

    def asked(self) -> bool:
        """Whether any rank was asked to stop. All ranks call it, and get the same answer."""
        flag = torch.tensor([self._asked], dtype=torch.int32, device=device.device())
        dist.all_reduce(flag, dist.ReduceOp.MAX)
        return bool(flag.item())
