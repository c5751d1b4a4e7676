"""One optimizer step: microbatches of a plan's samples through megatron-core's pipeline schedule."""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor

from latxa_megatron.config import RunConfig
from latxa_megatron.data.dataset import PackedDataset
from latxa_megatron.model import device
from latxa_megatron.model.neftune import Neftune
from latxa_megatron.train import stopwatch
from latxa_megatron.train.inputs import Inputs, Share, padded_length, share
from latxa_megatron.train.setup import Job


@dataclass(frozen=True)
class StepResult:
    """loss: nats per trained token over the global batch. trained_tokens: how many those were.

    loss_by_source: the same of each source that has trained tokens in it; empty where the plan has one source.
    data_wait: seconds that this rank spent on reading and gathering its samples.
    rank_seconds: seconds of each rank's own forward and backward passes (train/stopwatch.py).
    fault: why the update was held back, if it was; first_fault: the same of a first try with the same samples, if there was one.
    """

    loss: float
    trained_tokens: int
    grad_norm: float
    loss_by_source: dict[str, float]
    data_wait: float
    rank_seconds: list[float]
    fault: str | None = None
    first_fault: str | None = None


class Microbatch(NamedTuple):
    """Sample numbers; those after the first `counted` take part in no loss."""

    samples: list[int]
    counted: int


def deal(first: int, last: int, run: RunConfig) -> list[Microbatch]:
    """This data-parallel rank's microbatches of samples first to last - 1: in order, one to each rank in turn.

    Each sample is counted once over all ranks. Where they do not divide, as in validation, sample `first` fills up uncounted.
    """
    size, ranks = run.train.micro_batch, parallel_state.get_data_parallel_world_size()
    unit = ranks * (run.parallel.pp if run.parallel.vp > 1 else 1)  # the interleaved schedule wants multiples of pp
    count = math.ceil((last - first) / size / unit) * unit
    dealt = []
    for number in range(parallel_state.get_data_parallel_rank(), count, ranks):
        numbers = list(range(first + number * size, min(first + (number + 1) * size, last)))
        dealt.append(Microbatch(numbers + [first] * (size - len(numbers)), len(numbers)))
    return dealt


def _sum_of_losses(sources: int, loss_mask: Tensor, source: Tensor, losses: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """What megatron-core asks of a loss, and {"loss": sums}: see forward_backward."""
    nats = losses.float().reshape(-1) * loss_mask
    total, count = nats.sum(), loss_mask.sum()
    sums = torch.stack([total.detach(), count])
    if sources:
        # a masked sum for each source: a GPU's index_add adds in any order, and its sums would differ from run to run
        of_source = source == torch.arange(sources, device=source.device)[:, None]
        sums = torch.cat([sums, *(each.where(of_source, 0.0).sum(1) for each in (nats.detach(), loss_mask))])
    return total, count.to(torch.int), {"loss": sums}


def _forward(sources: int, microbatches: Iterator[Inputs], model: DistributedDataParallel) -> tuple[Tensor, Any]:
    own = next(microbatches)
    return model(**own.of_model()), partial(_sum_of_losses, sources, own.loss_mask, own.sources)


class Reader:
    """This rank's shares of a dataset's batches, and the seconds that they took.

    sources: those to tell apart; none where there is one. sample_length: positions of a sample as padded_length() has it.
    """

    def __init__(self, dataset: PackedDataset) -> None:
        self.dataset = dataset
        self.sample_length = padded_length(dataset)
        self.sources = dataset.sources if len(dataset.sources) > 1 else []
        self.seconds = 0.0

    def share(self, microbatch: Microbatch) -> Share:
        began = time.perf_counter()
        batch = self.dataset.batch(microbatch.samples)
        batch.loss_mask[microbatch.counted :] = 0
        own = share(batch, self.sample_length * len(microbatch.samples))
        self.seconds += time.perf_counter() - began
        return own

    def inputs(self, noise: Neftune, microbatch: Microbatch) -> Inputs:
        """What the model is given next, and the noise for it."""
        own = self.share(microbatch)
        noise.begin(own.batch.samples, own.batch.cu_seqlens, own.places)
        return own.inputs()


def train_step(job: Job, step: int) -> StepResult:
    """Forward and backward over the samples of step `step` (from 0), then the optimizer. All but data_wait is the same on every
    rank. Where job.guard finds a fault the model stays as it was.
    """
    batch = job.run.train.global_batch
    for chunk in job.model:
        chunk.zero_grad_buffer()
    job.state.optimizer.zero_grad()
    reader = Reader(job.dataset)
    with stopwatch.running(job.model[0].config) as own:
        total = forward_backward(job, reader, deal(step * batch, (step + 1) * batch, job.run))
    loss, tokens, *by_source = total.tolist()
    job.guard.expect(loss / max(tokens, 1))
    _, grad_norm, _ = job.state.optimizer.step()
    pairs = zip(reader.sources, by_source[: len(reader.sources)], by_source[len(reader.sources) :], strict=True)
    return StepResult(
        loss=loss / max(tokens, 1),
        trained_tokens=int(tokens),
        grad_norm=float(grad_norm or 0.0),
        loss_by_source={name: nats / trained for name, nats, trained in pairs if trained},
        data_wait=reader.seconds,
        rank_seconds=stopwatch.of_all_ranks(own.seconds()),
        fault=job.guard.fault,
    )


def forward_backward(job: Job, reader: Reader, microbatches: list[Microbatch], *, forward_only: bool = False) -> Tensor:
    """Run this rank's microbatches, as many on every rank.

    Sums over all ranks, float64 [2 + 2 sources]: losses and trained tokens of all, losses of each of reader.sources, then
    trained tokens of each.
    """
    read = partial(reader.inputs, job.noise)
    passes = partial(
        get_forward_backward_func(),
        forward_step_func=partial(_forward, len(reader.sources)),
        model=job.model,
        num_microbatches=len(microbatches),
        seq_length=reader.sample_length * job.run.train.micro_batch,  # a microbatch is one sequence
        micro_batch_size=1,
        forward_only=forward_only,
    )
    if job.graph and not forward_only:
        outputs = job.graph.run(job.model[0].config, map(read, microbatches), lambda held: passes(data_iterator=[iter(held)]))
    else:  # every stage needs the document borders, so every chunk reads the batches
        outputs = passes(data_iterator=[map(read, microbatches) for _ in job.model])
    return _over_all_ranks(outputs, 2 + 2 * len(reader.sources))


def _over_all_ranks(outputs: list[dict[str, Tensor]], size: int) -> Tensor:
    """The outputs' sums over all microbatches and ranks, float64 [size]; only the last stage has outputs."""
    total = torch.zeros(size, dtype=torch.float64, device=device.device())
    for output in outputs:
        total += output["loss"]
    dist.all_reduce(total, group=parallel_state.get_data_parallel_group(with_context_parallel=True))
    last = parallel_state.get_pipeline_model_parallel_last_rank()
    dist.broadcast(total, last, group=parallel_state.get_pipeline_model_parallel_group())
    return total
