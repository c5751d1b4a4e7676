"""`latxa`: each command parses its arguments, calls one function of the package, and prints what came of it.

Imports stand inside the commands: `latxa --help` should not wait for torch.
"""

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Column, Table
from rich.text import Text

from latxa_megatron import launcher
from latxa_megatron.errors import LatxaError

if TYPE_CHECKING:
    from latxa_megatron.data.inspect import Exposure, Inspection

_OPTIONS: dict[str, Any] = {"no_args_is_help": True, "add_completion": False, "pretty_exceptions_enable": False}
app = typer.Typer(
    help="From an open-weight LLM and a corpus in a low-resource language to a trained model, on Megatron-core.",
    **_OPTIONS,
)
data = typer.Typer(help="Build, merge, pack, check and look at training data.", **_OPTIONS)
convert = typer.Typer(help="Turn Hugging Face directories into Megatron checkpoints and back.", **_OPTIONS)
launch = typer.Typer(help="Start training on several processes.", **_OPTIONS)
recipes = typer.Typer(help="Look at the run files that ship.", **_OPTIONS)
for _name, _group in (("data", data), ("convert", convert), ("launch", launch), ("recipes", recipes)):
    app.add_typer(_group, name=_name)

console = Console()

OnError: TypeAlias = Literal["stop", "skip"]
SpecialTokens: TypeAlias = Literal["text", "encode", "error"]

RunFile = Annotated[Path, typer.Argument(metavar="RUN.yaml", help="Run file; `latxa recipes list` shows those that ship.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[SECTION.KEY=VALUE]...", help="Values to change, as in optimizer.lr=1e-5."),
]


@data.command("build")
def data_build(
    out: Annotated[Path | None, typer.Option(help="Token store to write.")] = None,
    tokenizer: Annotated[Path | None, typer.Option(help="Directory with tokenizer.json.")] = None,
    source: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=GLOB", help="JSONL files of documents or conversations ('messages'), .gz and .zst too."),
    ] = None,
    field: Annotated[str, typer.Option(help="The field that has a document's text.")] = "text",
    on_error: Annotated[OnError, typer.Option(help="At a line that is no record: stop, or leave it out and say so.")] = "stop",
    special_tokens: Annotated[
        SpecialTokens,
        typer.Option(help="What control tokens that stand literally in a text are."),
    ] = "text",
    hold_out: Annotated[float, typer.Option(help="Share of the documents to keep out, by a hash of their id.")] = 0.0,
    workers: Annotated[int, typer.Option(min=1, help="Processes; the store is the same for any number.")] = 1,
    run: Annotated[Path | None, typer.Option(metavar="RUN.yaml", help="Take it all from a run file's data: section.")] = None,
) -> None:
    """Tokenize sources into a token store.

    Corpus text is trained whole; of conversations, only what the assistant says, with its end-of-turn token.
    """
    from latxa_megatron.config import load_run
    from latxa_megatron.data.build import build_store
    from latxa_megatron.data.sources import find
    from latxa_megatron.data.store import SKIPPED

    if run:
        config = load_run(run)
        sources = [find(name, s.paths, s.hold_out, s.field) for name, s in config.data.sources.items()]
        out, tokenizer = config.data.store, config.tokenizer
        on_error, special_tokens = config.data.on_error, config.data.special_tokens
        if not sources:
            raise LatxaError(f"{run}: data.sources is empty; name at least one source with its paths")
    elif out and tokenizer and source:
        named: dict[str, list[str]] = {}
        for text in source:
            name, equals, pattern = text.partition("=")
            if not (name and equals and pattern):
                raise LatxaError(f"--source {text}: has the form NAME=GLOB")
            named.setdefault(name, []).append(pattern)
        if not 0 <= hold_out < 1:
            raise LatxaError("--hold-out: is a share from 0 up to, but not, 1")
        sources = [find(name, patterns, hold_out, field) for name, patterns in named.items()]
    else:
        raise LatxaError("give --out, --tokenizer and at least one --source, or a run file with --run")
    with _bytes_bar("tokenizing") as progress:
        store = build_store(
            out,
            tokenizer,
            sources,
            workers=workers,
            skip_errors=on_error == "skip",
            special_tokens=special_tokens,
            progress=progress,
            say=console.print,
        )
    _print_sources(store.totals())
    if skipped := store.manifest.get("skipped"):
        console.print(f"[yellow]skipped {skipped:,} lines[/yellow]: {out / SKIPPED} says which and why", soft_wrap=True)
    console.print(f"store: {out}", soft_wrap=True)


