"""The drawings of a page, as numbers for its template: a histogram of lengths, and the strip of a sample's documents."""

from dataclasses import dataclass

from latxa_megatron.data.lengths import Bar, Lengths
from latxa_megatron.data.samples import Sample

WIDTH, HEIGHT = 640.0, 150.0
"""Of a histogram's plot, in its own units."""


@dataclass(frozen=True)
class Column:
    """A bar of documents; tooltip says what it counts."""

    x: float
    y: float
    width: float
    height: float
    tooltip: str


@dataclass(frozen=True)
class Histogram:
    """columns: of documents; line: points of the tokens; ticks: (x, label) of lengths; mark: x of a sample's length."""

    columns: list[Column]
    line: str
    ticks: list[tuple[float, str]]
    mark: float | None


def histogram(lengths: Lengths, shortest: int, longest: int, seq_length: int | None) -> Histogram:
    """Shares of the documents and of the tokens by length. All histograms of one shortest and longest have one axis."""
    bars = [bar for bar in lengths.bars(longest) if bar.high > shortest]
    step = WIDTH / len(bars)
    documents, tokens = (max(getattr(bar, key) for bar in bars) for key in ("documents", "tokens"))
    columns = [
        Column(i * step + 1, HEIGHT * (1 - bar.documents / documents), step - 2, HEIGHT * bar.documents / documents, _says(bar))
        for i, bar in enumerate(bars)
    ]
    line = " ".join(f"{(i + 0.5) * step:.1f},{HEIGHT * (1 - bar.tokens / tokens):.1f}" for i, bar in enumerate(bars))
    powers = [(i * step, bar.low) for i, bar in enumerate(bars) if bar.low & (bar.low - 1) == 0]
    ticks = [(x, _binary(low)) for x, low in powers[:: -(-len(powers) // 7)]]
    mark = None
    for i, bar in enumerate(bars):
        if seq_length is not None and bar.low <= seq_length < bar.high:
            mark = (i + (seq_length - bar.low) / (bar.high - bar.low)) * step
    return Histogram(columns, line, ticks, mark)


def _binary(power: int) -> str:
    """A power of two, as 512, 4k, 1M."""
    return str(power) if power < 1 << 10 else f"{power >> 10}k" if power < 1 << 20 else f"{power >> 20}M"


def _says(bar: Bar) -> str:
    size = str(bar.low) if bar.high == bar.low + 1 else f"{bar.low:,} to {bar.high - 1:,}"
    return f"{size} tokens: {bar.documents:,} documents, {bar.tokens:,} tokens"


@dataclass(frozen=True)
class Segment:
    """A document in a strip: where it begins and how wide it is, and its trained spans the same way, in percent of the strip."""

    source: str
    x: float
    width: float
    trained: list[tuple[float, float]]
    tooltip: str


def strip(sample: Sample) -> list[Segment]:
    """A sample's documents side by side, as wide as they are long; what is left of 100 is empty room."""
    total = sum(document.tokens for document in sample.documents) + sample.empty
    segments = []
    begin = 0
    for document in sample.documents:
        spans = [((begin + a) / total * 100, (b - a) / total * 100) for a, b in document.spans]
        says = f"{document.place.source}: document {document.place.number:,}, {document.tokens:,} tokens"
        segments.append(Segment(document.place.source, begin / total * 100, document.tokens / total * 100, spans, says))
        begin += document.tokens
    return segments


def short(number: float) -> str:
    """A number in three figures: 950, 12.3k, 4.20M, 1.05B."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            scaled = number / size
            return f"{scaled:.3g}{unit}" if scaled < 999.5 else f"{scaled:.0f}{unit}"
    return f"{number:,.0f}"
