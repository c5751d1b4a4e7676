"""As runs_worker.py, with one rank made slow: [[overrides, rank or null], ...]. Run under torchrun by test_reporting.py."""

import json
import sys
import time
import warnings
from pathlib import Path

import torch.distributed as dist

from latxa_megatron.config import load_run
from latxa_megatron.data.dataset import PackedDataset
from latxa_megatron.train.distributed import connected
from latxa_megatron.train.loop import train

SLEEP = 0.25
"""Seconds that each microbatch takes longer on the slow rank."""


def main() -> None:
    whole = PackedDataset.batch
    with connected():
        for overrides, slow in json.loads(sys.argv[2]):
            late = SLEEP if slow == dist.get_rank() else 0.0

            def batch(dataset, samples, late=late):
                time.sleep(late)
                return whole(dataset, samples)

            PackedDataset.batch = batch
            train(load_run(Path(sys.argv[1]), overrides))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