@data.command("pack")
def data_pack(
    stores: Annotated[
        list[str] | None,
        typer.Argument(metavar="STORE[:epochs=N]...", help="Token stores, and how often each is seen."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Pack plan to write.")] = None,
    seq_length: Annotated[int, typer.Option(min=1, help="Positions in a sample.")] = 8192,
    seed: Annotated[int, typer.Option(help="Seed of the order of samples and of fractional epochs.")] = 33,
    weight: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=WEIGHT",
            help="Instead of its epochs, tokens of a source to see, as 2.5e9 or 500M, or their share of all, as 0.3 or 30%.",
        ),
    ] = None,
    concat: Annotated[bool, typer.Option("--concat", help="Lay documents end to end and cut at each sample's end.")] = False,
    run: Annotated[Path | None, typer.Option(metavar="RUN.yaml", help="Take it all from a run file's data: section.")] = None,
) -> None:
    """Pack documents into samples of one sequence length, without cutting what fits and without mixing what they see.

    Every source is spread evenly over the whole plan. Sources with a share make up that share of all tokens; the others keep
    their epochs.
    """
    from latxa_megatron.config import load_run
    from latxa_megatron.data.mixture import mixture_of, with_weights
    from latxa_megatron.data.packing import Packing, pack
    from latxa_megatron.weight import Weight

    packing: Packing = "concat" if concat else "best_fit"

    if run:
        config = load_run(run)
        out, seq_length, seed = config.data.plan, config.data.seq_length, config.train.seed
        if weight or concat:
            raise LatxaError("--run: takes weights and packing from data.sources.NAME.weight and data.packing")
        mixture, packing = mixture_of(config.data), config.data.packing
    elif out and stores:
        weights: dict[str, Weight] = {}
        for text in weight or []:
            name, equals, amount = text.rpartition("=")
            if not equals or name in weights:
                raise LatxaError(f"--weight {text}: has the form NAME=TOKENS or NAME=SHARE, once for a source")
            weights[name] = Weight.parse(amount)
        mixture = with_weights([_mix(text) for text in stores], weights)
    else:
        raise LatxaError("give --out and at least one store, or a run file with --run")
    plan = pack(out, mixture, seq_length=seq_length, seed=seed, packing=packing)
    filled = f"{len(plan):,} samples of {plan.seq_length:,} positions, {plan.efficiency():.2%} filled"
    console.print(f"plan: {out}: {filled}", soft_wrap=True)


@data.command("inspect")
def data_inspect(
    path: Annotated[Path, typer.Argument(metavar="STORE_OR_PLAN")],
    tokenizer: Annotated[Path | None, typer.Option(help="Its tokenizer's directory, to show a sample decoded.")] = None,
    sample: Annotated[int, typer.Option(min=0, help="Number of the document (or of the plan's sample) to show.")] = 0,
) -> None:
    """Show what a store or plan holds; with a tokenizer, one sample with its trained tokens in colour."""
    from latxa_megatron.data.inspect import inspect

    found = inspect(path, tokenizer, sample)
    _print_sources(found.sources)
    if found.plan:
        plan = found.plan
        console.print(
            f"{plan.samples:,} samples of {plan.seq_length:,} positions in {plan.passes} passes, {plan.efficiency:.2%} filled, "
            f"packing {plan.packing}"
        )
        _print_exposure(plan.exposure)
    _print_sample(found)


@data.command("verify")
def data_verify(
    path: Annotated[Path, typer.Argument(metavar="STORE_OR_PLAN")],
    stores: Annotated[bool, typer.Option("--stores", help="Check a plan's stores too, all of their files.")] = False,
    workers: Annotated[int, typer.Option(min=1, help="Threads that read shards.")] = 2,
) -> None:
    """Hash every file again and check that the files belong together: a line for each fault, and then exit status 1."""
    from latxa_megatron.data.verify import verify

    with _bytes_bar("verifying") as progress:
        report = verify(path, with_stores=stores, workers=workers, progress=progress)
    for fault in report.faults:
        console.print(str(fault), soft_wrap=True, markup=False, highlight=False)
    faults = f"{len(report.faults)} fault{'s' * (len(report.faults) != 1)}" if report.faults else "no fault"
    console.print(f"{path}: {report.files:,} files, {report.bytes:,} bytes: {faults}", soft_wrap=True)
    if report.faults:
        raise typer.Exit(1)


@data.command("merge")
def data_merge(
    stores: Annotated[list[Path], typer.Argument(metavar="STORE STORE...", help="Token stores, in the order of the result.")],
    out: Annotated[Path, typer.Option(help="Token store to write.")],
) -> None:
    """Join stores of one tokenizer and template into one. Sources of one name become one; files are linked, not read."""
    from latxa_megatron.data.merge import merge

    store = merge(out, stores)
    _print_sources(store.totals())
    console.print(f"store: {out}", soft_wrap=True)


