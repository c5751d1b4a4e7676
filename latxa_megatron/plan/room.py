"""Whether a run that is about to start, or to be submitted, has room on its GPUs: what cannot fit is refused before."""

from collections.abc import Callable
from dataclasses import replace

import torch

from latxa_megatron.config import RunConfig
from latxa_megatron.errors import LatxaError
from latxa_megatron.model import device
from latxa_megatron.model.llama import LlamaShape
from latxa_megatron.plan.estimate import Given, run_memory
from latxa_megatron.plan.gpus import check_fp8, find_gpu
from latxa_megatron.plan.memory import StageMemory
from latxa_megatron.plan.mend import mends

MEASURED, ELSE = 0.05, 0.15
"""Parts of a peak by which a plan may err: the first in settings like those measured (docs/plan.md), as a test proves; the
second in others, and chosen."""


def check_room(run: RunConfig, ranks: int, warn: Callable[[str], None] = lambda says: None) -> None:
    """For training's start on so many ranks: raise LatxaError for a run that this rank's GPU cannot have room for, and warn of
    one for which it may have too little. On a CPU nothing is said."""
    gib = gpu_gib()
    if gib is not None and (says := judge(run, LlamaShape.from_hf(run.model.hf), ranks, gib)):
        warn(says)


def check_room_on(name: str, run: RunConfig, ranks: int, warn: Callable[[str], None]) -> None:
    """The same before a run is submitted, for a kind of GPU that gpus.yaml has; LatxaError also for FP8 where there is none."""
    gpu = find_gpu(name)
    check_fp8(run.precision.fp8, gpu)
    try:
        says = judge(run, LlamaShape.from_hf(run.model.hf), ranks, gpu.memory)
    except LatxaError as error:
        raise LatxaError(f"{name}: {error}") from None
    if says:
        warn(f"{name}: {says}")


def gpu_gib() -> float | None:
    """Memory of this process's GPU; None without one."""
    return torch.cuda.get_device_properties(device.device()).total_memory / 2**30 if device.on_gpu() else None


def judge(run: RunConfig, shape: LlamaShape, ranks: int, gib: float) -> str | None:
    """A warning where the plan does not fit, None where it does.

    Raises LatxaError only if it would not fit either were the plan too high by all it may err, and nothing beside torch's peak in
    use: no run is refused that fits.
    """
    _, memory = run_memory(run, shape, ranks)
    worst = max(memory, key=lambda stage: stage.needed)
    if worst.needed <= gib:
        return None
    if worst.peak * (1 - margin(run)) <= gib:
        return f"this run may not fit: it is planned to need {_of(worst, gib)}"
    gpu = replace(find_gpu("h200"), memory=gib)  # the memory decides what fits, a kind of GPU only which mend comes first
    document = float(run.data.seq_length)
    ways = " or ".join(mend.says for mend in mends(run, Given(shape, document, 0, gpu, ranks, gpu.node)))
    raise LatxaError(
        f"this run does not fit: it needs {_of(worst, gib)}; {ways or 'use more GPUs'}. `latxa plan` says more, and --force "
        "starts it all the same"
    )


def margin(run: RunConfig) -> float:
    """By what part of a peak a plan of such a run may err."""
    p, numbers = run.parallel, run.precision
    measured = p.cp == p.vp == 1 and numbers.dtype == "bf16" and (numbers.fp8 == "none" or numbers.fp8_params)
    return MEASURED if measured and run.train.recompute != "selective" else ELSE


def _of(stage: StageMemory, gib: float) -> str:
    return f"{stage.needed:.1f} of {gib:.1f} GiB on stage {stage.stage}"
