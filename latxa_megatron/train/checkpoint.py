"""Megatron torch_dist checkpoints: DIR/iter_0000030/ with a run.json, and DIR/latest_checkpointed_iteration.txt.

A checkpoint is written under another name and renamed when all ranks are done, so what has its name is whole.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.dist_checkpointing.core import CheckpointingException
from megatron.core.dist_checkpointing.serialization import (
    get_default_load_sharded_strategy,
    get_default_save_sharded_strategy,
)
from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.dist_checkpointing.strategies.fully_parallel import (
    FullyParallelLoadStrategyWrapper,
    FullyParallelSaveStrategyWrapper,
)
from megatron.core.dist_checkpointing.validation import StrictHandling
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
from torch.distributed.checkpoint.api import CheckpointException

from latxa_megatron import __version__
from latxa_megatron.errors import LatxaError
from latxa_megatron.files import move_into_place, read_json, sha256, write_atomically, write_json
from latxa_megatron.model import device
from latxa_megatron.train.optimizer import allocate_state
from latxa_megatron.train.stop import held_back

TRACKER = "latest_checkpointed_iteration.txt"
RUN_FILE = "run.json"

CONTENT = {
    "distrib_optim_sharding_type": "fully_reshardable",
    "singleton_local_shards": False,
    "chained_optim_avoid_prefix": True,
}
"""How tensors are named and cut in the files, in megatron-core's words; stored with them, so that any reader knows."""


@dataclass(frozen=True)
class State:
    """What training changes: the model chunks of this rank, the optimizer and the schedule."""

    chunks: list[GPTModel]
    optimizer: MegatronOptimizer
    schedule: OptimizerParamScheduler


def iteration_directory(root: Path, step: int) -> Path:
    return root / f"iter_{step:07d}"


def latest(root: Path) -> Path | None:
    """The newest whole checkpoint under root, or None."""
    found = sorted((path for path in root.glob("iter_*") if path.suffix == "" and _is_whole(path)), reverse=True)
    return found[0] if found else None


def _is_whole(directory: Path) -> bool:
    """Whether every file that run.json lists is there with its size."""
    sizes = read_facts(directory).get("bytes")
    return sizes is not None and all(
        (directory / name).is_file() and (directory / name).stat().st_size == size for name, size in sizes.items()
    )


def resolve(checkpoint: Path) -> Path:
    """The iter_* directory that a path names: itself, or the newest inside. LatxaError if there is none."""
    if (checkpoint / ".metadata").is_file():
        return checkpoint
    found = latest(checkpoint)
    if found is None:
        raise LatxaError(f"{checkpoint}: holds no whole Megatron checkpoint")
    return found


def read_facts(directory: Path) -> dict[str, Any]:
    """run.json of a checkpoint; empty for one that another program wrote."""
    file = directory / RUN_FILE
    return read_json(file) if file.is_file() else {}


def save(root: Path, step: int, state: State, facts: dict[str, Any], *, keep: int) -> None:
    """Write root/iter_STEP and point the tracker at it; older ones than the newest `keep` are removed. All ranks call it."""
    final = iteration_directory(root, step)
    device.release_unused()  # megatron-core copies the optimizer's state: once to gather it, once to write it
    write(final, _sharded(state, loading=False), {"step": step, **facts})
    if dist.get_rank() == 0:
        write_atomically(root / TRACKER, f"{step}\n")
        for old in sorted(root.glob("iter_???????"))[:-keep]:
            shutil.rmtree(old)
    device.release_unused()
    dist.barrier()


