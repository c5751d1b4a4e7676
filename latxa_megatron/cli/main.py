"""`latxa`: each command parses its arguments, calls one function of the package, and prints what came of it.

Imports stand inside the commands: `latxa --help` should not wait for torch.
"""

import logging
import os
import sys
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from latxa_megatron import launcher
from latxa_megatron.cli.convert import convert
from latxa_megatron.cli.data import data
from latxa_megatron.cli.doctor import doctor
from latxa_megatron.cli.launch import Force, Overrides, RunFile, launch
from latxa_megatron.cli.plan import plan
from latxa_megatron.cli.terminal import OPTIONS, console
from latxa_megatron.errors import LatxaError

app = typer.Typer(
    help="From an open-weight LLM and a corpus in a low-resource language to a trained model, on Megatron-core.",
    **OPTIONS,
)
recipes = typer.Typer(help="Look at the run files that ship.", **OPTIONS)
for _name, _group in (("data", data), ("convert", convert), ("plan", plan), ("launch", launch), ("recipes", recipes)):
    app.add_typer(_group, name=_name)
app.command("doctor")(doctor)


@app.command("train")
def train(run_file: RunFile, overrides: Overrides = None, force: Force = False) -> None:
    """Train a run to its end, from its newest checkpoint if it has one.

    For several processes run it under torchrun, or use `latxa launch local`.
    """
    from latxa_megatron.config import RunConfig, load_run
    from latxa_megatron.plan.room import check_room
    from latxa_megatron.train.loop import train as train_run
    from latxa_megatron.train.progress import watching

    run = load_run(run_file, overrides)
    first = launcher.rank() == 0

    def check(run: RunConfig, ranks: int) -> None:
        if not force:
            check_room(run, ranks, lambda says: console.print(f"[yellow]warning:[/] {says}", soft_wrap=True) if first else None)

    with watching(console) if first else nullcontext(lambda total, line: None) as watch:
        finished = train_run(run, watch, check)
    if not finished and first:
        console.print(f"stopped, with a checkpoint under {run.checkpoints}; the same command goes on", soft_wrap=True)


@recipes.command("list")
def recipes_list() -> None:
    """List the run files that ship with the package, and how large they are."""
    from latxa_megatron import recipes as shipped
    from latxa_megatron.config import load_run
    from latxa_megatron.scale import scale

    numbers = [Column(title, justify="right", no_wrap=True) for title in ("GPUs", "tokens", "FLOPs")]
    table = Table(Column("recipe", no_wrap=True), Column("backbone", no_wrap=True), "data x epochs", *numbers, box=None)
    for name in shipped.names(bases=False):
        run = load_run(shipped.path(name))
        table.add_row(
            name,
            run.scale.backbone or run.model.hf.name,
            ", ".join(f"{source} {s.describe()}" for source, s in run.data.sources.items()),
            f"{run.scale.gpus} {run.scale.gpu}" if run.scale.gpus else "-",
            *scale(run).describe(),
        )
    Console(width=max(console.width, 100)).print(table)  # in 80 columns, as in a pipe, it would lose names
    console.print("GPUs: what the layout was made for. FLOPs: 6 x matrix parameters x tokens, without attention's.")
    console.print("+: and those of sources whose tokens are not known; -: not known.")
    console.print("`latxa recipes show NAME` prints one; a run file that says `base: NAME` starts from it.")


@recipes.command("show")
def recipes_show(name: Annotated[str, typer.Argument(metavar="NAME")]) -> None:
    """Print a recipe's YAML."""
    from latxa_megatron import recipes as shipped

    console.print(shipped.path(name).read_text(encoding="utf-8"), end="", markup=False, highlight=False, soft_wrap=True)


@app.command("demo")
def demo(
    out: Annotated[Path, typer.Option(help="Directory for everything the demo makes.")] = Path("demo-out"),
    backbone: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Llama-architecture Hugging Face directory instead of SmolLM2-135M."),
    ] = None,
    corpus: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="JSONL of documents instead of the sample corpus; repeatable."),
    ] = None,
) -> None:
    """Teach a small real model some Basque on this machine: the whole road, from text to a measured model.

    Killed and started again with the same --out, it goes on where it was.
    """
    from latxa_megatron.demo.road import walk

    walk(out, backbone=backbone, corpus=corpus, console=console)


def main() -> None:
    """The command `latxa`. What a user did wrong ends with one sentence and status 2."""
    warnings.simplefilter("ignore")  # megatron-core warns of each optional package that is not there
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    logging.getLogger("megatron").setLevel(logging.ERROR)
    try:
        app()
    except (LatxaError, OSError) as error:  # OSError: no permission, a full disk; it names its file
        rank = launcher.rank()
        who = f"rank {rank}: " if rank else ""
        Console(stderr=True, soft_wrap=True, highlight=False).print(Text(f"{who}error: {error}"))
        sys.exit(2)
