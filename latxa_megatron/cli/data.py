"""`latxa data`: build, merge, pack, check and look at training data."""

from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import typer

from latxa_megatron.cli.data_tables import print_cleaned, print_exposure, print_lengths, print_sample, print_sources
from latxa_megatron.cli.terminal import OPTIONS, bytes_bar, console
from latxa_megatron.errors import LatxaError

data = typer.Typer(help="Build, merge, pack, check and look at training data.", **OPTIONS)

OnError: TypeAlias = Literal["stop", "skip"]
SpecialTokens: TypeAlias = Literal["text", "encode", "error"]
ExportFormat: TypeAlias = Literal["records", "parquet"]


@data.command("build")
def data_build(
    out: Annotated[Path | None, typer.Option(help="Token store to write.")] = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option(help="Directory or file: tokenizer.json, or Llama 3's or SentencePiece's .model."),
    ] = None,
    source: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=GLOB",
            help="JSONL (.gz, .zst), Parquet or Arrow files of documents or conversations ('messages'); a directory "
            "that `datasets` saved, or is laid out as on the hub; or hf:OWNER/NAME[/FOLDER][:SPLIT].",
        ),
    ] = None,
    field: Annotated[str, typer.Option(help="The field that has a document's text.")] = "text",
    on_error: Annotated[OnError, typer.Option(help="At a line that is no record: stop, or leave it out and say so.")] = "stop",
    special_tokens: Annotated[
        SpecialTokens,
        typer.Option(help="What control tokens that stand literally in a text are."),
    ] = "text",
    hold_out: Annotated[float, typer.Option(help="Share of the documents to keep out, by a hash of their id.")] = 0.0,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Processes; by default one for each processor, at most 8. The store is always the same."),
    ] = None,
    shard: Annotated[
        str | None,
        typer.Option(metavar="I/N", help="Do one share of the work, 0/N to N-1/N, as a task of a Slurm array does."),
    ] = None,
    ray: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Do the work on a Ray cluster, as auto or ray-head:6379.")
    ] = None,
    run: Annotated[Path | None, typer.Option(metavar="RUN.yaml", help="Take it all from a run file's data: section.")] = None,
) -> None:
    """Tokenize sources into a token store.

    Corpus text is trained whole; of conversations, only what the assistant says, with its end-of-turn token.
    """
    from latxa_megatron.config import load_run
    from latxa_megatron.data.build import build_share, build_store
    from latxa_megatron.data.shares import Share
    from latxa_megatron.data.sources import find
    from latxa_megatron.data.store import SKIPPED

    if shard and ray:
        raise LatxaError("--shard and --ray: both spread the work over machines; give one of them")
    share = Share.parse(shard) if shard else None
    if run:
        config = load_run(run)
        sources = [find(name, s.paths, s.hold_out, s.field) for name, s in config.data.sources.items()]
        out, tokenizer = config.data.store, config.tokenizer
        on_error, special_tokens = config.data.on_error, config.data.special_tokens
        if not sources:
            raise LatxaError(f"{run}: data.sources is empty; name at least one source with its paths")
    elif out and tokenizer and source:
        if not 0 <= hold_out < 1:
            raise LatxaError("--hold-out: is a share from 0 up to, but not, 1")
        sources = [find(name, patterns, hold_out, field) for name, patterns in _named("--source", source).items()]
    else:
        raise LatxaError("give --out, --tokenizer and at least one --source, or a run file with --run")
    with bytes_bar("tokenizing") as progress:
        options: dict[str, Any] = {
            "workers": workers,
            "skip_errors": on_error == "skip",
            "special_tokens": special_tokens,
            "progress": progress,
            "say": console.print,
        }
        if share:
            store = build_share(out, tokenizer, sources, share, **options)
        else:
            store = build_store(out, tokenizer, sources, ray=ray, **options)
    if store is None:
        console.print(f"share {share} is done; the last one to finish makes {out}", soft_wrap=True)
        return
    print_sources(store.totals())
    if skipped := store.manifest.get("skipped"):
        lines = f"{skipped:,} line{'s' * (skipped != 1)}"
        console.print(f"[yellow]skipped {lines}[/yellow]: {out / SKIPPED} says which and why", soft_wrap=True)
    console.print(f"store: {out}", soft_wrap=True)


