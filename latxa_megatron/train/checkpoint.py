"""Megatron torch_dist checkpoints: DIR/iter_0000030/ with a run.json, and DIR/latest_checkpointed_iteration.txt.

What they hold, and finding and loading them; save.py writes them.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.dist_checkpointing.core import CheckpointingException
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.serialization import get_default_load_sharded_strategy
from megatron.core.dist_checkpointing.strategies.fully_parallel import FullyParallelLoadStrategyWrapper
from megatron.core.dist_checkpointing.utils import extract_sharded_tensors_and_factories
from megatron.core.dist_checkpointing.validation import StrictHandling
from megatron.core.fp8_utils import is_float8tensor
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
from torch.distributed.checkpoint.api import CheckpointException

from latxa_megatron.errors import LatxaError
from latxa_megatron.files import read_json
from latxa_megatron.train.optimizer import allocate_state

TRACKER = "latest_checkpointed_iteration.txt"
RUN_FILE = "run.json"

CONTENT = {
    "distrib_optim_sharding_type": "fully_reshardable",
    "singleton_local_shards": False,
    "chained_optim_avoid_prefix": True,
}
"""How tensors are named and cut in the files, in megatron-core's words; stored with them, so that any reader knows."""

TRAINED = "optimizer.state.param."
"""What stands before a weight's name in the optimizer's state, where it is in fp32."""

FP8_ROUNDING = 0.1
"""More than rounding to e4m3 does to a tensor, as the norm of the difference over the tensor's: 0.03 for normal values."""


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
    return next(filter(_is_whole, _newest_first(root)), None)


def latest_for_all(root: Path) -> Path | None:
    """The same as rank 0 sees it, who names on standard error what is passed over. All ranks call it."""
    found: list[Path | None] = [None]
    if dist.get_rank() == 0:
        found = [latest(root)]
        for path in _newest_first(root):
            if path == found[0]:
                break
            print(f"{path}: is damaged, and passed over", file=sys.stderr, flush=True)
    dist.broadcast_object_list(found, src=0)
    return found[0]


def _newest_first(root: Path) -> list[Path]:
    return sorted((path for path in root.glob("iter_*") if path.suffix == ""), reverse=True)


def _is_whole(directory: Path) -> bool:
    """Whether every file that run.json lists is there with its size."""
    try:
        sizes = read_facts(directory).get("bytes")
    except LatxaError:  # run.json itself is damaged
        return False
    return sizes is not None and all(
        (directory / name).is_file() and (directory / name).stat().st_size == size for name, size in sizes.items()
    )


def resolve(checkpoint: Path) -> Path:
    """The iter_* directory that a path names: itself, or the newest inside. LatxaError if there is none, or it is damaged."""
    if (checkpoint / ".metadata").is_file():
        return checkpoint
    if not checkpoint.is_dir():
        raise LatxaError(f"{checkpoint}: there is no such checkpoint directory")
    newest = next(iter(_newest_first(checkpoint)), None)
    if newest is None:
        raise LatxaError(f"{checkpoint}: holds no Megatron checkpoint")
    if not (newest / RUN_FILE).is_file():
        raise LatxaError(f"{newest}: has no {RUN_FILE}; if another program wrote it, name it itself")
    if not _is_whole(newest):
        whole = latest(checkpoint)
        mend = f"name {whole} to take the last one that is whole" if whole else "none there is whole"
        raise LatxaError(f"{newest}: is not whole by its run.json, a file is missing or has another size; {mend}")
    return newest


def read_facts(directory: Path) -> dict[str, Any]:
    """run.json of a checkpoint; empty for one that another program wrote. LatxaError where it is damaged."""
    file = directory / RUN_FILE
    found = read_json(file) if file.is_file() else {}
    if not isinstance(found, dict):
        raise LatxaError(f"{file}: is not what a run or an import writes; copy or make the checkpoint again")
    return found


def has_fp8_weights(directory: Path) -> bool:
    """Whether the model's weights in a checkpoint have FP8's rounding in them; the optimizer's are those that were trained."""
    return bool(read_facts(directory).get("run", {}).get("precision", {}).get("fp8_params", False))


def load(directory: Path, state: State) -> dict[str, Any]:
    """Load everything of a training checkpoint, whatever layout wrote it; its run.json."""
    allocate_state(state.optimizer)
    loaded = _load(directory, sharded(state, loading=True))
    for i, chunk in enumerate(state.chunks):
        _take(directory, chunk, loaded[f"model{i}"])
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
    if has_fp8_weights(directory):
        for place in nested_values(extract_sharded_tensors_and_factories(wanted)[0]):  # the optimizer has no other objects
            place.key = TRAINED + place.key
    loaded, _, absent = _load(directory, wanted, StrictHandling.RETURN_UNEXPECTED)
    weights = sorted(key for key in absent if not key.endswith("_extra_state"))  # FP8 scales: begin afresh
    if weights:
        raise LatxaError(f"{directory}: has no {weights[0]}; it is the checkpoint of another model")
    for i, chunk in enumerate(chunks):
        _take(directory, chunk, loaded[f"model{i}"], strict=False)


def _take(directory: Path, chunk: GPTModel, loaded: dict[str, Any], *, strict: bool = True) -> None:
    """Give a chunk its loaded weights; those that it keeps in FP8 both as the values there and as the optimizer's first ones.

    Raises LatxaError where a weight in FP8 did not become what was loaded.
    """
    chunk.load_state_dict(loaded, strict=strict)
    for name, weight in chunk.named_parameters():
        if is_float8tensor(weight):
            first = weight.get_high_precision_init_val()  # what the optimizer will take; None once it has
            if first is not None:
                first.copy_(loaded[name])
            if float((weight.dequantize() - loaded[name]).norm() / loaded[name].norm()) > FP8_ROUNDING:
                raise LatxaError(f"{directory}: {name} does not become itself in FP8; set precision.fp8_params to false")


def _metadata() -> dict[str, Any]:
    return {**CONTENT, "dp_cp_group": parallel_state.get_data_parallel_group(with_context_parallel=True)}


def sharded(state: State, *, loading: bool = False) -> dict[str, Any]:
    """The state as megatron-core saves and loads it: this rank's tensors and where they belong in the whole."""
    models = {f"model{i}": c.sharded_state_dict(metadata=_metadata()) for i, c in enumerate(state.chunks)}
    optimizer = state.optimizer.sharded_state_dict(models, is_loading=loading, metadata=CONTENT)
    return {**models, "optimizer": optimizer, "schedule": state.schedule.state_dict()}


def _load(directory: Path, wanted: dict[str, Any], strict: StrictHandling | None = None) -> Any:
    strategy = get_default_load_sharded_strategy(str(directory))
    # On by default from 0.19: it quantizes the gate's and the up projection's halves of one FP8 weight with a scale each.
    strategy.stream_ckpt_dequant = False
    group = parallel_state.get_data_parallel_group(with_context_parallel=True)
    options = {} if strict is None else {"strict": strict}
    wrapped = FullyParallelLoadStrategyWrapper(strategy, group)
    try:
        return dist_checkpointing.load(wanted, str(directory), wrapped, **options)
    except (CheckpointException, CheckpointingException, OSError, EOFError, RuntimeError, AssertionError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise LatxaError(f"{directory}: is damaged, or of another shape than model.hf says ({reason[:200]})") from None
