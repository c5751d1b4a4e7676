"""A run on so many GPUs of a kind: whether it fits, and what it takes."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from latxa_megatron.config import RunConfig
from latxa_megatron.data.dataset import PackedDataset
from latxa_megatron.errors import LatxaError
from latxa_megatron.model.layout import check_layout
from latxa_megatron.model.llama import LlamaShape
from latxa_megatron.plan.gpus import Gpu
from latxa_megatron.plan.memory import SLACK, StageMemory, stage_memory
from latxa_megatron.plan.seconds import Seconds, step_seconds
from latxa_megatron.plan.stages import stages
from latxa_megatron.scale import scale
from latxa_megatron.train.check import layout, precision, steps
from latxa_megatron.train.flops import matrix_parameters

_SAMPLES = 4096  # of a plan, whose documents stand for all


@dataclass(frozen=True)
class Estimate:
    """steps is None where neither the run file nor a pack plan says how many there are."""

    gpu: Gpu
    gpus: int
    dp: int
    memory: list[StageMemory]
    seconds: Seconds
    positions_per_second_per_gpu: float
    model_tflops_per_gpu: float
    steps: int | None
    checkpoint_bytes: int

    @property
    def worst(self) -> StageMemory:
        return max(self.memory, key=lambda stage: stage.peak)

    @property
    def fits(self) -> bool:
        return self.worst.peak + SLACK <= self.gpu.memory

    @property
    def days(self) -> float | None:
        return None if self.steps is None else self.steps * self.seconds.step / 86400

    def as_json(self) -> dict[str, Any]:
        """Memory in GiB, times in seconds."""
        derived = {"fits": self.fits, "seconds_per_step": self.seconds.step, "days": self.days, "slack_gib": SLACK}
        return {**asdict(self), **derived}


def estimate(run: RunConfig, gpu: Gpu, gpus: int, document: float | None = None) -> Estimate:
    """document: mean length of the document that a position is in; without it the pack plan's, and without one a sample's.

    Raises LatxaError for a layout that does not go with the model, the GPUs or the batch, and for FP8 without FP8 units."""
    shape, spread, numbers = LlamaShape.from_hf(run.model.hf), layout(run), precision(run)
    check_layout(shape, spread)
    ranks = spread.tp * spread.pp * spread.cp
    if gpus % ranks:
        raise LatxaError(f"--gpus {gpus}: does not divide by tp x pp x cp = {ranks}; choose other GPUs or another layout")
    dp = gpus // ranks
    if run.train.global_batch % (dp * run.train.micro_batch):
        raise LatxaError(
            f"train.global_batch: {run.train.global_batch} samples do not divide by {dp} data-parallel ranks with "
            f"{run.train.micro_batch} a microbatch"
        )
    if numbers.fp8 != "none" and gpu.fp8 is None:
        raise LatxaError(f"precision.fp8: {gpu.name} has no FP8; set it to none")
    found, samples = _documents(run)
    document = found if document is None else document
    microbatches = run.train.global_batch // (dp * run.train.micro_batch)
    pipeline = stages(shape, spread, microbatches)
    memory = [stage_memory(each, shape, spread, numbers, run.train, run.data.seq_length, dp) for each in pipeline]
    seconds = step_seconds(pipeline, shape, spread, numbers, run.train, run.data.seq_length, document, dp, gpu)
    positions = run.train.global_batch * run.data.seq_length
    attention = 6 * shape.layers * shape.heads * shape.head_dim * document
    flops = positions * (6 * matrix_parameters(shape) + attention)
    parameters = matrix_parameters(shape) + (0 if shape.tied else shape.vocab * shape.hidden)
    return Estimate(
        gpu,
        gpus,
        dp,
        memory,
        seconds,
        positions / seconds.step / gpus,
        flops / seconds.step / gpus / 1e12,
        run.train.steps or (steps(run, samples) if samples else _stated_steps(run, positions)),
        14 * parameters,
    )


def _documents(run: RunConfig) -> tuple[float, int]:
    """Mean length of the document that a position is in, and the samples of the plan; a sample each, and 0, without a plan."""
    if not run.data.plan.exists():
        return float(run.data.seq_length), 0
    dataset = PackedDataset(run.data.plan)
    lengths = dataset.document_positions(0, min(len(dataset), _SAMPLES)).astype(np.float64)
    positions = min(len(dataset), _SAMPLES) * run.data.seq_length
    return float(np.square(lengths).sum() / positions), len(dataset)


def _stated_steps(run: RunConfig, positions: int) -> int | None:
    tokens = scale(run).tokens
    return -(-tokens // positions) if tokens else None
