"""What the commands share: the console they print to, and how typer shows them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

OPTIONS: dict[str, Any] = {"no_args_is_help": True, "add_completion": False, "pretty_exceptions_enable": False}

console = Console()


@contextmanager
def bytes_bar(what: str) -> Iterator[Any]:
    with Progress(TextColumn(what), BarColumn(), TimeElapsedColumn(), console=console) as bar:
        task = bar.add_task(what)
        yield lambda done, total: bar.update(task, completed=done, total=total)