@data.command("clean")
def data_clean(
    out: Annotated[Path, typer.Option(help="Directory to write: NAME-00000.jsonl.zst ..., dropped.jsonl, report.json.")],
    source: Annotated[
        list[str],
        typer.Option(metavar="NAME=GLOB", help="JSONL files of documents or conversations ('messages'), .gz and .zst too."),
    ],
    field: Annotated[str, typer.Option(help="The field that has a document's text.")] = "text",
    exact: Annotated[bool, typer.Option("--exact/--no-exact", help="Drop what repeats an earlier text.")] = True,
    near: Annotated[
        str, typer.Option(metavar="SHARE|off", help="Drop what has this share of its 5-grams in common with an earlier text.")
    ] = "0.8",
    language: Annotated[
        list[str] | None,
        typer.Option(metavar="[NAME=]CODE", help="Drop what is in no such language, as eu; of one source alone, NAME=eu."),
    ] = None,
    min_score: Annotated[float, typer.Option(help="The probability from which a text is in a language.")] = 0.5,
    against: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=GLOB", help="Evaluation JSONL; drop what has 13 words in a row of an item."),
    ] = None,
    on_error: Annotated[OnError, typer.Option(help="At a line that is no record: stop, or drop it and say so.")] = "stop",
    workers: Annotated[int, typer.Option(min=1, help="Processes; the result is the same for any number.")] = 1,
) -> None:
    """Drop duplicates, near duplicates, other languages and evaluation items from sources; what stays is as it was."""
    from latxa_megatron.data.cleaning.clean import DROPPED, clean
    from latxa_megatron.data.cleaning.rules import Rules
    from latxa_megatron.data.sources import find

    sources = [find(name, patterns, field=field) for name, patterns in _named("--source", source).items()]
    try:
        share = None if near == "off" else float(near)
    except ValueError:
        raise LatxaError(f"--near {near}: is a share such as 0.8, or off") from None
    languages: dict[str, tuple[str, ...]] = {}
    for text in language or []:
        name, equals, code = text.rpartition("=")
        if equals and name not in {each.name for each in sources}:
            raise LatxaError(f"--language {text}: there is no source '{name}'")
        for each in [name] if equals else [each.name for each in sources]:
            languages[each] = (*languages.get(each, ()), code)
    sets = tuple(find(name, patterns) for name, patterns in _named("--against", against or []).items())
    rules = Rules(exact, share, languages, min_score, sets, on_error == "skip")
    with bytes_bar("cleaning") as progress:
        found = clean(out, sources, rules, workers=workers, progress=progress)
    print_cleaned(found)
    console.print(f"{out / DROPPED} says which records were dropped and why", soft_wrap=True, highlight=False)
    for name in found.sources:
        console.print(f"next: latxa data build --source '{name}={out / name}-*.jsonl.zst' ...", soft_wrap=True, highlight=False)


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
    sample: Annotated[
        int, typer.Option(min=0, help="Number of the document (or plan's sample) to show; of a long one, its beginning and end.")
    ] = 0,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write all of it, and more, as a page of one file.")] = None,
) -> None:
    """Show what a store or plan holds; with a tokenizer, how its texts read, and one sample with its trained tokens in colour."""
    from latxa_megatron.data.inspect import inspect
    from latxa_megatron.data.page import write_page

    if html and not html.parent.is_dir():
        raise LatxaError(f"--html {html}: there is no directory {html.parent}")
    found = inspect(path, tokenizer, sample, page=html is not None)
    print_sources(found.sources)
    print_lengths(found)
    if found.plan:
        plan = found.plan
        console.print(
            f"{plan.samples:,} samples of {plan.seq_length:,} positions in {plan.passes} passes, {plan.efficiency:.2%} filled, "
            f"packing {plan.packing}"
        )
        print_exposure(plan.exposure)
    if html:
        write_page(html, found)
        console.print(f"page: {html}", soft_wrap=True)
    else:
        print_sample(found)


@data.command("verify")
def data_verify(
    path: Annotated[Path, typer.Argument(metavar="STORE_OR_PLAN_OR_EXPORT")],
    stores: Annotated[bool, typer.Option("--stores", help="Check a plan's stores too, all of their files.")] = False,
    workers: Annotated[int, typer.Option(min=1, help="Threads that read shards.")] = 2,
) -> None:
    """Hash every file again and check that the files belong together: a line for each fault, and then exit status 1."""
    from latxa_megatron.data.verify import verify

    with bytes_bar("verifying") as progress:
        report = verify(path, with_stores=stores, workers=workers, progress=progress)
    for fault in report.faults:
        console.print(str(fault), soft_wrap=True, markup=False, highlight=False)
    faults = f"{len(report.faults)} fault{'s' * (len(report.faults) != 1)}" if report.faults else "no fault"
    console.print(f"{path}: {report.files:,} files, {report.bytes:,} bytes: {faults}", soft_wrap=True)
    if report.faults:
        raise typer.Exit(1)


@data.command("export")
def data_export(
    plan: Annotated[Path, typer.Argument(metavar="PLAN", help="Pack plan whose samples are written.")],
    out: Annotated[Path, typer.Option(help="Directory to write.")],
    format: Annotated[
        ExportFormat,
        typer.Option(help="Packed records, which data.plan of a run file may name, or Megatron-Bridge's packed Parquet."),
    ] = "records",
    workers: Annotated[int, typer.Option(min=1, help="Threads that write files; these are the same for any number.")] = 2,
) -> None:
    """Write a plan's samples in training order into a few large files, for file systems that dislike small random reads."""
    from latxa_megatron.data.export import export

    with bytes_bar("exporting") as progress:
        found = export(out, plan, layout=format, workers=workers, progress=progress)
    files = found.manifest["files"]
    size = sum(file.stat().st_size for file in out.iterdir())
    filled = sum(file["positions"] for file in files) / (len(found) * found.seq_length)
    console.print(
        f"export: {out}: {len(found):,} samples of {found.seq_length:,} positions, {filled:.2%} filled, "
        f"in {len(files):,} file{'s' * (len(files) != 1)} of {format}, {size:,} bytes",
        soft_wrap=True,
    )


@data.command("merge")
def data_merge(
    stores: Annotated[list[Path], typer.Argument(metavar="STORE STORE...", help="Token stores, in the order of the result.")],
    out: Annotated[Path, typer.Option(help="Token store to write.")],
) -> None:
    """Join stores of one tokenizer and template into one. Sources of one name become one; files are linked, not read."""
    from latxa_megatron.data.merge import merge

    store = merge(out, stores)
    print_sources(store.totals())
    console.print(f"store: {out}", soft_wrap=True)


def _named(option: str, texts: list[str]) -> dict[str, list[str]]:
    """The patterns of NAME=PATTERN, by name."""
    named: dict[str, list[str]] = {}
    for text in texts:
        name, equals, pattern = text.partition("=")
        if not (name and equals and pattern):
            raise LatxaError(f"{option} {text}: has the form NAME=GLOB")
        named.setdefault(name, []).append(pattern)
    return named


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
