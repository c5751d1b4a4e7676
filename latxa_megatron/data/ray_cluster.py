"""Shard tasks on a Ray cluster whose machines see the same files under the same paths and have this package installed."""

import importlib.util
import os
import socket
from collections.abc import Generator
from functools import cache
from pathlib import Path
from typing import Any

from latxa_megatron.data.pool import one_thread
from latxa_megatron.data.shards import Encoders, Task, Written, write_shards
from latxa_megatron.data.tokenizer import SpecialTokens, Tokenizer
from latxa_megatron.data.workers import Execute, encoders_of
from latxa_megatron.errors import LatxaError


def on_ray(tokenizer: Tokenizer, address: str) -> Execute:
    """One task for each CPU of the cluster at a time. Raises LatxaError where Ray, or a cluster at this address, is not there.

    Ray does a task again whose machine was lost; its shards are written aside, so that the lost one cannot spoil them.
    """
    if importlib.util.find_spec("ray") is None:
        raise LatxaError("--ray: Ray is not installed; pip install 'latxa-megatron[ray]'")
    how = (tokenizer.directory, tokenizer.special_tokens, tokenizer.accelerated)

    def execute(tasks: list[Task]) -> Generator[tuple[Task, list[Written]]]:
        import ray

        try:
            _knock(address)
            ray.init(address=address, log_to_driver=False, logging_level="error", configure_logging=False)
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            why = str(error).strip().partition("\n")[0]
            raise LatxaError(f"--ray {address}: there is no Ray cluster that can be reached ({why})") from None
        running: dict[Any, Task] = {}
        try:
            write = ray.remote(num_cpus=1)(_write)
            running = {write.remote(task, how, Path.cwd()): task for task in tasks}
            while running:
                (done, *_), _ = ray.wait(list(running), num_returns=1)
                yield running.pop(done), _result(ray.get(done))
        except ray.exceptions.RayError as error:
            why = str(error).strip().rpartition("\n")[2]
            raise LatxaError(f"--ray {address}: a task failed on the cluster ({why})") from None
        finally:
            for task in running:
                ray.cancel(task, force=True)
            ray.shutdown()

    return execute


def _knock(address: str) -> None:
    """Raises OSError where nothing answers at host:port; Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=10).close()


def _result(found: list[Written] | str) -> list[Written]:
    if isinstance(found, str):
        raise LatxaError(found)
    return found


def _write(task: Task, how: tuple[Path, SpecialTokens, bool], directory: Path) -> list[Written] | str:
    """A task's shards, or the sentence of the error: Ray would wrap an exception into one of its own, with a trace.

    directory: what the task's paths are relative to.
    """
    os.chdir(directory)
    try:
        return write_shards(_encoders(*how), task)
    except LatxaError as error:
        return str(error)


@cache
def _encoders(tokenizer_directory: Path, special_tokens: SpecialTokens, accelerated: bool) -> Encoders:
    """Loaded once in each of Ray's processes."""
    one_thread()
    return encoders_of(tokenizer_directory, special_tokens, accelerated)
