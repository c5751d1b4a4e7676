"""Which texts hold a part of an evaluation item: 13 words that follow each other, or a whole question of 8 to 12.

13-gram overlap is GPT-3's measure of contamination (Brown et al. 2020, appendix C), and so is 8 as the least for shorter texts.
A text costs a lookup in a sorted array for each of its words and each length that some item has.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from latxa_megatron.data import sources as src
from latxa_megatron.data.cleaning.words import Hashes, ngram_hashes, word_hashes, words
from latxa_megatron.data.readers import lines
from latxa_megatron.errors import LatxaError

NGRAM, SHORTEST = 13, 8


@dataclass(frozen=True)
class Item:
    """One line of an evaluation set."""

    name: str
    path: str
    line: int


@dataclass(frozen=True)
class Match:
    item: Item
    start: int
    """The first of the text's words that the item has, too."""
    length: int


@dataclass(frozen=True)
class EvaluationSets:
    """The n-grams of evaluation items.

    ngrams: by n, their sorted hashes and of each the number of its item. short: by set, items of which no string has 8 words, so
    that they can only be found by several strings in a row.
    """

    items: list[Item]
    ngrams: dict[int, tuple[Hashes, npt.NDArray[np.int64]]]
    short: dict[str, int]

    def find(self, text_words: list[str]) -> Match | None:
        """The first place of a text, by its words, that an item has, too."""
        hashes = word_hashes(text_words)
        best: Match | None = None
        for n, (known, owners) in self.ngrams.items():
            found = ngram_hashes(hashes, n)
            at = np.minimum(np.searchsorted(known, found), len(known) - 1)
            hits = np.flatnonzero(known[at] == found)
            if hits.size and (best is None or (hits[0], -n) < (best.start, -best.length)):
                best = Match(self.items[owners[at[hits[0]]]], int(hits[0]), n)
        return best


def read_evaluation_sets(sets: tuple[src.Source, ...]) -> EvaluationSets:
    """Every string in every line counts, alone and joined to those that follow it, but not what is mostly numbers.

    Raises LatxaError with file and line for what is no JSON.
    """
    items: list[Item] = []
    owners: dict[int, dict[int, int]] = defaultdict(dict)
    short = {each.name: 0 for each in sets}
    for name, path, number, line in _lines(sets):
        strings = [words(each) for each in _strings(line, path, number)]
        for n, value in _ngrams(strings):
            owners[n].setdefault(value, len(items))
        short[name] += max(map(len, strings), default=0) < SHORTEST
        items.append(Item(name, str(path), number))
    ngrams = {}
    for n, of_hash in sorted(owners.items()):
        known = np.fromiter(of_hash, np.uint64, len(of_hash))
        order = np.argsort(known)
        ngrams[n] = known[order], np.fromiter(of_hash.values(), np.int64, len(of_hash))[order]
    return EvaluationSets(items, ngrams, short)


def _lines(sets: tuple[src.Source, ...]) -> Iterator[tuple[str, Path, int, bytes]]:
    """(set, file, number from 1, line)"""
    for each in sets:
        for path in each.paths:
            number = 0
            for chunk in src.chunks(path):
                for _, line in lines(chunk, src.MAX_LINE_BYTES):
                    number += 1
                    if line.strip():
                        yield each.name, path, number, line


def _strings(line: bytes, path: Path, number: int) -> list[str]:
    try:
        return list(_strings_of(orjson.loads(line)))
    except orjson.JSONDecodeError as error:
        raise LatxaError(f"{path}:{number}: the line is not valid JSON: {error}") from None


def _strings_of(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _strings_of(each)


def _ngrams(strings: list[list[str]]) -> Iterator[tuple[int, int]]:
    """(n, hash) of the n-grams of each string's words, of those of all strings joined, and of short last strings joined."""
    runs = [*strings, [word for each in strings for word in each]]
    tail: list[str] = []
    for each in reversed(strings):
        tail = each + tail
        if len(tail) >= NGRAM:
            break
        runs.append(tail)
    for run in runs:
        if len(run) >= SHORTEST:
            n = min(NGRAM, len(run))
            for i, value in enumerate(ngram_hashes(word_hashes(run), n)):
                if 2 * sum(word.isdigit() for word in run[i : i + n]) <= n:
                    yield n, int(value)
