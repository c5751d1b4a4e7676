"""The words of a text as texts are compared by, and hashes of their n-grams.

datatrove's normalization: lower case, no punctuation, no diacritics; numbers stay as they are, since questions of an evaluation
set often differ in nothing else. A word is what stands between spaces, so a script that is written without spaces has long ones.
"""

from functools import cache, lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

Hashes = npt.NDArray[np.uint64]

_FACTOR = np.uint64(0x9E3779B97F4A7C15)


def words(text: str) -> list[str]:
    """The normalized words of a text, in order."""
    from datatrove.utils.text import simplify_text

    some = simplify_text(text, _steps()[0]).split()
    if "".join(some).isascii():
        return some
    plain = (word if word.isascii() else _without_diacritics(word) for word in some)
    return [word for word in plain if word]


@lru_cache(1 << 16)
def _without_diacritics(word: str) -> str:
    """datatrove takes a microsecond for each letter of this last step, and few words need it."""
    from datatrove.utils.text import simplify_text

    return simplify_text(word, _steps()[1])


@cache
def _steps() -> tuple[Any, Any]:
    """All steps but the last, and the last."""
    from datatrove.utils.text import TextNormConfig

    first = TextNormConfig(norm_unicode_diacritics=False, norm_numbers=False)
    last = TextNormConfig(lowercase=False, norm_whitespace=False, remove_punctuation=False, norm_numbers=False)
    return first, last


def word_hashes(some: list[str]) -> Hashes:
    """[words]: xxHash of each word."""
    import xxhash

    return np.fromiter(map(xxhash.xxh64_intdigest, " ".join(some).encode().split()), np.uint64, len(some))


def ngram_hashes(hashes: Hashes, n: int) -> Hashes:
    """[max(0, words - n + 1)]: of each n words that follow each other, a polynomial of their hashes modulo 2^64."""
    count = max(0, len(hashes) - n + 1)
    found = np.zeros(count, np.uint64)
    for k in range(n):
        found *= _FACTOR
        found += hashes[k : k + count]
    return found
