"""`latxa launch local`: torchrun's elastic agent on this machine, alone or as one of several, without restarts."""

import dataclasses
import logging
import os
import re
import sys
import uuid
from dataclasses import dataclass
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

GPU_MEMORY = {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
"""Memory that torch keeps for the next tensors can grow in place, so little of it is left in pieces that fit none. All that was
measured of GPUs' memory (docs/gpu-results.md), and so what `latxa plan` says of it, is with this."""

_STOPPING: dict[str, Any] = {"signals_to_handle": "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1", "shutdown_timeout": 1800}
"""Signals that the agent hands on to the workers, and the seconds that they then have to end their step and save."""


MEETING = 1800
"""Seconds that a machine waits for the others."""


@dataclass(frozen=True)
class Among:
    """This machine as one of several that are started alike. rank: its number, from 0; first: HOST:PORT on number 0, for all.

    Raises LatxaError for what is none.
    """

    nodes: int = 1
    rank: int = 0
    first: str | None = None

    def __post_init__(self) -> None:
        if self.nodes > 1 and self.first is None:
            raise LatxaError("--first: the machines need HOST:PORT of the first one, to meet there")
        if self.first is not None and not re.fullmatch(r".+:\d{1,5}", self.first):
            raise LatxaError(f"--first {self.first}: has the form HOST:PORT")
        if self.rank >= self.nodes:
            raise LatxaError(f"--node-rank {self.rank}: the {self.nodes} machines have the numbers 0 to {self.nodes - 1}")

    def meeting(self) -> dict[str, Any]:
        """How torchrun's agents of these machines find each other."""
        if self.nodes == 1:
            return {"rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0", "local_addr": "localhost"}
        return {"rdzv_backend": "static", "rdzv_endpoint": self.first, "rdzv_configs": {"rank": self.rank, "timeout": MEETING}}


def environment(nproc: int, *, gpus: bool) -> dict[str, str]:
    """What nproc processes of this machine find in their environment unless it says something else."""
    threads = max(1, len(os.sched_getaffinity(0)) // nproc)
    return {"OMP_NUM_THREADS": str(threads), **_CPU_MEMORY, **(GPU_MEMORY if gpus else {})}


def launch_local(
    run_file: Path, nproc: int, overrides: list[str] | None = None, among: Among = Among(), *, force: bool = False
) -> None:
    """Run `latxa train RUN.yaml` in nproc processes that torchrun starts and watches; wait for all of them.

    force: also where the GPUs have no room for it by its plan. One process that fails ends the others. Raises LatxaError then,
    and before any start for a run that cannot work.
    """
    import torch
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    from latxa_megatron.config import load_run
    from latxa_megatron.train.check import check_run

    check_run(load_run(run_file, overrides), nproc * among.nodes)
    if torch.cuda.is_available() and nproc > torch.cuda.device_count():
        raise LatxaError(f"--nproc {nproc}: this machine has {torch.cuda.device_count()} GPUs, one for each process")
    for name, value in environment(nproc, gpus=torch.cuda.is_available()).items():
        os.environ.setdefault(name, value)
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    known = {field.name for field in dataclasses.fields(LaunchConfig)}  # torch 2.6 has neither of the two
    agent = LaunchConfig(
        **{name: value for name, value in _STOPPING.items() if name in known},
        min_nodes=among.nodes,
        max_nodes=among.nodes,
        nproc_per_node=nproc,
        run_id=uuid.uuid4().hex if among.nodes == 1 else "latxa",  # the same on all machines
        max_restarts=0,
        **among.meeting(),
    )
    worker = ["-m", "latxa_megatron", "train", *(["--force"] if force else []), str(run_file), *(overrides or [])]
    try:
        elastic_launch(agent, sys.executable)(*worker)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        raise LatxaError(
            f"{run_file}: rank {rank} ended with exit status {failure.exitcode}; what it said stands above"
        ) from None
    except SignalException as error:
        raise LatxaError(f"{run_file}: stopped ({error}); the same command goes on from the last checkpoint") from None
