"""Training, from a run to its last checkpoint."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist

from latxa_megatron.config import RunConfig
from latxa_megatron.data.dataset import PackedDataset
from latxa_megatron.errors import LatxaError
from latxa_megatron.files import locked
from latxa_megatron.model.gpt import build_model
from latxa_megatron.model.llama import LlamaShape
from latxa_megatron.train import checkpoint
from latxa_megatron.train.check import check_run, layout, precision, steps
from latxa_megatron.train.checkpoint import State
from latxa_megatron.train.distributed import connected, spread
from latxa_megatron.train.metrics import MetricsLog
from latxa_megatron.train.optimizer import build_optimizer, build_schedule, unwrap, wrap
from latxa_megatron.train.step import StepResult, train_step

Watch = Callable[[int, int, StepResult], None]
"""Called on rank 0 after each step with (steps done, steps in all, result)."""


def train(run: RunConfig, watch: Watch = lambda done, total, result: None) -> None:
    """Train a run to its end, from its newest checkpoint where it has one. Every rank calls it with the same run.

    Raises LatxaError for a run that cannot work, before any model is built.
    """
    with connected(), _alone(run):
        _train(run, watch)


@contextmanager
def _alone(run: RunConfig) -> Iterator[None]:
    """Keep a second start of the run out while processes of a killed one are still at work. Rank 0 holds the lock for all."""
    if dist.get_rank() == 0:
        check_run(run, dist.get_world_size())
        run.out.mkdir(parents=True, exist_ok=True)
        with locked(run.out, "training this run"):
            yield
    else:
        yield


def _train(run: RunConfig, watch: Watch) -> None:
    check_run(run, dist.get_world_size())
    spread(layout(run), run.train.seed)
    dataset = PackedDataset(run.data.plan)
    total = steps(run, len(dataset))
    facts = {"run": run.model_dump(mode="json"), "plan": dataset.plan.fingerprint}

    chunks = build_model(LlamaShape.from_hf(run.model.hf), layout(run), precision(run))
    resumed = checkpoint.latest(run.checkpoints)
    if resumed is None and run.model.checkpoint:
        checkpoint.load_weights(checkpoint.resolve(run.model.checkpoint), chunks)
    model = wrap(chunks)
    optimizer = build_optimizer(run.optimizer, model)
    schedule = build_schedule(run.optimizer, optimizer, total)
    state = State([unwrap(chunk) for chunk in model], optimizer, schedule)
    start = 0
    if resumed is not None:
        _check_same_data(checkpoint.read_facts(resumed), facts, run)
        start = int(checkpoint.load(resumed, state)["step"])

    log = MetricsLog(run.out, start) if dist.get_rank() == 0 else None
    for step in range(start, total):
        began = time.perf_counter()
        schedule.step(1)
        result = train_step(model, optimizer, dataset, run.train, step)
        if not math.isfinite(result.loss + result.grad_norm):
            raise LatxaError(
                f"step {step + 1}: the loss is {result.loss}, the gradient norm {result.grad_norm}; "
                "start again from the last checkpoint with a lower optimizer.lr"
            )
        if log:
            log.write(_line(run, step + 1, result, schedule, time.perf_counter() - began))
            watch(step + 1, total, result)
        if (step + 1) % run.checkpoint.every == 0 or step + 1 == total:
            checkpoint.save(run.checkpoints, step + 1, state, facts, keep=run.checkpoint.keep)


def _check_same_data(done: dict[str, Any], facts: dict[str, Any], run: RunConfig) -> None:
    """A run goes on with the samples it began with."""
    if done["plan"] != facts["plan"]:
        raise LatxaError(f"{run.data.plan}: is not the plan that {run.out} was trained with; use a new `out:`")
    before, now = done["run"]["train"]["global_batch"], run.train.global_batch
    if before != now:
        raise LatxaError(f"train.global_batch: {run.out} was trained with {before}, not {now}; use a new `out:`")


def _line(run: RunConfig, step: int, result: StepResult, schedule: Any, seconds: float) -> dict[str, Any]:
    positions = run.train.global_batch * run.data.seq_length
    return {
        "step": step,
        "loss": result.loss,
        "grad_norm": result.grad_norm,
        "lr": schedule.optimizer.param_groups[0]["lr"],
        "trained_tokens": result.trained_tokens,
        "positions": positions,
        "seconds": seconds,
        "positions_per_second": positions / seconds,
    }
