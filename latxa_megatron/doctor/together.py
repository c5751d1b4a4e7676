"""What takes several processes: those of the launcher, or some that are started here for a moment."""

import logging
import os
import socket
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from latxa_megatron import launcher
from latxa_megatron.doctor import bandwidth, clocks
from latxa_megatron.doctor.finding import Finding, look
from latxa_megatron.errors import LatxaError


@contextmanager
def joined() -> Iterator[list[str]]:
    """The launcher's processes as one gloo group; the name of each one's node."""
    launcher.adopt_srun()
    dist.init_process_group("gloo", timeout=bandwidth.LIMIT)
    try:
        told = [("", 0)] * dist.get_world_size()
        dist.all_gather_object(told, (socket.gethostname(), launcher.local_rank()))
        yield names(told)
    finally:
        dist.destroy_process_group()


def names(told: list[tuple[str, int]]) -> list[str]:
    """The node of each rank, from its host's name and its number there; containers of one name are HOST, HOST#2 and so on."""
    seen: Counter[tuple[str, int]] = Counter()
    nodes = []
    for host, number in told:
        seen[host, number] += 1
        times = seen[host, number]
        nodes.append(host if times == 1 else f"{host}#{times}")
    return nodes


def gather(mine: list[Finding], nodes: list[str]) -> list[tuple[str, Finding]]:
    """The findings of all nodes, on rank 0; nothing on the others."""
    everyone: list[list[Finding]] | None = [[] for _ in nodes] if dist.get_rank() == 0 else None
    dist.gather_object(mine, everyone)
    return [(node, finding) for node, findings in zip(nodes, everyone or [], strict=False) for finding in findings]


def skew(nodes: list[str]) -> list[Finding]:
    """Clock skew between the nodes. All ranks call it."""
    leaders = {node: nodes.index(node) for node in dict.fromkeys(nodes)}
    return clocks.look_at_skew(clocks.measure(leaders))


def speed(nodes: list[str]) -> bandwidth.Measured:
    """Bandwidth between the ranks: NCCL where each has a GPU, gloo where none has. All ranks call it.

    Raises LatxaError where some nodes' ranks see a GPU and others' do not: the two would wait for each other in vain.
    """
    seen: list[int] = [0] * len(nodes)
    dist.all_gather_object(seen, torch.cuda.device_count() if torch.cuda.is_available() else 0)
    if not any(seen):
        return bandwidth.measure(dist.new_group(backend="gloo", timeout=bandwidth.LIMIT), torch.device("cpu"), nodes)
    blind = sorted({node for node, gpus in zip(nodes, seen, strict=True) if not gpus})
    if blind:
        raise LatxaError(f"ranks on {', '.join(blind)} see no GPU, and others do; ask for GPUs on each node")
    os.environ.setdefault("TORCH_NCCL_BLOCKING_WAIT", "1")  # a rank that waits too long gets an exception, not an abort
    device = torch.device("cuda", launcher.local_rank() % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return bandwidth.measure(dist.new_group(backend="nccl", timeout=bandwidth.LIMIT), device, nodes)


def start(processes: int) -> bandwidth.Measured:
    """Bandwidth between so many processes of this machine, started for it. Raises LatxaError where one of them ended."""
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    agent = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        max_restarts=0,
    )
    try:
        answers = elastic_launch(agent, _worker)()
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        raise LatxaError(f"rank {rank} ended with exit status {failure.exitcode}; what it said stands above") from None
    measured, finding = answers[0]
    if measured is None:
        raise LatxaError(finding.found)
    return measured


def _worker() -> tuple[bandwidth.Measured | None, Finding | None]:
    """One process of start(): what it measured, or why it could not."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # this machine's name may not lead to an address of its own
    torch.set_num_threads(1)
    measured: list[bandwidth.Measured] = []

    def measure() -> list[Finding]:
        with joined() as nodes:
            measured.append(speed(nodes))
        return []

    failed = look("bandwidth", measure)
    return (measured[0], None) if not failed else (None, failed[0])
