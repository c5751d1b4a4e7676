"""`latxa plan search`: the layouts of a run by the time that a step takes, each with as little recomputed as fits.

Recomputing a layer more never needs more memory once one is, and takes time; so the least that fits is found by halving.
"""

from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import Any

from latxa_megatron.config import RunConfig
from latxa_megatron.plan.estimate import Estimate, Given, estimate_given, run_memory
from latxa_megatron.plan.estimate import fits as all_fit
from latxa_megatron.plan.layouts import changed, layouts
from latxa_megatron.train.check import check_spread


@dataclass(frozen=True)
class Option:
    """A layout of the run and what it takes."""

    run: RunConfig
    estimate: Estimate

    def describe(self) -> str:
        """As in "TP4 PP8, microbatch 2, recompute 3"."""
        train = self.run.train
        more = [f"microbatch {train.micro_batch}"] if train.micro_batch > 1 else []
        more += [f"recompute {train.recompute}"] if train.recompute != "none" else []
        own = self.run.parallel.stages
        more += [f"stages {' '.join(map(str, own))}"] if own else []
        return ", ".join([self.run.parallel.describe(), *more])

    def as_json(self) -> dict[str, Any]:
        p, train, found = self.run.parallel, self.run.train, self.estimate
        layout = {**p.model_dump(), "dp": found.dp, "micro_batch": train.micro_batch, "recompute": train.recompute}
        return {**layout, "gib": found.worst.needed, "seconds_per_step": found.seconds.step, "seconds": asdict(found.seconds)}

    def rank(self) -> tuple[float, int, float]:
        """By time; where three digits of it are the same, which is less than a plan knows, by how little is cut up."""
        p, seconds = self.run.parallel, float(f"{self.estimate.seconds.step:.3g}")
        return seconds, p.cp * p.vp * self.run.train.micro_batch, self.estimate.worst.needed


@dataclass(frozen=True)
class Found:
    """fitting: fastest first. rest: what does not fit with all recomputed."""

    fitting: list[Option]
    rest: list[Option]


def search(run: RunConfig, given: Given, keep: Collection[str] = ()) -> Found:
    """All legal layouts on the GPUs given; keys of `keep`, as "parallel.tp", stay as the run has them.

    Raises LatxaError for FP8 on GPUs without it, and where no layout is legal for what makes the run's own illegal.
    """
    fitting: list[Option] = []
    rest: list[Option] = []
    for each in layouts(run, given.shape, given.gpus, keep):
        found = changed(each, recompute=run.train.recompute) if "train.recompute" in keep else lightest(each, given)
        option = Option(found, estimate_given(found, given))
        (fitting if option.estimate.fits else rest).append(option)
    if not fitting and not rest:
        check_spread(run, given.shape, given.gpus)
    fitting.sort(key=Option.rank)
    return Found(fitting, rest)


def lightest(run: RunConfig, given: Given) -> RunConfig:
    """The run with the least recomputed, from `none` on, that fits; with every layer where none does."""
    if _fits(run, given):
        return run
    low, high = 1, most_recomputed(run, given)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if _fits(changed(run, recompute=middle), given) else (middle + 1, high)
    return changed(run, recompute=high)


def most_recomputed(run: RunConfig, given: Given) -> int:
    """The layers of the fullest chunk."""
    pipeline, _ = run_memory(run, given.shape, given.gpus)
    return max(1, *(layers for stage in pipeline for layers in stage.chunks))


def _fits(run: RunConfig, given: Given) -> bool:
    return all_fit(run_memory(run, given.shape, given.gpus)[1], given.gpu)
