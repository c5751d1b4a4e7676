"""`latxa plan`: whether a run fits on the GPUs, and what it takes, before it is submitted."""

import json as json_text
from dataclasses import asdict
from typing import Annotated

import typer

from latxa_megatron.cli.launch import Overrides, RunFile
from latxa_megatron.cli.terminal import console

Kind = Annotated[str, typer.Option(help="Kind of GPU, as h100-80g.")]
Count = Annotated[int, typer.Option(min=1, help="How many.")]
NodesOf = Annotated[int, typer.Option(min=1, help="GPUs of a node, which have the fast links among them.")]
Document = Annotated[
    float | None,
    typer.Option(min=1, help="Mean length of the document that a position is in; the pack plan's, or a whole sample."),
]


def plan(
    run_file: RunFile,
    gpu: Kind,
    gpus: Count,
    overrides: Overrides = None,
    nodes_of: NodesOf = 8,
    price: Annotated[float | None, typer.Option(min=0, help="Of a GPU hour; the run's is said then.")] = None,
    pue: Annotated[float, typer.Option(min=1, help="Of the data centre; 1 counts the GPUs' boards alone.")] = 1.0,
    disk: Annotated[float, typer.Option(min=0.001, help="GB/s at which all ranks together write a checkpoint.")] = 5.0,
    document: Document = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say whether a run fits, how fast it is and how long it takes. Exit status 1 if it does not fit; then what would mend it."""
    from latxa_megatron.cli import plan_tables
    from latxa_megatron.config import load_run
    from latxa_megatron.plan.cost import Rates, cost
    from latxa_megatron.plan.estimate import Given, estimate_given
    from latxa_megatron.plan.gpus import find_gpu
    from latxa_megatron.plan.mend import mends

    run = load_run(run_file, overrides)
    given = Given.of(run, find_gpu(gpu), gpus, document, nodes_of)
    found, rates = estimate_given(run, given), Rates(price, pue, disk)
    takes, ways = cost(found, run.checkpoint, rates), [] if found.fits else mends(run, given)
    if json:
        said = {**found.as_json(), **asdict(takes), "rates": asdict(rates), "mends": [way.as_json() for way in ways]}
        typer.echo(json_text.dumps(said, indent=2))
        raise typer.Exit(int(not found.fits))
    console.print(plan_tables.memory_table(found))
    console.print(plan_tables.seconds_table(found))
    lines = [*plan_tables.lines(found, takes, rates, run.checkpoint.async_save), *plan_tables.verdict(found, ways)]
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)
    raise typer.Exit(int(not found.fits))
