"""`latxa launch local`: torchrun's elastic agent on this machine, one node, no restarts."""

import dataclasses
import logging
import os
import sys
import uuid
from pathlib import Path
from typing import Any

from latxa_megatron.errors import LatxaError

_CPU_MEMORY = {
    "THP_MEM_ALLOC_ENABLE": "1",
    "MALLOC_MMAP_THRESHOLD_": str(128 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 34),
}
"""Huge pages for CPU tensors, and their memory kept for the next ones. By default glibc hands each large tensor back to the
kernel, which clears its pages anew for the next; and clearing is slow in a virtual machine."""

_STOPPING: dict[str, Any] = {"signals_to_handle": "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1", "shutdown_timeout": 1800}
"""Signals that the agent hands on to the workers, and the seconds that they then have to end their step and save."""


def launch_local(run_file: Path, nproc: int, overrides: list[str] | None = None) -> None:
    """Run `latxa train RUN.yaml` in nproc processes that torchrun starts and watches; wait for all of them.

    One process that fails ends the others. Raises LatxaError then, and before any start for a run that cannot work.
    """
    import torch
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    from latxa_megatron.config import load_run
    from latxa_megatron.train.check import check_run

    check_run(load_run(run_file, overrides), nproc)
    if torch.cuda.is_available() and nproc > torch.cuda.device_count():
        raise LatxaError(f"--nproc {nproc}: this machine has {torch.cuda.device_count()} GPUs, one for each process")
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // nproc)))
    for name, value in _CPU_MEMORY.items():
        os.environ.setdefault(name, value)
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    known = {field.name for field in dataclasses.fields(LaunchConfig)}  # torch 2.6 has neither of the two
    agent = LaunchConfig(
        **{name: value for name, value in _STOPPING.items() if name in known},
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=nproc,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        max_restarts=0,
    )
    worker = ["-m", "latxa_megatron", "train", str(run_file), *(overrides or [])]
    try:
        elastic_launch(agent, sys.executable)(*worker)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        raise LatxaError(
            f"{run_file}: rank {rank} ended with exit status {failure.exitcode}; what it said stands above"
        ) from None
    except SignalException as error:
        raise LatxaError(f"{run_file}: stopped ({error}); the same command goes on from the last checkpoint") from None
