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
from latxa_megatron.train.step import Microbatch, Reader, deal, forward_backward


@dataclass(frozen=True)
class ValidationSet:
    """A whole plan. text_bytes: those behind its trained labels, over all ranks; None where the run has no tokenizer."""

    dataset: PackedDataset
    microbatches: list[Microbatch]
    text_bytes: int | None


def validation_sets(run: RunConfig) -> dict[str, ValidationSet]:
    """The sets of a run, by name; reads each once to count its bytes. All ranks call it, when they are laid out."""
    if not run.validation.plans:
        return {}
    known = run.tokenizer.is_file() or any((run.tokenizer / f"tokenizer.{kind}").is_file() for kind in ("json", "model"))
    token_bytes = torch.from_numpy(Tokenizer(run.tokenizer).bytes_of_tokens()) if known else None
    found = {}
    for name, plan in run.validation.plans.items():
        dataset = PackedDataset(plan)
        microbatches = deal(0, len(dataset), run)
        text_bytes = None if token_bytes is None else _text_bytes(Reader(dataset), microbatches, token_bytes)
        found[name] = ValidationSet(dataset, microbatches, text_bytes)
    return found


def _text_bytes(reader: Reader, microbatches: list[Microbatch], token_bytes: torch.Tensor) -> int:
    total = torch.zeros(1, dtype=torch.int64)
    for own in map(reader.share, microbatches):
        total += (token_bytes[own.of(own.batch.labels)] * own.loss_mask.bool()).sum()
    total = total.to(device.device())
    dist.all_reduce(total, group=parallel_state.get_data_parallel_group(with_context_parallel=True))
    return int(total)


def validate(job: Job, sets: dict[str, ValidationSet]) -> dict[str, dict[str, float]]:
    """{set: {"loss": nats per trained token, "bits_per_byte": ...}} of the model as it is. All ranks call it."""
    for chunk in job.model:
        chunk.eval()
    try:
        with torch.no_grad():
            return {name: _score(job, each) for name, each in sets.items()}
    finally:
        for chunk in job.model:
            chunk.train()


def _score(job: Job, each: ValidationSet) -> dict[str, float]:
    nats, tokens = forward_backward(job, Reader(each.dataset), each.microbatches, forward_only=True)[:2].tolist()
    score = {"loss": nats / max(tokens, 1)}
    if each.text_bytes:
        score["bits_per_byte"] = nats / math.log(2) / each.text_bytes
    return score
