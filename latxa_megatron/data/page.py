"""`latxa data inspect --html`: an inspection as one file that needs nothing else, neither the network nor a script."""

from importlib.resources import files
from pathlib import Path

from latxa_megatron.data import reading
from latxa_megatron.data.charts import HEIGHT, WIDTH, Histogram, histogram, short, strip
from latxa_megatron.data.inspect import Inspection
from latxa_megatron.data.samples import visible
from latxa_megatron.files import write_atomically

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95, 0.99)

_COLOURS = 8
_DOCUMENTS = 40
"""Documents of a sample whose texts are shown."""

_EXCERPT = 220


def write_page(file: Path, found: Inspection) -> None:
    """Write an inspection as HTML; an older file is replaced at once. Every text that comes from documents is escaped."""
    write_atomically(file, page(found))


def page(found: Inspection) -> str:
    """The HTML of an inspection."""
    import jinja2

    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    environment.filters |= {
        "short": short,
        "visible": visible,
        "excerpt": _excerpt,
        "number": lambda n: f"{n:,}",
        "percent": _percent,
    }
    template = environment.from_string(files("latxa_megatron.data").joinpath("page.html.jinja").read_text(encoding="utf-8"))
    names = list(found.sources)
    tokens = sum(totals.tokens for totals in found.sources.values())
    return template.render(
        found=found,
        name=found.path.resolve().name,
        tokens=tokens,
        trained=sum(totals.trained_tokens for totals in found.sources.values()) / max(tokens, 1),
        documents=sum(totals.documents for totals in found.sources.values()),
        colour={name: i % _COLOURS for i, name in enumerate(names)},
        histograms=_histograms(found),
        quantiles=QUANTILES,
        strips=[strip(sample) for sample in found.samples],
        most_documents=_DOCUMENTS,
        plot=(WIDTH, HEIGHT),
        reading=reading,
    )


def _histograms(found: Inspection) -> dict[str, Histogram]:
    if not found.lengths:
        return {}
    shortest = int(min(lengths.values[0] for lengths in found.lengths.values()))
    longest = int(max(lengths.values[-1] for lengths in found.lengths.values()))
    seq_length = found.plan.seq_length if found.plan else None
    return {name: histogram(lengths, shortest, longest, seq_length) for name, lengths in found.lengths.items()}


def _excerpt(text: str) -> str:
    """The beginning of a text, on one line."""
    line = " ".join(visible(text[: 4 * _EXCERPT]).split())
    return line if len(line) <= _EXCERPT else line[:_EXCERPT].rstrip() + " …"


def _percent(share: float, digits: int = 1) -> str:
    return f"{share:.{digits}%}"
