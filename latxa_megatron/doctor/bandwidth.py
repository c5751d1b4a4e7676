"""How fast messages travel between the ranks of a process group: NCCL on GPUs, gloo on CPUs.

Times are those of the slowest rank. Bus bandwidth is as nccl-tests defines it (doc/PERFORMANCE.md there): bytes over time, times
2 (n-1) / n for an all-reduce and (n-1) / n for an all-gather of n ranks, which makes it the speed of the slowest link whatever n
is. An all-gather's bytes are those that each rank has at the end.

On GPUs the messages of a try are all under way before the last is waited for, and that one is polled: torch's own wait puts
a thread to sleep for milliseconds where it may throw (TORCH_NCCL_BLOCKING_WAIT), longer than most messages take.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from latxa_megatron.errors import LatxaError

SIZES = {"cuda": (1 << 10, 1 << 20, 16 << 20, 256 << 20), "cpu": (1 << 10, 1 << 20, 16 << 20)}
_REPEATS = {"cuda": 20, "cpu": 5}
LIMIT = timedelta(minutes=2)
"""How long one process waits for another. NCCL sets up its connections within it, also on many nodes."""

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
    links = _links(max(sizes), group, device, nodes)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return Measured(dist.get_backend(group), name, nodes, collectives, links)


def _collective(name: str, size: int, group: dist.ProcessGroup, device: torch.device) -> Timed:
    n = dist.get_world_size(group)
    elements = max(1, size // 4 // n) * n
    whole = torch.zeros(elements, dtype=torch.float32, device=device)
    part = torch.zeros(elements // n, dtype=torch.float32, device=device)

    def start() -> list[dist.Work]:
        if name == "all_reduce":
            return [dist.all_reduce(whole, group=group, async_op=True)]
        return [dist.all_gather_into_tensor(whole, part, group=group, async_op=True)]

    seconds = max(_on_all(_seconds(start, device)))
    algorithm = 4 * elements / seconds / 1e9
    return Timed(name, 4 * elements, seconds, algorithm, algorithm * SHARE[name](n))


def rounds(nodes: list[str]) -> list[list[tuple[int, int]]]:
    """Pairs of ranks that send at the same time, round by round; a rank is in one pair of a round at most.

    Within a node each rank meets each other one (a round robin: one stays, the others go round). Between nodes, each rank meets
    the rank of its own number on the next node, so that all network ports are at work as in training.
    """
    ranks = [[rank for rank, node in enumerate(nodes) if node == name] for name in dict.fromkeys(nodes)]
    found: list[list[tuple[int, int]]] = []
    for turn in range(max(len(own) + len(own) % 2 for own in ranks) - 1):
        found.append([pair for own in ranks for pair in _turn(own, turn)])
    for first in (0, 1):
        found.append(
            [pair for a, b in zip(ranks[first::2], ranks[first + 1 :: 2], strict=False) for pair in zip(a, b, strict=False)]
        )
    return [pairs for pairs in found if pairs]


def _turn(ranks: list[int], turn: int) -> list[tuple[int, int]]:
    """The pairs of one turn of a round robin; none after its last. Of an odd number of ranks one pauses."""
    seats: list[int | None] = [*ranks, *([None] if len(ranks) % 2 else [])]
    if turn >= len(seats) - 1:
        return []
    stays, moving = seats[0], seats[1:]
    order = [stays, *moving[turn:], *moving[:turn]]
    pairs = ((order[i], order[-1 - i]) for i in range(len(order) // 2))
    return [(min(a, b), max(a, b)) for a, b in pairs if a is not None and b is not None]


def _links(size: int, group: dist.ProcessGroup, device: torch.device, nodes: list[str]) -> list[Link]:
    rank, found = dist.get_rank(group), []
    send = torch.zeros(size // 4, dtype=torch.float32, device=device)
    receive = torch.empty_like(send)
    for pairs in rounds(nodes):
        partner = next((a + b - rank for a, b in pairs if rank in (a, b)), None)

        def start(partner: int | None = partner) -> list[dist.Work]:
            if partner is None:
                return []
            calls = [dist.P2POp(dist.isend, send, partner, group), dist.P2POp(dist.irecv, receive, partner, group)]
            return dist.batch_isend_irecv(calls)

        times = _on_all(_seconds(start, device))
        found += [Link((a, b), send.nbytes, send.nbytes / max(times[a], times[b]) / 1e9) for a, b in pairs]
    return sorted(found, key=lambda link: link.ranks)


def _seconds(start: Callable[[], list[dist.Work]], device: torch.device) -> float:
    """Median of some tries, each of several calls in a row; the first, which sets connections up, does not count."""
    tries = []
    for _ in range(4):
        dist.barrier()
        began = time.perf_counter()
        works: list[dist.Work] = []
        for _ in range(_REPEATS[device.type]):
            works += start()
            if device.type == "cpu":
                _wait(works, device)  # gloo's threads would take several at a time
                works.clear()
        _wait(works, device)
        tries.append((time.perf_counter() - began) / _REPEATS[device.type])
    return statistics.median(tries[1:])


def _wait(works: list[dist.Work], device: torch.device) -> None:
    """Until all are done; NCCL's are in the order that they were started in. Raises LatxaError where that takes too long."""
    deadline = time.perf_counter() + LIMIT.total_seconds()
    while device.type == "cuda" and works and not works[-1].is_completed():
        if time.perf_counter() > deadline:
            raise LatxaError(f"NCCL: no answer from another rank in {LIMIT.total_seconds():.0f} s; NCCL_DEBUG=INFO says more")
    for work in works:
        work.wait()


def _on_all(value: float) -> list[float]:
    values: list[float] = [0.0] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values
