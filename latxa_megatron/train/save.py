"""Writing torch_dist checkpoints: at once, or beside the training that goes on.

A checkpoint is filled as iter_NNNNNNN.partial and renamed when all ranks are done, so what has its name is whole.
"""

import pickle
import queue
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.dist_checkpointing.core import CheckpointingException
from megatron.core.dist_checkpointing.serialization import get_default_save_sharded_strategy
from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.dist_checkpointing.strategies.async_utils import AsyncCallsQueue
from megatron.core.dist_checkpointing.strategies.fully_parallel import FullyParallelSaveStrategyWrapper
from torch.distributed.checkpoint.api import CheckpointException

from latxa_megatron import __version__
from latxa_megatron.errors import LatxaError
from latxa_megatron.files import move_into_place, sha256, write_atomically, write_json
from latxa_megatron.model import device
from latxa_megatron.sections import CheckpointSection
from latxa_megatron.train.checkpoint import CONTENT, RUN_FILE, TRACKER, iteration_directory
from latxa_megatron.train.stop import held_back

_OWN_WRITER = {"async_strategy": "mcore"} if "async_strategy" in signature(dist_checkpointing.save).parameters else {}


class _Results:
    """What a forked writer says that it wrote, through a file; a pipe would have to be read while it writes.

    megatron-core's own queue is a process that loads torch: for seconds a save would wait for it, and its memory would stay.
    """

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115, open as long as the save goes on

    def put(self, results: Any) -> None:
        pickle.dump(results, self._file)
        self._file.flush()

    def get_nowait(self) -> Any:
        self._file.seek(0)
        try:
            return pickle.load(self._file)
        except EOFError:
            raise queue.Empty from None


@dataclass
class _UnderWay:
    """A checkpoint that is being written. sums: once its files are there, their hashes, those of this rank's share."""

    final: Path
    facts: dict[str, Any]
    sums: Future[dict[str, str]] | None = None

    @property
    def partial(self) -> Path:
        return self.final.with_name(self.final.name + ".partial")


class Saver:
    """Writes a run's checkpoints under `root`, one at a time. All ranks make the same calls.

    Raises LatxaError from any call where a checkpoint could not be written.
    """

    def __init__(self, root: Path, section: CheckpointSection) -> None:
        self._root, self._section = root, section
        self._calls = AsyncCallsQueue()
        self._hashing = ThreadPoolExecutor(1)
        self._under_way: _UnderWay | None = None
        self._pinning: threading.Thread | None = None

    def rehearse(self, sharded_state: dict[str, Any]) -> None:
        """Pin the host memory that saves of this state copy into, beside training; the first save would stand still for it.

        A copy like that of a save is made and thrown away: torch keeps its pinned memory for the next. All ranks call it.
        """
        partial = self._root / "rehearsal.partial"
        _clear(partial)
        with held_back(), _writing(partial):
            request = _write(sharded_state, partial, background=True)
        if request is not None and request.preload_fn is not None:
            self._pinning = threading.Thread(target=_copy_aside, args=(request.preload_fn,), daemon=True)
            self._pinning.start()
        dist.barrier()
        if dist.get_rank() == 0:
            shutil.rmtree(partial, ignore_errors=True)

    def save(self, step: int, sharded_state: dict[str, Any], facts: dict[str, Any]) -> None:
        """Begin root/iter_STEP, after the one before is done. The state may change once this returns."""
        self.finish()
        if self._pinning is not None:
            self._pinning.join()
            self._pinning = None
        begun = _UnderWay(iteration_directory(self._root, step), {"step": step, **facts})
        _clear(begun.partial)
        with held_back(), _writing(begun.partial):  # a signal to all processes of a job would end those that write
            request = _write(sharded_state, begun.partial, background=self._section.async_save)
            if request is not None:
                self._calls.schedule_async_request(request)
        self._under_way = begun
        if not self._section.async_save:
            self.finish()
        device.trim_heap()

    def poll(self) -> None:
        """Take the checkpoint under way, if any, as far as it goes without waiting; to be called after each step."""
        self._go_on(wait=False)

    def finish(self) -> None:
        """Wait until the checkpoint under way, if any, is whole."""
        while self._under_way is not None:
            self._go_on(wait=True)

    def _go_on(self, *, wait: bool) -> None:
        now = self._under_way
        if now is None:
            return
        if now.sums is None:
            with _writing(now.partial):
                self._calls.maybe_finalize_async_calls(blocking=wait)
            if self._calls.get_num_unfinalized_calls() == 0:
                now.sums = self._hashing.submit(_sums, now.partial, _share(now.partial))
        elif wait or _on_all_ranks(now.sums.done()):
            _publish(now.partial, now.final, now.facts, now.sums.result())
            self._tidy(now.facts["step"])
            self._under_way = None

    def _tidy(self, step: int) -> None:
        """Point the tracker at `step`, and remove all but the newest `keep` up to it and those at multiples of `keep_every`.

        Later ones were damaged, or the run would have gone on from there; an unfinished one is what a killed save left.
        """
        if dist.get_rank() == 0:
            write_atomically(self._root / TRACKER, f"{step}\n")
            there = {int(path.name.removeprefix("iter_")): path for path in self._root.glob("iter_???????")}
            upto = sorted(number for number in there if number <= step)
            every = self._section.keep_every
            kept = {*upto[-self._section.keep :], *(number for number in upto if every and number % every == 0)}
            for old in [*(there[number] for number in there.keys() - kept), *self._root.glob("*.partial")]:
                shutil.rmtree(old)
        dist.barrier()


