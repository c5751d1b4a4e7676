"""Validation while training: loss and bits per byte on the whole of other pack plans."""

import math
from dataclasses import dataclass

import torch
import torch.distributed as dist
from megatron.core import parallel_state

from latxa_megatron.config import RunConfig
from latxa_megatron.data.dataset import PackedDataset
from latxa_megatron.data.tokenizer import Tokenizer
from latxa_megatron.model import device
from latxa_megatron.train.setup import Job
from latxa_megatron.train.step import Microbatch, Reader, forward_backward


@dataclass(frozen=True)
class Validation:
    """The sets of a run, by name, and the bytes of text behind each token id (none where the run has no tokenizer)."""

    sets: dict[str, PackedDataset]
    token_bytes: torch.Tensor | None

    @classmethod
    def of(cls, run: RunConfig) -> "Validation":
        sets = {name: PackedDataset(plan) for name, plan in run.validation.plans.items()}
        known = sets and (run.tokenizer / "tokenizer.json").is_file()
        return cls(sets, torch.from_numpy(Tokenizer(run.tokenizer).bytes_of_tokens()) if known else None)


def validate(job: Job, validation: Validation) -> dict[str, dict[str, float]]:
    """{set: {"loss": nats per trained token, "bits_per_byte": ...}} of the model as it is. All ranks call it."""
    for chunk in job.model:
        chunk.eval()
    try:
        with torch.no_grad():
            return {name: _score(job, dataset, validation.token_bytes) for name, dataset in validation.sets.items()}
    finally:
        for chunk in job.model:
            chunk.train()


def _score(job: Job, dataset: PackedDataset, token_bytes: torch.Tensor | None) -> dict[str, float]:
    microbatches = _microbatches(job.run, len(dataset))
    nats, tokens = forward_backward(job, Reader(dataset), microbatches, forward_only=True).tolist()
    score = {"loss": nats / max(tokens, 1)}
    if token_bytes is not None:
        score["bits_per_byte"] = nats / math.log(2) / max(_bytes(dataset, microbatches, token_bytes), 1)
    return score


def _microbatches(run: RunConfig, samples: int) -> list[Microbatch]:
    """This data-parallel rank's share: each sample once over all ranks; sample 0 fills up, uncounted, what is left over."""
    size, ranks = run.train.micro_batch, parallel_state.get_data_parallel_world_size()
    unit = ranks * (run.parallel.pp if run.parallel.vp > 1 else 1)  # the interleaved schedule wants multiples of pp
    count = math.ceil(samples / size / unit) * unit
    found = []
    for number in range(parallel_state.get_data_parallel_rank(), count, ranks):
        numbers = list(range(min(number * size, samples), min((number + 1) * size, samples)))
        found.append(Microbatch(numbers + [0] * (size - len(numbers)), counted=len(numbers)))
    return found


def _bytes(dataset: PackedDataset, microbatches: list[Microbatch], token_bytes: torch.Tensor) -> int:
    """Bytes of text behind the trained labels of all ranks."""
    total = torch.zeros(1, dtype=torch.int64)
    for samples, counted in microbatches:
        if counted:
            batch = dataset.batch(samples[:counted])
            total += (token_bytes[batch.labels] * batch.loss_mask.bool()).sum()
    total = total.to(device.device())
    dist.all_reduce(total, group=parallel_state.get_data_parallel_group(with_context_parallel=True))
    return int(total)
