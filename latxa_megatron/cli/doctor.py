"""`latxa doctor`: what of this machine would slow a run or end it."""

import json as json_text
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Column, Table

from latxa_megatron.cli.terminal import console

_COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}


def doctor(
    run_file: Annotated[
        Path | None,
        typer.Argument(metavar="RUN.yaml", help="Run file: whether it can start here, and its checkpoints fit on the disk."),
    ] = None,
    gpus: Annotated[
        bool, typer.Option("--gpus", help="Measure bandwidth between the GPUs too; two CPU processes without.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Write and read 512 MiB here, to see how fast the disk is; `out` of RUN.yaml by default."
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON, with all sizes of the bandwidth test.")] = False,
) -> None:
    """Look at this machine: versions, GPUs, links, limits, disk. Exit status 1 if something would end a run.

    Under torchrun or srun it looks at each node, and at the clocks and links between them.
    """
    from latxa_megatron.config import load_run
    from latxa_megatron.doctor.examine import examine

    run = load_run(run_file) if run_file else None
    report = examine(run.model_copy(update={"out": out}) if run and out else run, out, bandwidth=gpus)
    if report is None:
        return
    if json:
        typer.echo(json_text.dumps(report.as_json(), indent=2))
        raise typer.Exit(int(report.state == "fail"))
    several = len(report.nodes) > 1
    table = Table("", "check", *(["nodes"] if several else []), Column("found, and what to do", overflow="fold"), box=None)
    for finding, nodes in report.lines:
        where = [f"all {len(nodes)}" if nodes == report.nodes else escape(", ".join(nodes))] if several else []
        mend = f"\n[bold]-> {escape(finding.mend)}[/]" if finding.mend else ""
        colour = _COLOURS[finding.state]
        table.add_row(f"[{colour}]{finding.state}[/]", finding.check, *where, escape(finding.found) + mend)
    console.print(table)
    counts = {state: sum(finding.state == state for finding, _ in report.lines) for state in ("warn", "fail")}
    console.print(f"{len(report.lines)} lines: {counts['fail']} fail, {counts['warn']} warn")
    raise typer.Exit(int(report.state == "fail"))