def _copy_aside(copy: Callable[[], Any]) -> None:
    """Run a save's copy to the host on a stream of its own, so that training's kernels do not queue behind it."""
    with torch.cuda.stream(torch.cuda.Stream()):
        copy()


class Written(NamedTuple):
    """What a process alone wrote into a directory: the SHA-256 of each file, and the facts for run.json."""

    sums: dict[str, str]
    facts: dict[str, Any]


def write(final: Path, fill: Callable[[Path], Written]) -> None:
    """Write the torch_dist directory `final` in this process alone. fill: writes it into an empty directory.

    Nothing is left where that fails.
    """
    partial = final.with_name(final.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        with _writing(partial):
            written = fill(partial)
        _name(partial, final, written.facts, written.sums)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _clear(partial: Path) -> None:
    if dist.get_rank() == 0:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    dist.barrier()


def _write(sharded_state: dict[str, Any], partial: Path, *, background: bool) -> Any:
    """Write now and return None, or copy what is to be written and return megatron-core's request to write it."""
    strategy = get_default_save_sharded_strategy()
    if parallel_state.model_parallel_is_initialized():
        group = parallel_state.get_data_parallel_group(with_context_parallel=True)
        strategy = FullyParallelSaveStrategyWrapper(strategy, group, True)
    options: dict[str, Any] = _OWN_WRITER if background else {}
    before, filesystem_async._results_queue = filesystem_async._results_queue, _Results()
    try:
        return dist_checkpointing.save(
            sharded_state, str(partial), strategy, async_sharded_save=background, content_metadata=CONTENT, **options
        )
    finally:  # this save holds its own; another by megatron-core alone would read it again
        filesystem_async._results_queue = before


def _share(partial: Path) -> list[str]:
    """The files of a checkpoint that this rank hashes: one rank alone would take longer than the others wait. All ranks call it.

    Rank 0 says which files there are: another node may not see the newest yet.
    """
    names = [sorted(str(path.relative_to(partial)) for path in partial.rglob("*") if path.is_file())]
    dist.broadcast_object_list(names, src=0)
    return names[0][dist.get_rank() :: dist.get_world_size()]


def _sums(partial: Path, names: list[str]) -> dict[str, str]:
    return {name: sha256(partial / name) for name in names}


def _publish(partial: Path, final: Path, facts: dict[str, Any], sums: dict[str, str]) -> None:
    """Gather the ranks' hashes, write run.json and give the directory its name. All ranks call it."""
    shares: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(shares, sums)
    if dist.get_rank() == 0:
        _name(partial, final, facts, {name: share[name] for share in shares for name in sorted(share)})
    dist.barrier()


def _name(partial: Path, final: Path, facts: dict[str, Any], sums: dict[str, str]) -> None:
    sizes = {name: (partial / name).stat().st_size for name in sums}
    write_json(partial / RUN_FILE, {**facts, "latxa_megatron": __version__, "sha256": sums, "bytes": sizes})
    if final.exists():  # damaged, or it would have been resumed from
        shutil.rmtree(final)
    move_into_place(partial, final)


def _on_all_ranks(done: bool) -> bool:
    flag = torch.tensor([done], dtype=torch.int32, device=device.device())
    dist.all_reduce(flag, dist.ReduceOp.MIN)
    return bool(flag.item())


@contextmanager
def _writing(partial: Path) -> Iterator[None]:
    """Make one sentence of what megatron-core says of a disk that is full, or gone."""
    try:
        yield
    except (CheckpointException, CheckpointingException, OSError) as error:
        reason = (str(error).strip() or repr(error)).splitlines()[-1]
        raise LatxaError(f"{partial}: could not be written ({reason[:200]})") from None
