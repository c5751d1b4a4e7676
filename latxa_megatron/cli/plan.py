"""`latxa plan`: whether a run fits on the GPUs, and what it takes, before it is submitted."""

import json as json_text
from typing import Annotated

import typer
from rich.table import Table

from latxa_megatron.cli.launch import Overrides, RunFile
from latxa_megatron.cli.terminal import console


def plan(
    run_file: RunFile,
    gpu: Annotated[str, typer.Option(help="Kind of GPU, as h100-80g.")],
    gpus: Annotated[int, typer.Option(min=1, help="How many.")],
    overrides: Overrides = None,
    price: Annotated[float | None, typer.Option(min=0, help="Of a GPU hour; the run's is said then.")] = None,
    document: Annotated[
        float | None,
        typer.Option(min=1, help="Mean length of the document that a position is in; the pack plan's, or a whole sample."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say whether a run fits, how fast it is and how long it takes. Exit status 1 if it does not fit."""
    from latxa_megatron.config import load_run
    from latxa_megatron.plan.estimate import estimate
    from latxa_megatron.plan.gpus import find_gpu
    from latxa_megatron.plan.memory import SLACK, TERMS

    found = estimate(load_run(run_file, overrides), find_gpu(gpu), gpus, document)
    if json:
        typer.echo(json_text.dumps(found.as_json(), indent=2))
        raise typer.Exit(int(not found.fits))
    table = Table("GiB on a GPU", *(f"stage {stage.stage}" for stage in found.memory), box=None)
    for term in (*TERMS, "peak"):
        table.add_row(term.replace("_", " "), *(f"{getattr(stage, term):.1f}" for stage in found.memory))
    console.print(table)
    times = Table("seconds of a step", "", box=None)
    for name, value in vars(found.seconds).items():
        times.add_row(name.replace("_", " "), f"{value:.3f}")
    times.add_row("step", f"{found.seconds.step:.3f}")
    console.print(times)
    console.print(
        f"{found.positions_per_second_per_gpu:,.0f} positions/s/GPU, {found.model_tflops_per_gpu:.0f} model TFLOP/s/GPU; "
        f"most of a step is {found.seconds.largest()}",
        highlight=False,
    )
    if found.steps is not None and found.days is not None:
        hours = found.days * 24 * gpus
        cost = f", {hours * price:,.0f} at {price:g} an hour" if price is not None else ""
        console.print(f"{found.steps:,} steps: {found.days:.2f} days, {hours:,.0f} GPU-hours{cost}", highlight=False)
    console.print(f"a checkpoint: {found.checkpoint_bytes / 1e9:,.1f} GB", highlight=False)
    worst = found.worst
    says = "fits" if found.fits else "does not fit"
    console.print(
        f"[bold]{says}[/]: {worst.peak:.1f} of {found.gpu.memory:.1f} GiB on stage {worst.stage}, {SLACK:.0f} stay free; "
        f"most of it is {worst.largest()}",
        highlight=False,
        soft_wrap=True,
    )
    raise typer.Exit(int(not found.fits))
