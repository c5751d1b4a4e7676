"""`latxa plan`: whether a run fits on the GPUs, and what it takes, before it is submitted; and its best layout there."""

import json as json_text
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from latxa_megatron.cli.launch import Overrides, RunFile
from latxa_megatron.cli.terminal import OPTIONS, console


class _RunUnlessNamed(TyperGroup):
    """`latxa plan RUN.yaml` is `latxa plan run RUN.yaml`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        named = not args or args[0] in self.commands or args[0] in ctx.help_option_names
        return super().parse_args(ctx, args if named else ["run", *args])


plan = typer.Typer(
    cls=_RunUnlessNamed,
    help="Say what a run takes on GPUs, and whether it fits: `latxa plan RUN.yaml`, which is `latxa plan run`.",
    **OPTIONS,
)

Kind = Annotated[
    str | None,
    typer.Option(metavar="NAME|FILE", help="Kind of GPU, as h100-80g, or a file with one; scale.gpu where it is not given."),
]
Count = Annotated[int | None, typer.Option(min=1, help="How many; the run file's scale.gpus where it is not given.")]
NodesOf = Annotated[int | None, typer.Option(min=1, help="GPUs of a node, among which links are fast; the kind's, mostly 8.")]
Document = Annotated[
    float | None,
    typer.Option(min=1, help="Mean length of the document that a position is in; the pack plan's, or a whole sample."),
]


@plan.command("run")
def plan_run(
    run_file: RunFile,
    gpu: Kind = None,
    gpus: Count = None,
    overrides: Overrides = None,
    nodes_of: NodesOf = None,
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
    from latxa_megatron.plan.gpus import planned_for
    from latxa_megatron.plan.mend import mends

    run = load_run(run_file, overrides)
    given = Given.of(run, *planned_for(run.scale, gpu, gpus), document, nodes_of)
    found, rates = estimate_given(run, given), Rates(price, pue, disk)
    takes, ways = cost(found, run.checkpoint, rates), [] if found.fits else mends(run, given)
    if json:
        said = {**found.as_json(), **asdict(takes), "rates": asdict(rates), "mends": [way.as_json() for way in ways]}
        typer.echo(json_text.dumps(said, indent=2))
        raise typer.Exit(int(not found.fits))
    for table in (*plan_tables.memory_tables(found), plan_tables.seconds_table(found)):
        console.print(table)
    lines = [*plan_tables.lines(found, takes, rates, run.checkpoint.async_save), *plan_tables.verdict(found, ways)]
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)
    raise typer.Exit(int(not found.fits))


@plan.command("search")
def plan_search(
    run_file: RunFile,
    gpu: Kind = None,
    gpus: Count = None,
    overrides: Overrides = None,
    nodes_of: NodesOf = None,
    document: Document = None,
    write: Annotated[bool, typer.Option("--write", help="Put the best layout into the run file.")] = False,
    picture: Annotated[Path | None, typer.Option(metavar="FILE.svg", help="Draw time against memory.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON: all layouts that fit.")] = False,
) -> None:
    """Rank all legal layouts of a run that fit, by the time of a step. Keys that an override sets, as parallel.cp=1, stay so.

    Exit status 1 if none fits.
    """
    from latxa_megatron.cli import plan_tables
    from latxa_megatron.config import load_run
    from latxa_megatron.plan.estimate import Given
    from latxa_megatron.plan.gpus import planned_for
    from latxa_megatron.plan.layouts import differences
    from latxa_megatron.plan.mend import mends
    from latxa_megatron.plan.picture import check_name, write_picture
    from latxa_megatron.plan.run_file import write_layout
    from latxa_megatron.plan.search import search

    if picture:
        check_name(picture)
    run = load_run(run_file, overrides)
    keep = {override.partition("=")[0] for override in overrides or []}
    given = Given.of(run, *planned_for(run.scale, gpu, gpus), document, nodes_of)
    found = search(run, given, keep)
    if json:
        typer.echo(json_text.dumps([option.as_json() for option in found.fitting], indent=2))
    else:
        console.print(plan_tables.ranking(found.fitting[:10]))
        console.print(plan_tables.searched(found, given), highlight=False, soft_wrap=True)
        if not found.fitting:
            console.print(plan_tables.none_fits(mends(run, given)), highlight=False, soft_wrap=True)
    if picture:
        write_picture(picture, found, f"{run.name} on {given.gpus} x {given.gpu.name}")
    if write and found.fitting:
        values = differences(load_run(run_file), found.fitting[0].run)
        write_layout(run_file, values)
        if not json:
            console.print(plan_tables.written(run_file, values), highlight=False, soft_wrap=True)
    raise typer.Exit(int(not found.fitting))
