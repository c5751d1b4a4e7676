"""What a launcher says of this process: torchrun and ft_launcher in RANK, WORLD_SIZE and the like, srun in words of its own."""

import os
import re
from collections.abc import Mapping

from latxa_megatron.errors import LatxaError


def rank() -> int:
    """This process's number among those of its run; 0 where there is no launcher."""
    adopt_srun()
    return int(os.environ.get("RANK", 0))


def job() -> str | None:
    """The number of the Slurm job that this process belongs to; None outside of one."""
    return os.environ.get("SLURM_JOB_ID")


def local_rank() -> int:
    """This process's number among those of its run on this node; 0 where there is no launcher."""
    adopt_srun()
    return int(os.environ.get("LOCAL_RANK", 0))


def processes_here() -> int | None:
    """How many processes of the run torchrun started on this node; None where it did not start this one."""
    return int(os.environ["LOCAL_WORLD_SIZE"]) if "LOCAL_WORLD_SIZE" in os.environ else None


def processes() -> int:
    """How many processes the launcher started for the run; 1 where there is no launcher."""
    adopt_srun()
    return int(os.environ.get("WORLD_SIZE", 1))


def first_host() -> str:
    """The machine that rank 0 runs on; this one where there is no launcher."""
    adopt_srun()
    return os.environ.get("MASTER_ADDR", "localhost")


def has_monitor() -> bool:
    """Whether ft_launcher of nvidia-resiliency-ext started this process, with a monitor that waits for its heartbeats."""
    return "FT_RANK_MONITOR_IPC_SOCKET" in os.environ


def adopt_srun() -> None:
    """Put what srun says into torchrun's words, unless torchrun has spoken; nothing for a single task."""
    if "RANK" not in os.environ and int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        os.environ.update(of_srun(os.environ))


def of_srun(task: Mapping[str, str]) -> dict[str, str]:
    """What torchrun would have said, from the environment of one of srun's tasks. The port of rank 0 follows from the job."""
    nodes = task["SLURM_STEP_NODELIST"]
    first = re.match(r"([^,\[\]]+)(?:\[(\d+)[^\]]*\])?(?:,|$)", nodes)  # node7,node9 or node[007-009,12]
    if first is None and "MASTER_ADDR" not in task:
        raise LatxaError(f"SLURM_STEP_NODELIST: which node is the first of '{nodes}'? Set MASTER_ADDR to it")
    host = first[1] + (first[2] or "") if first else ""
    step = int(task["SLURM_JOB_ID"]) + int(task["SLURM_STEP_ID"])
    return {
        "RANK": task["SLURM_PROCID"],
        "WORLD_SIZE": task["SLURM_STEP_NUM_TASKS"],
        "LOCAL_RANK": task["SLURM_LOCALID"],
        "MASTER_ADDR": task.get("MASTER_ADDR", host),
        "MASTER_PORT": task.get("MASTER_PORT", str(20000 + step % 10000)),
    }
