"""What a launcher says of this process: torchrun in RANK, WORLD_SIZE and the like, srun in words of its own."""

import os
import re
from collections.abc import Mapping


def rank() -> int:
    """This process's number among those of its run; 0 where there is no launcher."""
    adopt_srun()
    return int(os.environ.get("RANK", 0))


def adopt_srun() -> None:
    """Put what srun says into torchrun's words, unless torchrun has spoken; nothing for a single task."""
    if "RANK" not in os.environ and int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        os.environ.update(of_srun(os.environ))


def of_srun(task: Mapping[str, str]) -> dict[str, str]:
    """What torchrun would have said, from the environment of one of srun's tasks. The port of rank 0 follows from the job."""
    first = re.match(r"([^,\[]+)(?:\[(\d+))?", task["SLURM_STEP_NODELIST"])  # node7,node9 or node[007-009,12]
    assert first is not None
    return {
        "RANK": task["SLURM_PROCID"],
        "WORLD_SIZE": task["SLURM_STEP_NUM_TASKS"],
        "LOCAL_RANK": task["SLURM_LOCALID"],
        "MASTER_ADDR": task.get("MASTER_ADDR", first[1] + (first[2] or "")),
        "MASTER_PORT": task.get("MASTER_PORT", str(20000 + int(task["SLURM_JOB_ID"]) % 10000)),
    }
