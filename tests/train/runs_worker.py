"""Trains several variants of a run, one after the other, in one process group. Run under torchrun by conftest.py."""

import json
import sys
import warnings
from pathlib import Path

from latxa_megatron.config import load_run
from latxa_megatron.train.distributed import connected
from latxa_megatron.train.loop import train

if __name__ == "__main__":
    warnings.simplefilter("ignore")
    with connected():
        for overrides in json.loads(sys.argv[2]):
            train(load_run(Path(sys.argv[1]), overrides))
