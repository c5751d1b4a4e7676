"""Trains several variants of a run, one after the other, in one process group. Run under torchrun by conftest.py."""

import json
import math
import sys
import warnings
from collections.abc import Callable, Collection
from pathlib import Path

import torch

from latxa_megatron.config import load_run
from latxa_megatron.train import step
from latxa_megatron.train.distributed import connected
from latxa_megatron.train.loop import train


def with_faults(real: Callable, calls: Collection[int]) -> Callable:
    """step.forward_backward, whose n-th call, from 1, gives a loss that is no number, for each n in calls."""
    count = iter(range(1, 1000))

    def faulty(*arguments, **options) -> torch.Tensor:
        total = real(*arguments, **options)
        return total * torch.tensor([math.nan, 1.0]) if next(count) in calls else total

    return faulty


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    real = step.forward_backward
    with connected():
        for overrides in json.loads(sys.argv[2]):
            calls = [int(n) for each in overrides if each.startswith("faulty=") for n in each.removeprefix("faulty=").split(",")]
            step.forward_backward = with_faults(real, calls)
            train(load_run(Path(sys.argv[1]), [each for each in overrides if not each.startswith("faulty=")]))
