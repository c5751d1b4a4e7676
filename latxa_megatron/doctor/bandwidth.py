"""How fast messages travel between the ranks of a process group: NCCL on GPUs, gloo on CPUs.

Times are those of the slowest rank. Bus bandwidth is as nccl-tests defines it (doc/PERFORMANCE.md there): bytes over time, times
2 (n-1) / n for an all-reduce and (n-1) / n for an all-gather of n ranks, which makes it the speed of the slowest link whatever n
is. An all-gather's bytes are those that each rank has at the end.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.distributed as dist

SIZES = {"cuda": (1 << 10, 1 << 20, 16 << 20, 256 << 20), "cpu": (1 << 10, 1 << 20, 16 << 20)}
_REPEATS = {"cuda": 20, "cpu": 5}

SHARE = {
    "all_reduce": lambda n: 2 * (n - 1) / n,
    "all_gather": lambda n: (n - 1) / n,
}
"""Bus bandwidth over algorithm bandwidth, by the number of ranks."""


@dataclass(frozen=True)
class Timed:
    """A collective of so many bytes: seconds for one, and bytes per second / 1e9 of the algorithm and of the bus."""

    operation: str
    bytes: int
    seconds: float
    algbw_gb_s: float
    busbw_gb_s: float


@dataclass(frozen=True)
class Link:
    """Two ranks that send each other a message of so many bytes at once; GB/s in each direction."""

    ranks: tuple[int, int]
    bytes: int
    gb_s: float


@dataclass(frozen=True)
class Measured:
    """What a group can do. device: the GPUs' name, or "cpu"; nodes: of each rank."""

    backend: str
    device: str
    nodes: list[str]
    collectives: list[Timed]
    links: list[Link]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def measure(group: dist.ProcessGroup, device: torch.device, nodes: list[str], sizes: tuple[int, ...] = ()) -> Measured:
    """All ranks of the group call it, and each gets the result. nodes: the name of each rank's node.

    The default group carries the times, and must be able to send CPU objects (gloo).
    """
    sizes = sizes or SIZES[device.type]
    collectives = [_collective(name, size, group, device) for name in SHARE for size in sizes]
    links = _links(max(sizes), group, device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return Measured(dist.get_backend(group), name, nodes, collectives, links)


def _collective(name: str, size: int, group: dist.ProcessGroup, device: torch.device) -> Timed:
    n = dist.get_world_size(group)
    elements = max(1, size // 4 // n) * n
    whole = torch.zeros(elements, dtype=torch.float32, device=device)
    part = torch.zeros(elements // n, dtype=torch.float32, device=device)

    def once() -> None:
        if name == "all_reduce":
            dist.all_reduce(whole, group=group)
        else:
            dist.all_gather_into_tensor(whole, part, group=group)

    seconds = max(_on_all(_seconds(once, group, device)))
    algorithm = 4 * elements / seconds / 1e9
    return Timed(name, 4 * elements, seconds, algorithm, algorithm * SHARE[name](n))


def _links(size: int, group: dist.ProcessGroup, device: torch.device) -> list[Link]:
    """Each rank with the next: first 0 with 1, 2 with 3 and so on, all at once, then 1 with 2, 3 with 4."""
    rank, n, found = dist.get_rank(group), dist.get_world_size(group), []
    send = torch.zeros(size // 4, dtype=torch.float32, device=device)
    receive = torch.empty_like(send)
    for first in (0, 1):
        partner = rank + 1 if (rank - first) % 2 == 0 else rank - 1
        paired = 0 <= partner < n

        def once(partner: int = partner, paired: bool = paired) -> None:
            if paired:
                calls = [dist.P2POp(dist.isend, send, partner, group), dist.P2POp(dist.irecv, receive, partner, group)]
                for work in dist.batch_isend_irecv(calls):
                    work.wait()

        times = _on_all(_seconds(once, group, device))
        found += [Link((a, a + 1), size, size / max(times[a : a + 2]) / 1e9) for a in range(first, n - 1, 2)]
    return sorted(found, key=lambda link: link.ranks)


def _seconds(once: Callable[[], None], group: dist.ProcessGroup, device: torch.device) -> float:
    """Median of some tries, each of several calls in a row; the first, which sets connections up, does not count."""
    tries = []
    for _ in range(4):
        dist.barrier()
        began = time.perf_counter()
        for _ in range(_REPEATS[device.type]):
            once()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        tries.append((time.perf_counter() - began) / _REPEATS[device.type])
    return statistics.median(tries[1:])


def _on_all(value: float) -> list[float]:
    values: list[float] = [0.0] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values
