"""What would make a run fit that does not: the least change of one thing, or another layout, or more GPUs. Each is planned."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from latxa_megatron.config import RunConfig
from latxa_megatron.errors import LatxaError
from latxa_megatron.plan.estimate import Estimate, Given, estimate_given
from latxa_megatron.plan.layouts import changed, differences, divisors, legal
from latxa_megatron.plan.search import most_recomputed, search

_MOST_GPUS = 16  # times those given


@dataclass(frozen=True)
class Mend:
    """A change after which the run fits. values: the keys to set, dotted; estimate: what the run takes then."""

    says: str
    values: dict[str, Any]
    estimate: Estimate

    def as_json(self) -> dict[str, Any]:
        sizes = {"gpus": self.estimate.gpus, "gib": self.estimate.worst.needed, "seconds_per_step": self.estimate.seconds.step}
        return {"says": self.says, "values": self.values, **sizes}


def mends(run: RunConfig, given: Given, most: int = 3) -> list[Mend]:
    """For a run that does not fit, at most so many mends, the fastest first; empty where not even 16 times the GPUs suffice.

    One thing is changed where that is enough: layers recomputed, tp, pp, cp, vp, the microbatch. Else it is the fastest layout
    that fits, on the same GPUs or on the least multiple of them by a power of two.
    """
    found = [mend for changes in _changes(run, given) if (mend := _first_that_fits(run, given, changes))]
    if found:
        return sorted(found, key=lambda mend: mend.estimate.seconds.step)[:most]
    times = 1
    while times <= _MOST_GPUS:
        more = replace(given, gpus=times * given.gpus)
        if fitting := search(run, more).fitting:
            best = fitting[0]
            says = best.describe() + (f" on {more.gpus} GPUs" if times > 1 else "")
            return [Mend(says, differences(run, best.run), best.estimate)]
        times *= 2
    return []


def _changes(run: RunConfig, given: Given) -> Iterator[list[tuple[str, dict[str, Any]]]]:
    """For each thing that can be changed what it can be, from the least change on: what it says, and the values."""
    p, train = run.parallel, run.train
    done = train.recompute if isinstance(train.recompute, int) else 0
    each = " of each stage" if p.pp > 1 else ""
    yield [
        (f"recompute {layers} layer{'s' if layers > 1 else ''}{each}", {"recompute": layers})
        for layers in range(done + 1, most_recomputed(run, given) + 1)
    ]
    for name in ("tp", "cp"):
        yield [(f"{name.upper()} {getattr(p, name)} -> {size}", {name: size}) for size in _above(getattr(p, name), given.gpus)]
    equal = " with equal stages" if p.stages else ""
    pipelines: list[tuple[str, dict[str, Any]]] = []
    for size in _above(p.pp, given.gpus):
        says = f"PP {p.pp} -> {size}"
        pipelines.append((f"{says}{equal}", {"pp": size, "stages": None}))
        if p.vp > 1:
            pipelines.append((f"{says} and VP {p.vp} -> 1{equal}", {"pp": size, "vp": 1, "stages": None}))
    yield pipelines
    yield [(f"VP {p.vp} -> {size}{equal}", {"vp": size, "stages": None}) for size in reversed(divisors(p.vp)[:-1])]
    smaller = reversed(divisors(train.micro_batch)[:-1])
    yield [(f"microbatch {train.micro_batch} -> {size}", {"micro_batch": size}) for size in smaller]


def _above(size: int, gpus: int) -> list[int]:
    return [each for each in divisors(gpus) if each > size]


def _first_that_fits(run: RunConfig, given: Given, changes: list[tuple[str, dict[str, Any]]]) -> Mend | None:
    for says, values in changes:
        try:
            other = changed(run, **values)
        except LatxaError:
            continue
        if legal(other, given.shape, given.gpus) and (estimate := estimate_given(other, given)).fits:
            return Mend(says, differences(run, other), estimate)
    return None
