"""Ranks on two hosts, each a network namespace with an address and a name of its own, find each other."""

import os
import subprocess
import sys

from latxa_megatron.starts import read_starts
from latxa_megatron.train.metrics import read_metrics
from tests.launch.hosts import exit_codes

STEPS = 12
RUN = ["parallel.pp=2", "precision.dtype=bf16", f"train.steps={STEPS}", "checkpoint.every=3", "checkpoint.async_save=false"]


def train_on(hosts, names, tiny_run, name):
    """The directory of a run of one rank on each of the hosts, started in srun's words."""
    out = tiny_run.out(name)
    command = [sys.executable, "-m", "latxa_megatron", "train", tiny_run.file, f"out={out}", *RUN]
    job = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_STEP_ID": "0", "SLURM_STEP_NODELIST": "node[1-2]"}
    tasks = [
        subprocess.Popen(
            hosts.command(host, *command),
            env={
                **os.environ,
                **job,
                "SLURM_PROCID": str(rank),
                "SLURM_LOCALID": "0",
                "SLURM_STEP_NUM_TASKS": str(len(names)),
            },
        )
        for rank, host in enumerate(names)
    ]
    assert exit_codes(tasks) == [0] * len(names)
    return out


def test_two_hosts_train_one_run(whole):
    start, end = read_starts(whole)
    assert (start["host"], start["ranks"], start["step"], start["steps"]) == ("node1", 2, 0, STEPS)
    assert end["how"] == "finished"
    assert [line["step"] for line in read_metrics(whole)] == list(range(1, STEPS + 1))


def test_they_do_reach_each_other_over_the_network(two_hosts):
    """The loopback device of one host is not the other's: what listens there is not found."""
    listen = "import socket; s = socket.create_server(('127.0.0.1', 29511)); print(flush=True); s.accept()"
    call = "import socket, sys; sys.exit(socket.socket().connect_ex(('127.0.0.1', 29511)) == 0)"
    server = subprocess.Popen(two_hosts.command("node1", sys.executable, "-c", listen), stdout=subprocess.PIPE)
    server.stdout.readline()
    try:
        assert subprocess.run(two_hosts.command("node2", sys.executable, "-c", call), check=False).returncode == 0
        assert subprocess.run(two_hosts.command("node1", sys.executable, "-c", call), check=False).returncode == 1
    finally:
        server.terminate()
        server.wait()
