"""What is wrong with a run, found in seconds and without megatron-core: before a job is queued, and again by every rank."""

import importlib.util
from pathlib import Path

import torch

from latxa_megatron import launcher
from latxa_megatron.config import RunConfig
from latxa_megatron.data.dataset import open_samples
from latxa_megatron.data.exported import Export
from latxa_megatron.data.plan import PackPlan
from latxa_megatron.errors import LatxaError
from latxa_megatron.model.layout import Layout, Precision, check_layout
from latxa_megatron.model.llama import LlamaShape
from latxa_megatron.sections import LoggingSection

_DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def layout(run: RunConfig) -> Layout:
    p = run.parallel
    return Layout(p.tp, p.pp, p.vp, tuple(p.stages) if p.stages else None, p.cp, p.tp_overlap)


def precision(run: RunConfig) -> Precision:
    p = run.precision
    first, last = p.bf16_layers
    return Precision(_DTYPES[p.dtype], _DTYPES[p.gradients], p.fp8, p.fp8_params, p.fp8_head, bf16_layers=(first, last))


def steps(run: RunConfig, samples: int) -> int:
    """Optimizer steps of a run over a plan of so many samples."""
    return run.train.steps or samples // run.train.global_batch


def check_run(run: RunConfig, world_size: int) -> None:
    """Raise LatxaError with the reason and the mend if the run cannot work on world_size ranks."""
    _check_packages(run.logging)
    shape = LlamaShape.from_hf(run.model.hf)
    check_spread(run, shape, world_size)
    here = launcher.processes_here()
    if run.parallel.tp_overlap and here and here % run.parallel.tp:
        raise LatxaError(
            f"parallel.tp_overlap: a node has {here} processes, no multiple of tp {run.parallel.tp}; set it to false"
        )
    if run.model.checkpoint and not run.model.checkpoint.is_dir():
        raise LatxaError(f"model.checkpoint: there is no checkpoint {run.model.checkpoint}; `latxa convert import` makes one")
    _check_data(run, shape)


def check_spread(run: RunConfig, shape: LlamaShape, world_size: int) -> None:
    """Raise LatxaError if this model, batch and sequence length do not go with the layout on world_size ranks.

    Reads no file: what `latxa plan search` may propose is what this lets pass.
    """
    check_layout(shape, layout(run))
    if run.precision.fp8 != "none":
        widths = (shape.hidden * run.parallel.tp, shape.ffn, shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim)
        if any(width // run.parallel.tp % 16 for width in widths):
            raise LatxaError(f"precision.fp8: {run.model.hf} has layers that are no multiples of 16 wide at tp {run.parallel.tp}")
    if run.precision.fp8_head and (shape.tied or shape.vocab // run.parallel.tp % 16):
        why = "shares its weights with the embedding" if shape.tied else f"has {shape.vocab} rows, not a multiple of 16 x tp"
        raise LatxaError(f"precision.fp8_head: the head of {run.model.hf} {why}; set it to false")
    if sum(run.precision.bf16_layers) > shape.layers:
        raise LatxaError(f"precision.bf16_layers: {run.precision.bf16_layers} are more than the model's {shape.layers} layers")
    ranks = run.parallel.tp * run.parallel.cp * run.parallel.pp
    if world_size % ranks:
        raise LatxaError(f"parallel: tp x cp x pp is {ranks}, and {world_size} processes do not divide by it")
    data_parallel = world_size // ranks
    if run.train.cuda_graph and ranks > 1:
        raise LatxaError("train.cuda_graph: goes with data parallelism alone; set it to false, or parallel.tp, pp and cp to 1")
    if run.train.global_batch % (run.train.micro_batch * data_parallel):
        raise LatxaError(
            f"train.global_batch: {run.train.global_batch} is not a multiple of micro_batch {run.train.micro_batch} "
            f"x {data_parallel} data-parallel ranks"
        )
    microbatches = run.train.global_batch // (run.train.micro_batch * data_parallel)
    if run.parallel.vp > 1 and microbatches % run.parallel.pp:
        raise LatxaError(f"parallel.vp: the {microbatches} microbatches of a step do not divide by pp {run.parallel.pp}")
    unit = run.parallel.tp * (16 if run.precision.fp8 != "none" else 1)
    if run.data.seq_length % unit:
        raise LatxaError(f"data.seq_length: {run.data.seq_length} is not a multiple of {unit} (tp, times 16 for FP8)")
    if run.data.seq_length > shape.max_positions:
        raise LatxaError(f"data.seq_length: is {run.data.seq_length}, but the model has {shape.max_positions} positions")


def _check_packages(section: LoggingSection) -> None:
    for name, wanted in {"tensorboard": section.tensorboard, "wandb": section.wandb is not None}.items():
        spec = importlib.util.find_spec(name) if wanted else None
        if wanted and (spec is None or spec.origin is None):  # no origin: a mere directory of that name, such as W&B leaves
            raise LatxaError(f"logging.{name}: the package is missing; pip install 'latxa-megatron[{name}]'")


def _check_data(run: RunConfig, shape: LlamaShape) -> None:
    plan = _check_plan("data.plan", run.data.plan, run, shape)
    for name, path in run.validation.plans.items():
        _check_plan(f"validation.plans.{name}", path, run, shape)
    wanted = steps(run, len(plan)) * run.train.global_batch
    if wanted == 0 or wanted > len(plan):
        raise LatxaError(
            f"train.steps: needs {wanted or run.train.global_batch} samples, but {run.data.plan} has {len(plan)}; "
            "give the sources more epochs or train fewer steps"
        )


def _check_plan(key: str, path: Path, run: RunConfig, shape: LlamaShape) -> PackPlan | Export:
    plan = open_samples(path)
    if plan.seq_length != run.data.seq_length:
        raise LatxaError(
            f"data.seq_length: is {run.data.seq_length}, but {path} ({key}) was packed for {plan.seq_length}; pack again"
        )
    if plan.vocab_size > shape.vocab:
        raise LatxaError(f"{key}: its tokens go up to {plan.vocab_size - 1}, but the model's vocabulary has {shape.vocab}")
    return plan