@convert.command("import")
def convert_import(
    hf: Annotated[Path, typer.Option(metavar="DIR", help="Hugging Face directory (config.json, safetensors, tokenizer).")],
    out: Annotated[Path, typer.Option(metavar="CKPT", help="Checkpoint directory to write.")],
) -> None:
    """Write a Hugging Face model as a Megatron torch_dist checkpoint, to load at any parallel layout."""
    from latxa_megatron.convert.importer import import_hf

    with console.status("importing"):
        final = import_hf(hf, out)
    console.print(f"checkpoint: {final}", soft_wrap=True)


@convert.command("export")
def convert_export(
    checkpoint: Annotated[Path, typer.Option(metavar="CKPT", help="Checkpoint directory, or one iter_* in it.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Hugging Face directory to write.")],
    like: Annotated[
        Path | None, typer.Option(metavar="HF_DIR", help="Directory to take configuration and tokenizer from.")
    ] = None,
) -> None:
    """Write a Megatron checkpoint as a Hugging Face directory that transformers loads."""
    from latxa_megatron.convert.exporter import export_hf

    with console.status("exporting"):
        export_hf(checkpoint, out, like)
    console.print(f"model: {out}", soft_wrap=True)


@app.command("train")
def train(run_file: RunFile, overrides: Overrides = None) -> None:
    """Train a run to its end, from its newest checkpoint if it has one.

    For several processes run it under torchrun, or use `latxa launch local`.
    """
    from latxa_megatron.config import load_run
    from latxa_megatron.train.loop import train as train_run
    from latxa_megatron.train.progress import watching

    run = load_run(run_file, overrides)
    first = launcher.rank() == 0
    with watching(console) if first else nullcontext(lambda total, line: None) as watch:
        finished = train_run(run, watch)
    if not finished and first:
        console.print(f"stopped, with a checkpoint under {run.checkpoints}; the same command goes on", soft_wrap=True)


@launch.command("local")
def launch_local(
    run_file: RunFile,
    nproc: Annotated[int, typer.Option(min=1, help="Processes to start; one for each GPU, where there are any.")],
    overrides: Overrides = None,
) -> None:
    """Run `latxa train RUN.yaml` under torchrun on this machine."""
    from latxa_megatron.launch.local import launch_local as start

    start(run_file, nproc, overrides)


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


def _mix(text: str) -> Any:
    """STORE or STORE:epochs=N, the same for all of the store's sources."""
    from latxa_megatron.data.mixture import Mix
    from latxa_megatron.data.store import TokenStore

    path, _, option = text.partition(":")
    if not option:
        return Mix(Path(path), {})
    key, _, value = option.partition("=")
    try:
        epochs = float(value)
    except ValueError:
        epochs = 0.0
    if key != "epochs" or not epochs > 0:
        raise LatxaError(f"{text}: has the form STORE:epochs=N, with N above 0")
    return Mix(Path(path), dict.fromkeys(TokenStore(Path(path)).manifest["sources"], epochs))


@contextmanager
def _bytes_bar(what: str) -> Iterator[Any]:
    with Progress(TextColumn(what), BarColumn(), TimeElapsedColumn(), console=console) as bar:
        task = bar.add_task(what)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _print_sources(sources: dict[str, Any]) -> None:
    table = Table("source", *(Column(t, justify="right") for t in ("documents", "tokens", "trained", "share")), box=None)
    for name, totals in sources.items():
        trained = totals.trained_tokens / totals.tokens if totals.tokens else 0.0
        table.add_row(name, f"{totals.documents:,}", f"{totals.tokens:,}", f"{totals.trained_tokens:,}", f"{trained:.1%}")
    console.print(table)


def _print_exposure(sources: dict[str, "Exposure"]) -> None:
    """Of each source the epochs, the share of all tokens that are seen, and how many documents are seen how often."""
    table = Table("source", *(Column(t, justify="right") for t in ("epochs", "of all tokens")), "documents seen", box=None)
    for name, found in sources.items():
        seen = ", ".join(f"{documents:,} x{times}" for times, documents in found.times.items())
        table.add_row(name, f"{found.epochs:.4g}", f"{found.share:.1%}", seen)
    console.print(table)


def _print_sample(found: "Inspection") -> None:
    document = 0
    text = Text()
    for piece in found.sample:
        if piece.document != document:
            text.append("\n" + "─" * 20 + "\n", style="dim")
            document = piece.document
        text.append(piece.text, style="green" if piece.trained else "dim")
    if found.sample:
        console.print("trained tokens in [green]green[/green]:")
        console.print(text)


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
