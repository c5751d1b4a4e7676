"""Samples of a store or a plan as a person reads them: each document's text, and which of it is trained."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from latxa_megatron.data.documents import Document, Part, Place, by_source, drawn, read
from latxa_megatron.data.plan import PackPlan
from latxa_megatron.data.store import TokenStore
from latxa_megatron.data.tokenizer import Tokenizer


@dataclass(frozen=True)
class Piece:
    """A run of tokens, decoded, that are all trained or all not; or, with text None, so many tokens that are not shown."""

    text: str | None
    trained: bool
    tokens: int


@dataclass(frozen=True)
class Shown:
    """A document, or the part [start, start + tokens) of one that a sample of a plan has. length: of the whole document."""

    place: Place
    start: int
    tokens: int
    length: int
    pieces: list[Piece]
    spans: list[tuple[int, int]]
    """Tokens of the part that are trained, as [start, end)."""


@dataclass(frozen=True)
class Sample:
    """number: of the document in its store, or of the plan's sample. tokens: its documents' and those that are empty room."""

    number: int
    documents: list[Shown]
    empty: int


_PICTURES = {i: 0x2400 + i for i in range(32) if chr(i) not in "\t\n"} | {0x7F: 0x2421} | dict.fromkeys(range(0x80, 0xA0), 0xFFFD)


def visible(text: str) -> str:
    """A text for a terminal or a page: control characters, which could steer it, are replaced by their pictures."""
    return text.translate(_PICTURES)


def of_store(store: TokenStore, number: int, tokenizer: Tokenizer, most: int | None = None) -> Sample:
    """Document `number` of a store. most: of a longer document, about so many tokens of its beginning and end."""
    first = 0
    for info, shard in zip(store.shard_infos, store.shards, strict=True):
        if number < first + len(shard):
            part = Part(store.directory, first, shard)
            return Sample(number, [_shown(tokenizer, read(info.source, part, number - first), most=most)], 0)
        first += len(shard)
    raise IndexError(f"document {number} of a store with {first}")


def drawn_of_store(store: TokenStore, each: int, tokenizer: Tokenizer, most: int | None = None) -> list[Sample]:
    """The first documents of every source's fixed sample."""
    return [
        Sample(document.place.number, [_shown(tokenizer, document, most=most)], 0)
        for source, parts in by_source([store]).items()
        for document in drawn(source, parts, each)
    ]


def of_plan(plan: PackPlan, number: int, tokenizer: Tokenizer, most: int | None = None) -> Sample:
    """Sample `number` of a plan. Of each part of a document the first token is no label, so it is not trained."""
    shown = []
    for store, shard, document, start, length in plan.slices_of(number).tolist():
        of = plan.stores[store]
        first = sum(info.documents for info in of.shard_infos[:shard])
        whole = read(of.shard_infos[shard].source, Part(of.directory, first, of.shards[shard]), document)
        shown.append(_shown(tokenizer, whole, start, length, labels=True, most=most))
    return Sample(number, shown, plan.seq_length - sum(document.tokens - 1 for document in shown))


def _shown(
    tokenizer: Tokenizer,
    document: Document,
    start: int = 0,
    tokens: int | None = None,
    *,
    labels: bool = False,
    most: int | None = None,
) -> Shown:
    end = len(document.tokens) if tokens is None else start + tokens
    ids, trained = document.tokens[start:end], document.trained[start:end].copy()
    trained[: 1 if labels else 0] = False
    borders = np.flatnonzero(np.diff(trained)) + 1
    runs = [0, *borders.tolist(), len(ids)]
    spans = [(a, b) for a, b in pairwise(runs) if b > a and trained[a]]
    cut = (len(ids), len(ids)) if most is None or len(ids) <= most else (most * 3 // 4, len(ids) - most // 4)
    at = sorted({*runs, *cut})
    pieces = []
    for a, b in pairwise(at):
        if a < cut[0] or a >= cut[1]:
            pieces.append(Piece(tokenizer.decode(ids[a:b].tolist()), bool(trained[a]), b - a))
        elif a == cut[0]:
            pieces.append(Piece(None, False, cut[1] - cut[0]))
    return Shown(document.place, start, len(ids), len(document.tokens), pieces, spans)
