"""What the data commands print: tables of sources, lengths and exposure, what was cleaned, and samples."""

from typing import TYPE_CHECKING, Any

from rich.table import Column, Table
from rich.text import Text

from latxa_megatron.cli.terminal import console

if TYPE_CHECKING:
    from latxa_megatron.data.cleaning.report import Report
    from latxa_megatron.data.inspect import Exposure, Inspection


def print_sources(sources: dict[str, Any]) -> None:
    table = Table("source", *(Column(t, justify="right") for t in ("documents", "tokens", "trained", "share")), box=None)
    for name, totals in sources.items():
        trained = totals.trained_tokens / totals.tokens if totals.tokens else 0.0
        table.add_row(name, f"{totals.documents:,}", f"{totals.tokens:,}", f"{totals.trained_tokens:,}", f"{trained:.1%}")
    console.print(table)


def print_lengths(found: "Inspection") -> None:
    """Of each source the quantiles of its documents' lengths, and what its texts read like."""
    quantiles = {"5%": 0.05, "median": 0.5, "95%": 0.95, "longest": 1.0}
    read = ("tokens per word", "bytes per token") if found.readings else ()
    table = Table("tokens in a document", *(Column(t, justify="right") for t in (*quantiles, *read)), box=None)
    for name, lengths in found.lengths.items():
        cells = [f"{lengths.quantile(q):,}" for q in quantiles.values()]
        if read:
            reading = found.readings[name]
            cells += [f"{reading.tokens_per_word:.2f}", f"{reading.bytes_per_token:.2f}"]
        table.add_row(name, *cells)
    console.print(table)


def print_exposure(sources: dict[str, "Exposure"]) -> None:
    """Of each source the epochs, the share of all tokens that are seen, and how many documents are seen how often."""
    table = Table("source", *(Column(t, justify="right") for t in ("epochs", "of all tokens")), "documents seen", box=None)
    for name, found in sources.items():
        seen = ", ".join(f"{documents:,} x{times}" for times, documents in found.times.items())
        table.add_row(name, f"{found.epochs:.4g}", f"{found.share:.1%}", seen)
    console.print(table)


def print_sample(found: "Inspection") -> None:
    from latxa_megatron.data.samples import visible

    text = Text()
    for sample in found.samples:
        for i, document in enumerate(sample.documents):
            text.append("\n" + "─" * 20 + "\n" if i else "", style="dim")
            for piece in document.pieces:
                if piece.text is None:
                    text.append(f"\n… {piece.tokens:,} tokens are not shown …\n", style="bold")
                else:
                    text.append(visible(piece.text), style="green" if piece.trained else "dim")
    if found.samples:
        console.print("trained tokens in [green]green[/green]:")
        console.print(text)


def print_cleaned(report: "Report") -> None:
    """Records read, kept and dropped by each rule that dropped some; then what was found of each evaluation set."""
    rules = [rule for rule in next(iter(report.sources.values())).dropped if _dropped(report, rule)]
    table = Table("source", *(Column(t, justify="right") for t in ("read", "kept", *rules, "of the bytes kept")), box=None)
    for name, found in report.sources.items():
        share = found.kept.bytes / found.read.bytes if found.read.bytes else 0.0
        counts = (found.read.records, found.kept.records, *(found.dropped[rule].records for rule in rules))
        table.add_row(name, *(f"{count:,}" for count in counts), f"{share:.1%}")
    console.print(table)
    for name, items in report.against.items():
        console.print(
            f"{name}: {items.found:,} of {items.items:,} items found; {items.short:,} have no string of 8 words and can only be "
            "found with what follows in the item",
            soft_wrap=True,
        )


def _dropped(report: "Report", rule: str) -> int:
    return sum(found.dropped[rule].records for found in report.sources.values())
