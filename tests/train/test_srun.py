"""Processes that srun starts find each other by what it puts into their environment."""

import os
import subprocess
import sys

import pytest

from latxa_megatron.errors import LatxaError
from latxa_megatron.launcher import of_srun
from latxa_megatron.train.metrics import read_metrics

TASK = {"SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_STEP_NUM_TASKS": "8", "SLURM_JOB_ID": "1230042", "SLURM_STEP_ID": "3"}


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("node7", "node7"), ("node7,node9", "node7"), ("lrdn[0007-0009,12]", "lrdn0007"), ("a-b3-[5,7],c1", "a-b3-5")],
)
def test_what_torchrun_would_have_said(nodes, first):
    expected = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "MASTER_ADDR": first, "MASTER_PORT": "20045"}
    assert of_srun({**TASK, "SLURM_STEP_NODELIST": nodes}) == expected


@pytest.mark.parametrize("nodes", ["r[1-2]n[1-4]", "node[01-03]-ib", "[a1]", ""])
def test_a_list_that_is_not_understood_is_no_guess(nodes):
    with pytest.raises(LatxaError, match="Set MASTER_ADDR"):
        of_srun({**TASK, "SLURM_STEP_NODELIST": nodes})
    assert of_srun({**TASK, "SLURM_STEP_NODELIST": nodes, "MASTER_ADDR": "10.0.0.1"})["MASTER_ADDR"] == "10.0.0.1"


def srun_task(rank: int, tasks: int, step: int = 0) -> dict[str, str]:
    """The environment of one of srun's tasks on this machine."""
    job = {"JOB_ID": os.getpid(), "STEP_ID": step, "STEP_NUM_TASKS": tasks, "STEP_NODELIST": "localhost"}
    task = {**job, "PROCID": rank, "LOCALID": rank}
    return {**os.environ, **{f"SLURM_{name}": str(value) for name, value in task.items()}}


def test_two_tasks_train_one_run(tiny_run):
    out = tiny_run.out("srun")
    command = [sys.executable, "-m", "latxa_megatron", "train", tiny_run.file, f"out={out}", "parallel.pp=2", "train.steps=2"]
    tasks = [subprocess.Popen(command, env=srun_task(rank, 2)) for rank in range(2)]
    assert [task.wait() for task in tasks] == [0, 0]
    assert [line["step"] for line in read_metrics(out)] == [1, 2]
