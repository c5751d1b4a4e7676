"""A run of which one rank is killed in its second step, while the others wait for it as in an operation of NCCL's: for ever.

A process that it had forked, as a save does, outlives it. Or it fails. After DOOMED_RANK and HOW come the run file and overrides.
"""

import os
import signal
import sys
import time
import warnings
from pathlib import Path

import torch.distributed as dist

from latxa_megatron.config import load_run
from latxa_megatron.train import peers, step
from latxa_megatron.train.loop import train

calls = 0
real = step.forward_backward
LONG = 20  # seconds


def faulty(*arguments, **options):
    global calls
    calls += 1
    if calls == 2:
        if dist.get_rank() == int(sys.argv[1]):
            if sys.argv[2] == "fails":
                raise RuntimeError("of this rank alone")
            if os.fork() == 0:
                time.sleep(LONG)
                os._exit(0)
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(LONG)
        raise AssertionError("nobody said that a rank is gone")
    return real(*arguments, **options)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    step.forward_backward = faulty
    peers.GRACE = 1.0
    train(load_run(Path(sys.argv[3]), sys.argv[4:]))
