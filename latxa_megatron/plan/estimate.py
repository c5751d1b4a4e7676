"""A run on so many GPUs of a kind: whether it fits, and what it takes."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from latxa_megatron.config import RunConfig
from latxa_megatron.data.dataset import PackedDataset
from latxa_megatron.model.llama import LlamaShape
from latxa_megatron.plan.gpus import Gpu, check_fp8
from latxa_megatron.plan.memory import SLACK, StageMemory, stage_memory
from latxa_megatron.plan.seconds import Seconds, step_seconds
from latxa_megatron.plan.stages import Stage, stages
from latxa_megatron.scale import scale
from latxa_megatron.train.check import check_spread, layout, precision, steps
from latxa_megatron.train.flops import matrix_parameters, utilization
from latxa_megatron.train.size import checkpoint_bytes

_SAMPLES = 4096  # of a plan, whose documents stand for all


@dataclass(frozen=True)
class Given:
    """What a run's layouts share: the model, its documents, the GPUs. node: GPUs of one; samples: of the plan, 0 without one."""

    shape: LlamaShape
    document: float
    samples: int
    gpu: Gpu
    gpus: int
    node: int

    @classmethod
    def of(cls, run: RunConfig, gpu: Gpu, gpus: int, document: float | None = None, node: int | None = None) -> "Given":
        """document: mean length of the document that a position is in; without it the pack plan's, and without one a sample's.

        node: where it is not the GPU's own.
        """
        found, samples = _documents(run)
        shape = LlamaShape.from_hf(run.model.hf)
        mean = found if document is None else min(document, run.data.seq_length)  # a longer one is cut into samples
        return cls(shape, mean, samples, gpu, gpus, node or gpu.node)


@dataclass(frozen=True)
class Estimate:
    """steps is None where neither the run file nor a pack plan says how many there are; mfu as training's metrics count it."""

    gpu: Gpu
    gpus: int
    dp: int
    memory: list[StageMemory]
    seconds: Seconds
    positions_per_second_per_gpu: float
    model_tflops_per_gpu: float
    mfu: float | None
    steps: int | None
    checkpoint_bytes: int

    @property
    def worst(self) -> StageMemory:
        return max(self.memory, key=lambda stage: stage.needed)

    @property
    def fits(self) -> bool:
        return fits(self.memory, self.gpu)

    @property
    def days(self) -> float | None:
        """Of steps alone."""
        return None if self.steps is None else self.steps * self.seconds.step / 86400

    def as_json(self) -> dict[str, Any]:
        """Memory in GiB, times in seconds."""
        derived = {"fits": self.fits, "seconds_per_step": self.seconds.step, "days": self.days, "slack_gib": SLACK}
        return {**asdict(self), **derived, "largest": {"memory": self.worst.largest(), "seconds": self.seconds.largest()}}


def fits(memory: list[StageMemory], gpu: Gpu) -> bool:
    return all(stage.needed <= gpu.memory for stage in memory)


def estimate(run: RunConfig, gpu: Gpu, gpus: int, document: float | None = None, node: int | None = None) -> Estimate:
    """What a run takes; document and node as in Given.

    Raises LatxaError for a layout that training would refuse, and for FP8 on GPUs without it.
    """
    return estimate_given(run, Given.of(run, gpu, gpus, document, node))


def estimate_given(run: RunConfig, given: Given) -> Estimate:
    shape, gpu, gpus = given.shape, given.gpu, given.gpus
    pipeline, memory = run_memory(run, shape, gpus)
    check_fp8(run.precision.fp8, gpu)
    dp = data_parallel(run, gpus)
    seconds = step_seconds(
        pipeline, shape, layout(run), precision(run), run.train, run.data.seq_length, given.document, dp, gpu, given.node
    )
    positions = run.train.global_batch * run.data.seq_length
    attention = 6 * shape.layers * shape.heads * shape.head_dim * given.document
    tflops = positions * (6 * matrix_parameters(shape) + attention) / seconds.step / gpus / 1e12
    return Estimate(
        gpu,
        gpus,
        dp,
        memory,
        seconds,
        positions / seconds.step / gpus,
        tflops,
        utilization(tflops, gpu.name.upper()),
        run.train.steps or (steps(run, given.samples) if given.samples else _stated_steps(run, positions)),
        checkpoint_bytes(run, shape),
    )


def run_memory(run: RunConfig, shape: LlamaShape, gpus: int) -> tuple[list[Stage], list[StageMemory]]:
    """The pipeline's stages and what each needs. Raises LatxaError for a layout that training would refuse."""
    check_spread(run, shape, gpus)
    dp = data_parallel(run, gpus)
    pipeline = stages(shape, layout(run), run.train.global_batch // (dp * run.train.micro_batch))
    spread, numbers = layout(run), precision(run)
    return pipeline, [stage_memory(each, shape, spread, numbers, run.train, run.data.seq_length, dp) for each in pipeline]


def data_parallel(run: RunConfig, gpus: int) -> int:
    return gpus // (run.parallel.tp * run.parallel.cp * run.parallel.pp)


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
