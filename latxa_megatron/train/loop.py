"""Training, from a run to its last checkpoint."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist

from latxa_megatron.config import RunConfig
from latxa_megatron.errors import LatxaError
from latxa_megatron.files import locked
from latxa_megatron.model import device
from latxa_megatron.sections import CheckpointSection
from latxa_megatron.starts import Start
from latxa_megatron.train.check import check_run
from latxa_megatron.train.distributed import (
    compute_same_bits,
    connected,
    let_messages_be_recorded,
    let_messages_overlap,
    time_limit,
)
from latxa_megatron.train.flops import training_flops, utilization
from latxa_megatron.train.graph import RECORDED
from latxa_megatron.train.guard import Patience
from latxa_megatron.train.hang import HangWatch
from latxa_megatron.train.heartbeat import heartbeats
from latxa_megatron.train.peers import Peers
from latxa_megatron.train.reporting import Report, reports
from latxa_megatron.train.setup import Job, set_up
from latxa_megatron.train.step import StepResult, train_step
from latxa_megatron.train.stop import StopSignals
from latxa_megatron.train.stopwatch import percentiles
from latxa_megatron.train.validate import validate, validation_sets

Watch = Callable[[int, dict[str, Any]], None]
"""Called on rank 0 after each step with the steps in all and the step's line of metrics.jsonl."""

Check = Callable[[RunConfig, int], None]
"""Called on every rank with the number of ranks, before a model is built; a LatxaError that it raises ends the run."""


ORPHANS = 120
"""Seconds that a start waits for another of the same run: the writer of its checkpoint outlives a run that is killed."""


def train(run: RunConfig, watch: Watch = lambda total, line: None, check: Check = lambda run, ranks: None) -> bool:
    """Train a run to its end, from its newest checkpoint where it has one. Every rank calls it with the same run.

    SIGTERM and SIGUSR1 end it after the step under way, with a checkpoint; then, and only then, the result is False.
    Raises LatxaError for a run that cannot work, before any model is built.
    """
    compute_same_bits(run.train.deterministic)
    let_messages_overlap(run.parallel.tp_overlap)
    let_messages_be_recorded(run.train.cuda_graph)
    with heartbeats() as beat, connected(time_limit(run)), Peers():
        check_run(run, dist.get_world_size())
        with _alone(run), Start(run.out, dist.get_world_size(), write=dist.get_rank() == 0) as start:
            check(run, dist.get_world_size())
            job = set_up(run)
            start.began(job.start, job.total)
            with (
                StopSignals() as stop,
                reports(run, job.start) as report,
                HangWatch(run.out, run.guard.hang_minutes, beat) as hang,
                job.graph or nullcontext(),
            ):
                finished = _train(job, stop, hang, report, watch)
            start.ended(finished=finished)
            return finished


@contextmanager
def _alone(run: RunConfig) -> Iterator[None]:
    """Keep a second start of the run out while processes of a killed one are still at work. Rank 0 holds the lock for all."""
    if dist.get_rank() == 0:
        run.out.mkdir(parents=True, exist_ok=True)
        with locked(run.out, "training this run", ORPHANS):
            yield
    else:
        yield


def _train(job: Job, stop: StopSignals, hang: HangWatch, report: Report | None, watch: Watch) -> bool:
    run, faults = job.run, Patience(job.run.guard)
    sets = validation_sets(run)
    ended, last = time.perf_counter(), True
    for step in range(job.start, job.total):
        hang.beat()
        pause, began = time.perf_counter() - ended, time.perf_counter()
        job.state.schedule.step(1)
        result = train_step(job, step)
        if result.fault:  # once more: what the samples or the weights do comes again, what the hardware did hardly
            job.saver.finish()
            hang.beat()
            result = replace(train_step(job, step), first_fault=result.fault)
        ended = time.perf_counter()
        action = faults.after(result.first_fault, result.fault, can_roll_back=job.can_roll_back)
        if action == "rolled back":
            job.roll_back(step + 1)
        last = step + 1 == job.total
        hang.beat()
        due = (last or (step + 1) % run.validation.every == 0) and action != "stopped"
        scores = validate(job, sets) if sets and due else {}
        if report:
            line = _line(job, step, result, ended - began, pause, action, scores)
            report(line)
            watch(job.total, line)
        if action == "stopped":
            raise LatxaError(_stopped(job, step, result))
        stopping = stop.asked()
        if stopping or _save_is_due(run.checkpoint, step + 1, last):
            hang.beat()
            job.saver.finish()
            hang.beat()
            job.save(step + 1)
            stopping = stopping or stop.asked()  # while it was saved
        else:
            if step + 1 == job.start + (RECORDED if job.graph else 1):
                job.rehearse_save()
            job.saver.poll()
        if stopping:
            break
    hang.beat()
    job.saver.finish()
    return last


def _stopped(job: Job, step: int, result: StepResult) -> str:
    run = job.run
    first, last = step * run.train.global_batch, (step + 1) * run.train.global_batch - 1
    return (
        f"step {step + 1}: {result.fault}. That was one step more than guard.skips and guard.rollbacks allow; its samples are "
        f"{first} to {last} of {run.data.plan}. Start again from the last checkpoint with a lower optimizer.lr, or see what "
        "`latxa data inspect` shows of the samples"
    )


def _save_is_due(section: CheckpointSection, step: int, last: bool) -> bool:
    return section.every is not None and (last or step % section.every == 0)


def _line(
    job: Job, step: int, result: StepResult, seconds: float, pause: float, action: str | None, scores: dict[str, Any]
) -> dict[str, Any]:
    """What metrics.jsonl says of a step (from 0): docs/formats.md has each key with its unit."""
    run, ranks = job.run, dist.get_world_size()
    first, last = step * run.train.global_batch, (step + 1) * run.train.global_batch
    positions = run.train.global_batch * run.data.seq_length
    flops = training_flops(job.shape, job.dataset.document_positions(first, last))
    tflops = flops / seconds / ranks / 1e12
    line = {
        "step": step + 1,
        "loss": result.loss,
        **({"loss_by_source": result.loss_by_source} if result.loss_by_source else {}),
        "grad_norm": result.grad_norm,
        "lr": job.state.schedule.optimizer.param_groups[0]["lr"],
        "trained_tokens": result.trained_tokens,
        "trained_share": result.trained_tokens / positions,
        "positions": positions,
        "seconds": seconds,
        "pause": pause,
        "data_wait": result.data_wait,
        "rank_seconds": percentiles(result.rank_seconds),
        "positions_per_second": positions / seconds,
        "positions_per_second_per_rank": positions / seconds / ranks,
        "model_tflops_per_rank": tflops,
        "peak_memory_gib": torch.cuda.max_memory_allocated() / 2**30,
    }
    if device.on_gpu():
        line["mfu"] = utilization(tflops, torch.cuda.get_device_name())
    if action:
        line["fault"] = {"first": result.first_fault, "again": result.fault, "action": action}
    if scores:
        line["validation"] = scores
    return line