def write(final: Path, sharded_state: dict[str, Any], facts: dict[str, Any]) -> None:
    """Write a sharded state dict as the torch_dist directory `final`, with facts and file hashes in run.json."""
    partial = final.with_name(final.name + ".partial")
    if dist.get_rank() == 0:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    dist.barrier()
    strategy = get_default_save_sharded_strategy()
    if parallel_state.model_parallel_is_initialized():
        group = parallel_state.get_data_parallel_group(with_context_parallel=True)
        strategy = FullyParallelSaveStrategyWrapper(strategy, group, True)
    with held_back():  # a signal to all processes of a job would end megatron-core's writers, and with them the save
        dist_checkpointing.save(sharded_state, str(partial), strategy, content_metadata=CONTENT)
    filesystem_async._results_queue = None  # ends the process behind it, which has loaded torch and would stay for ever
    dist.barrier()
    if dist.get_rank() == 0:
        files = {str(p.relative_to(partial)): p for p in sorted(partial.rglob("*")) if p.is_file()}
        sums = {name: sha256(file) for name, file in files.items()}
        sizes = {name: file.stat().st_size for name, file in files.items()}
        write_json(partial / RUN_FILE, {**facts, "latxa_megatron": __version__, "sha256": sums, "bytes": sizes})
        if final.exists():  # damaged, or it would have been resumed from
            shutil.rmtree(final)
        move_into_place(partial, final)
    dist.barrier()


def load(directory: Path, state: State) -> dict[str, Any]:
    """Load everything of a training checkpoint, whatever layout wrote it; its run.json."""
    allocate_state(state.optimizer)
    loaded = _load(directory, _sharded(state, loading=True))
    for i, chunk in enumerate(state.chunks):
        chunk.load_state_dict(loaded[f"model{i}"])
    _follow_run_file(state.optimizer, loaded["optimizer"])
    state.optimizer.load_state_dict(loaded["optimizer"])
    state.schedule.load_state_dict(loaded["schedule"])
    return read_facts(directory)


def _follow_run_file(optimizer: MegatronOptimizer, loaded: dict[str, Any]) -> None:
    """Settings that a run file may change on a resume are the run file's, not those that the checkpoint was saved with."""
    now = {group["wd_mult"]: group for group in optimizer.param_groups}
    for group in loaded["optimizer"]["param_groups"]:
        group.update({key: now[group["wd_mult"]][key] for key in ("max_lr", "min_lr", "betas", "eps")})


def load_weights(directory: Path, chunks: list[GPTModel]) -> None:
    """Load the model's weights alone, as from an imported checkpoint. Raises LatxaError where one is missing."""
    wanted = {f"model{i}": chunk.sharded_state_dict(metadata=_metadata()) for i, chunk in enumerate(chunks)}
    loaded, _, absent = _load(directory, wanted, StrictHandling.RETURN_UNEXPECTED)
    weights = sorted(key for key in absent if not key.endswith("_extra_state"))  # FP8 scales: begin afresh
    if weights:
        raise LatxaError(f"{directory}: has no {weights[0]}; it is the checkpoint of another model")
    for i, chunk in enumerate(chunks):
        chunk.load_state_dict(loaded[f"model{i}"], strict=False)


def _metadata() -> dict[str, Any]:
    return {**CONTENT, "dp_cp_group": parallel_state.get_data_parallel_group(with_context_parallel=True)}


def _sharded(state: State, *, loading: bool) -> dict[str, Any]:
    models = {f"model{i}": c.sharded_state_dict(metadata=_metadata()) for i, c in enumerate(state.chunks)}
    optimizer = state.optimizer.sharded_state_dict(models, is_loading=loading, metadata=CONTENT)
    return {**models, "optimizer": optimizer, "schedule": state.schedule.state_dict()}


def _load(directory: Path, wanted: dict[str, Any], strict: StrictHandling | None = None) -> Any:
    strategy = get_default_load_sharded_strategy(str(directory))
    group = parallel_state.get_data_parallel_group(with_context_parallel=True)
    options = {} if strict is None else {"strict": strict}
    wrapped = FullyParallelLoadStrategyWrapper(strategy, group)
    try:
        return dist_checkpointing.load(wanted, str(directory), wrapped, **options)
    except (CheckpointException, CheckpointingException, OSError, EOFError, RuntimeError, AssertionError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise LatxaError(f"{directory}: is damaged, or of another shape than model.hf says ({reason[:200]})") from None
