"""What a whole run takes beside its steps: hours, energy, money, and what its checkpoints take on a disk."""

from dataclasses import dataclass

from latxa_megatron.plan.estimate import Estimate
from latxa_megatron.sections import CheckpointSection

DISK = 5.0
"""GB/s that all ranks together are taken to write and read where nothing is given: a small share of a parallel file system."""


@dataclass(frozen=True)
class Rates:
    """price: of a GPU hour, in whatever money; pue: a centre's energy for each unit that its computers take; disk: GB/s."""

    price: float | None = None
    pue: float = 1.0
    disk: float = DISK


@dataclass(frozen=True)
class Cost:
    """What depends on the number of steps is None where that is not known.

    kwh: boards at full power all the time, times the PUE. save_seconds: of writing one checkpoint, and about as many of
    reading it; days has them where training waits for a save. disk_gb: of the checkpoints that are there at once, at most.
    """

    save_seconds: float
    saves: int | None
    disk_gb: float | None
    days: float | None
    gpu_hours: float | None
    kwh: float | None
    money: float | None


def cost(estimate: Estimate, section: CheckpointSection, rates: Rates) -> Cost:
    one = estimate.checkpoint_bytes / 1e9
    seconds = one / rates.disk
    if estimate.steps is None:
        return Cost(seconds, None, None, None, None, None, None)
    saves = -(-estimate.steps // section.every) if section.every else 0
    for_good = estimate.steps // section.keep_every if section.keep_every else 0
    waited = 0.0 if section.async_save else saves * seconds
    days = (estimate.steps * estimate.seconds.step + waited) / 86400
    hours = days * 24 * estimate.gpus
    return Cost(
        seconds,
        saves,
        min(saves, section.keep + 1 + for_good) * one,
        days,
        hours,
        hours * estimate.gpu.watts / 1000 * rates.pue,
        None if rates.price is None else hours * rates.price,
    )
