"""What the commands share: the console they print to, and how typer shows them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

OPTIONS: dict[str, Any] = {"no_args_is_help": True, "add_completion": False, "pretty_exceptions_enable": False}

console = Console()


@contextmanager
def bytes_bar(what: str) -> Iterator[Any]:
    """A bar that is there once there is something to tell: what is refused before is one sentence on the terminal."""
    times = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    bar = Progress(TextColumn(what), BarColumn(), TaskProgressColumn(), *times, console=console)
    task = bar.add_task(what)

    def report(done: int, total: int) -> None:
        bar.start()
        bar.update(task, completed=done, total=total)

    try:
        yield report
    finally:
        if bar.live.is_started:
            bar.stop()
