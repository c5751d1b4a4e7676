"""A run in which rank 1 does not come out of its second step. Run under torchrun by test_hang.py."""

import sys
import time
import warnings
from pathlib import Path

import torch.distributed as dist

from latxa_megatron.config import load_run
from latxa_megatron.train import hang, step
from latxa_megatron.train.distributed import connected
from latxa_megatron.train.loop import train

calls = 0
real = step.forward_backward


def stuck(*arguments, **options):
    global calls
    calls += 1
    while calls == 2 and dist.get_rank() == 1:
        time.sleep(1)
    return real(*arguments, **options)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    step.forward_backward = stuck
    hang.GRACE = 1.0
    with connected():
        train(load_run(Path(sys.argv[1]), sys.argv[2:]))
