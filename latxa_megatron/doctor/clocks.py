"""Clock skew between nodes, as NTP measures it: the other's time against the middle of a message's way there and back.

Of many messages the fastest counts, and half its way is how far the result can be off, whatever the network does.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist

from latxa_megatron.doctor.finding import Finding

ROUNDS = 50

_WARN = 1.0
_FAIL = 300.0
"""Seconds. From the first, the nodes' logs cannot be laid side by side; from the second, munge refuses Slurm's messages."""


@dataclass(frozen=True)
class Skew:
    """Seconds that a node's clock is ahead of the first node's, and how far off that may be."""

    node: str
    seconds: float
    accuracy: float


def measure(leaders: dict[str, int], clock: Callable[[], float] = time.time, rounds: int = ROUNDS) -> list[Skew]:
    """The skew of each node but the first, on all its ranks; leaders: the first rank of each node, in order. All ranks call it.

    The default group must be able to send CPU tensors (gloo).
    """
    (_, first), *others = leaders.items()
    skews: list[Skew] = []
    for node, rank in others:
        if dist.get_rank() == first:
            skews.append(Skew(node, *_ask(rank, clock, rounds)))
        elif dist.get_rank() == rank:
            _answer(first, clock, rounds)
    return skews


def _ask(rank: int, clock: Callable[[], float], rounds: int) -> tuple[float, float]:
    theirs, best = torch.zeros(1, dtype=torch.float64), (0.0, float("inf"))
    for _ in range(rounds):
        sent = clock()
        dist.send(theirs, rank)
        dist.recv(theirs, rank)
        back = clock()
        if (half := (back - sent) / 2) < best[1]:
            best = float(theirs) - (sent + back) / 2, half
    return best


def _answer(rank: int, clock: Callable[[], float], rounds: int) -> None:
    message = torch.zeros(1, dtype=torch.float64)
    for _ in range(rounds):
        dist.recv(message, rank)
        message[0] = clock()
        dist.send(message, rank)


def look_at_skew(skews: list[Skew]) -> list[Finding]:
    """One line for the node that is farthest off; nothing for a single node."""
    if not skews:
        return []
    far = max(skews, key=lambda skew: abs(skew.seconds))
    found = f"at most {abs(far.seconds) * 1e3:.3g} ms ({far.node}), measured to {max(s.accuracy for s in skews) * 1e3:.2g} ms"
    mend = f"{far.node}: start chronyd or systemd-timesyncd there, or ask the administrators to"
    if abs(far.seconds) > _FAIL:
        return [Finding("clock skew", "fail", found, mend)]
    return [Finding("clock skew", "warn", found, mend) if abs(far.seconds) > _WARN else Finding("clock skew", "ok", found)]
