"""How long each rank computes in a step. Ranks end a step together whoever they waited for, so its length names no slow one.

megatron-core's schedules start and stop a timer of `config.timers` around each forward and each backward pass of a microbatch;
waiting for another pipeline stage is outside of them, and on a GPU waiting for other data-parallel ranks' gradients is too. Over
gloo, on a CPU, that wait is in the backward pass of the last microbatch.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from latxa_megatron.model import device

_PASSES = ("forward-compute", "backward-compute")


class _Unused:
    """One of megatron-core's other timers."""

    def start(self, **_: Any) -> None: ...

    def stop(self, **_: Any) -> None: ...


class Stopwatch:
    """What megatron-core calls as its timers: the sum of the passes. On a GPU its own clock is read, by events in its queue."""

    def __init__(self) -> None:
        self._on_gpu = device.on_gpu()
        self._marks: list[Any] = []  # starts and stops by turns: events, or seconds

    def __call__(self, name: str, **_: Any) -> Any:
        return self if name in _PASSES else _Unused()

    def start(self, **_: Any) -> None:
        if self._on_gpu:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks.append(event)
        else:
            self._marks.append(time.perf_counter())

    stop = start

    def seconds(self) -> float:
        """Of all passes so far. Waits for the GPU to end them: ask for it when the step's loss is known."""
        if self._on_gpu:
            self._marks[-1].synchronize()
        pairs = zip(self._marks[::2], self._marks[1::2], strict=True)
        return float(sum(a.elapsed_time(b) / 1000 if self._on_gpu else b - a for a, b in pairs))


@contextmanager
def running(config: Any) -> Iterator[Stopwatch]:
    """A stopwatch for the passes of this block; config is the model's, megatron-core's TransformerConfig."""
    config.timers = Stopwatch()
    try:
        yield config.timers
    finally:
        config.timers = None


def of_all_ranks(seconds: float) -> list[float]:
    """Every rank's seconds, by rank. All ranks call it."""
    found = torch.zeros(dist.get_world_size(), dtype=torch.float64, device=device.device())
    dist.all_gather_into_tensor(found, torch.tensor([seconds], dtype=torch.float64, device=device.device()))
    return [float(each) for each in found.tolist()]


def percentiles(rank_seconds: list[float]) -> dict[str, float | int]:
    """`rank_seconds` of metrics.jsonl."""
    p50, p90 = np.percentile(rank_seconds, [50, 90]).tolist()
    return {"p50": p50, "p90": p90, "max": max(rank_seconds), "slowest_rank": int(np.argmax(rank_seconds))}
