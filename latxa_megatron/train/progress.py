"""What a person sees of a run: one live line on a terminal, plain lines in a log."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Column

from latxa_megatron.model import device
from latxa_megatron.train.loop import Watch

PERIOD = 5.0
"""Seconds between two plain lines, at least: fast steps would fill a log."""


@contextmanager
def watching(console: Console, clock: Callable[[], float] = time.monotonic) -> Iterator[Watch]:
    """The watch of a run that prints its steps; the last step is always printed, however the run ends."""
    describe = _Description(clock)
    if console.is_terminal:
        columns = TextColumn("{task.description}", table_column=Column(no_wrap=True)), BarColumn(bar_width=None)
        with Progress(*columns, console=console, expand=True) as bar:
            task = bar.add_task("starting", total=None)

            def live(total: int, line: dict[str, Any]) -> None:
                bar.update(task, description=describe(total, line), completed=line["step"], total=total)

            yield live
        return

    waiting: list[str] = []
    printed_at = float("-inf")

    def flush() -> None:
        for text in waiting[-1:]:
            console.print(text, highlight=False, soft_wrap=True)
        waiting.clear()

    def plain(total: int, line: dict[str, Any]) -> None:
        nonlocal printed_at
        waiting.append(describe(total, line))
        if clock() - printed_at >= PERIOD or line["step"] == total:
            flush()
            printed_at = clock()

    try:
        yield plain
    finally:
        flush()


class _Description:
    """A step in words. The time left is from the steps since the first, with all that happened between them."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._began: float | None = None  # when the first step was over
        self._steps = 0  # since then

    def __call__(self, total: int, line: dict[str, Any]) -> str:
        if self._began is None:
            self._began, each = self._clock(), line["seconds"]
        else:
            self._steps += 1
            each = (self._clock() - self._began) / self._steps
        left = timedelta(seconds=round(each * (total - line["step"])))
        rate, rank = line["positions_per_second_per_rank"], "GPU" if device.on_gpu() else "process"
        return (
            f"step {line['step']}/{total}  loss {line['loss']:.3f}  {rate:,.0f} tokens/s/{rank}  "
            f"{line['model_tflops_per_rank']:.3g} TFLOP/s  ETA {left}"
        )
