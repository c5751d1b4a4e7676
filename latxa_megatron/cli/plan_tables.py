"""How `latxa plan` prints what it found."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.table import Column, Table

from latxa_megatron.plan.cost import Cost, Rates
from latxa_megatron.plan.estimate import Estimate, Given
from latxa_megatron.plan.memory import BESIDE, TERMS
from latxa_megatron.plan.mend import Mend
from latxa_megatron.plan.run_file import yaml_word
from latxa_megatron.plan.search import Found, Option

_STAGES = 9
"""Stages side by side in 80 columns."""


def memory_tables(found: Estimate) -> Iterator[Table]:
    """A table for each few stages."""
    for first in range(0, len(found.memory), _STAGES):
        stages = found.memory[first : first + _STAGES]
        numbers = (Column(str(stage.stage), justify="right", no_wrap=True) for stage in stages)
        table = Table(Column("GiB, stage", no_wrap=True), *numbers, box=None)
        for term in (*TERMS, "peak", *BESIDE, "needed"):
            table.add_row(term.replace("_", " "), *(f"{getattr(stage, term):.1f}" for stage in stages))
        yield table


def seconds_table(found: Estimate) -> Table:
    table = Table("seconds of a step", Column("", justify="right"), box=None)
    for name, value in vars(found.seconds).items():
        table.add_row(name.replace("_", " "), f"{value:.3f}")
    table.add_row("step", f"{found.seconds.step:.3f}")
    return table


def lines(found: Estimate, takes: Cost, rates: Rates, async_save: bool) -> Iterator[str]:
    """Speed, what the whole run takes, and its checkpoints."""
    mfu = "" if found.mfu is None else f" (MFU {found.mfu:.0%})"
    yield (
        f"{found.positions_per_second_per_gpu:,.0f} positions/s/GPU, {found.model_tflops_per_gpu:.0f} model TFLOP/s/GPU{mfu}; "
        f"most of a step is {found.seconds.largest()}"
    )
    if takes.days is not None and takes.kwh is not None:
        money = "" if takes.money is None else f"; {takes.money:,.0f} at {rates.price:g} an hour"
        yield f"{found.steps:,} steps: {takes.days:.2f} days, {takes.gpu_hours:,.0f} GPU-hours{money}"
        pue = f" and a PUE of {rates.pue:g}" if rates.pue != 1 else ", its boards alone"
        yield f"{takes.kwh:,.0f} kWh at {found.gpu.watts:.0f} W a GPU{pue}"
    saved = f"a checkpoint: {found.checkpoint_bytes / 1e9:,.1f} GB, {takes.save_seconds:,.0f} s at {rates.disk:g} GB/s"
    if takes.saves is None or takes.disk_gb is None:
        yield saved
    else:
        how = "beside training" if async_save else "while training waits"
        yield f"{saved}; {takes.saves:,} of them, {how}, at most {takes.disk_gb:,.0f} GB at once"


_NOTHING = "nothing fits, not even on 16 times the GPUs"


def verdict(found: Estimate, mends: list[Mend]) -> Iterator[str]:
    """Whether it fits, and what would mend it."""
    worst = found.worst
    if found.fits:
        yield (
            f"[bold]fits[/]: {worst.needed:.1f} of {found.gpu.memory:.1f} GiB on stage {worst.stage}; "
            f"most of it is {worst.largest()}"
        )
        return
    says = " or ".join(mend.says for mend in mends) or _NOTHING
    yield f"[bold]does not fit[/]: {worst.needed:.1f} of {found.gpu.memory:.1f} GiB on stage {worst.stage}; {says}"
    for mend in mends:
        takes = f"{mend.estimate.worst.needed:.1f} GiB, {mend.estimate.seconds.step:.2f} s a step"
        yield f"  {_settings(mend.values)}: {takes}"


def _settings(values: dict[str, Any]) -> str:
    """As overrides of the command line."""
    return " ".join(f"{key}={yaml_word(value).replace(' ', '')}" for key, value in values.items())


def ranking(options: list[Option]) -> Table:
    numbers = [Column(title, justify="right") for title in ("DP", "GiB", "s/step", "positions/s/GPU", "MFU")]
    table = Table("", Column("layout", overflow="fold"), *numbers, "most of a step", box=None)
    for place, option in enumerate(options, 1):
        found = option.estimate
        table.add_row(
            str(place),
            option.describe(),
            str(found.dp),
            f"{found.worst.needed:.1f}",
            f"{found.seconds.step:.2f}",
            f"{found.positions_per_second_per_gpu:,.0f}",
            "-" if found.mfu is None else f"{found.mfu:.0%}",
            found.seconds.largest(),
        )
    return table


def searched(found: Found, given: Given) -> str:
    """How many layouts there are."""
    legal, gpus = len(found.fitting) + len(found.rest), f"{given.gpus} x {given.gpu.name}"
    return f"{len(found.fitting):,} of {legal:,} legal layouts fit on {gpus}, each with as little recomputed as fits"


def none_fits(mends: list[Mend]) -> str:
    """Of a search without a layout that fits: with what the run would."""
    return f"what would fit: {' or '.join(mend.says for mend in mends)}" if mends else _NOTHING


def written(file: Path, values: dict[str, Any]) -> str:
    return f"{file}: {_settings(values)}" if values else f"{file}: has the best layout already"
