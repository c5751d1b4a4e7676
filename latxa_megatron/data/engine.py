"""What turns texts into ids: Hugging Face's `tokenizers`, or a faster library where it gives the same ids.

fastokens did in all our trials. Trust is not enough for a corpus that is trained on for weeks, so prove() compares the two on the
texts at hand before a build uses it.
"""

import importlib.util
import os
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Flat = tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]
"""Ids of all texts end to end, and len(texts) + 1 offsets: those of text i are ids[offsets[i] : offsets[i + 1]]."""


class Engine(Protocol):
    name: str

    def encode(self, texts: list[str]) -> Flat:
        """Ids of texts, with nothing before or after. Control tokens in them are text if backend.encode_special_tokens."""


class Reference(Engine, Protocol):
    """A reference beside `tokenizers`. hard: texts of its own to compare on. convertible: whether merges say all that it does."""

    hard: list[str]
    convertible: bool


class HuggingFace:
    """`tokenizers`, the reference."""

    name = "tokenizers"

    def __init__(self, backend: Any) -> None:
        self._backend = backend

    def encode(self, texts: list[str]) -> Flat:
        found = [np.asarray(e.ids, np.int32) for e in self._backend.encode_batch_fast(texts, add_special_tokens=False)]
        offsets = np.cumsum([0, *map(len, found)], dtype=np.int64)
        return np.concatenate(found) if found else np.empty(0, np.int32), offsets


class Fastokens:
    """fastokens, in the calling thread. Raises ValueError for a tokenizer that it does not know.

    It would take a thread for each of up to 32 processors, whatever rayon is told. Each keeps what it met, up to 65 MB, for
    itself, and so every word is joined anew in each: with two threads a build takes a quarter more of the processors' time.
    """

    name = "fastokens"

    def __init__(self, backend: Any) -> None:
        os.environ.setdefault("FASTOKENS_BPE_THREADS", "1")  # read when the first batch is encoded
        import fastokens

        self._tokenizer = fastokens.Tokenizer.from_json_str(backend.to_str())
        self._reference = HuggingFace(backend)
        self._as_text = backend.encode_special_tokens

    def encode(self, texts: list[str]) -> Flat:
        try:
            ids, offsets = self._tokenizer.encode_batch_flat(texts, split_special_tokens=self._as_text)
        except ValueError:  # a byte that the vocabulary lacks, as SmolLM2's does some; the reference leaves it out
            return self._reference.encode(texts)
        return np.frombuffer(ids, np.int32), np.frombuffer(offsets, np.int64)


HARD = [
    "",
    " ",
    "\n\n \t\r\n",
    "elektriko elektrikoaren ELEKTRIKO",  # one library split it elsewhere
    "euskara\u00a0batua",  # and one broke here
    "n\u0303 \u00f1 e\u0301\u0300\u0323 \ufb01 \u212b",
    "\u200d\u200b\ufeff\u00ad\u2028\u2029\u0000\u0007",
    "👩‍👩‍👧‍👦🏳️‍🌈🇪🇺 𐍈 日本語 العربية हिन्दी ไทย",
    "1234567890 3.14159 10:45 2024-11-23 1.000.000,50€",
    "don't DON'T we'll WE'LL l'eau d'Azpeitia",
    "a" * 3000,
    " " * 3000 + "x",
    "<|begin_of_text|><|eot_id|><|im_start|></s><unk>",
    "if (x[i]>>2)&0xFF == y->z { return !a||b; }\n\t\t// ...",
    "https://eu.wikipedia.org/wiki/Euskara?a=1&b=%20#c",
]
"""Strings on which tokenizers have been seen to differ, or could."""


def prove(backend: Any, texts: list[str], own: Reference | None = None) -> tuple[Engine, str]:
    """The engine for a tokenizer, and in a few words why: the fast one if it is installed and agrees on HARD and on `texts`.

    own: the reference where it is not `tokenizers`.
    """
    reference: Engine = own or HuggingFace(backend)
    hard = [*HARD, *(own.hard if own else [])]
    if own and not own.convertible:
        return reference, "no merges alone say what this model does"
    if importlib.util.find_spec("fastokens") is None:
        return reference, "fastokens is not installed"
    try:
        fast = Fastokens(backend)
        if mismatch := first_mismatch(fast, reference, [*hard, *texts]):
            return reference, f"fastokens gives other ids for {mismatch!r}"
    except Exception as error:  # of a library written in Rust, which raises what it likes
        return reference, f"fastokens cannot do this tokenizer ({str(error).strip().partition(chr(10))[0]})"
    characters = sum(map(len, texts))
    return fast, f"as `{reference.name}` on {len(hard)} hard strings and {characters:,} characters of these sources"


def first_mismatch(one: Engine, other: Engine, texts: list[str]) -> str | None:
    """The first text, cut to 60 characters, that two engines encode differently."""
    (ids, offsets), (expected, borders) = one.encode(texts), other.encode(texts)
    if np.array_equal(offsets, borders) and np.array_equal(ids, expected):
        return None
    for i, text in enumerate(texts):
        if not np.array_equal(ids[offsets[i] : offsets[i + 1]], expected[borders[i] : borders[i + 1]]):
            return text[:60]
    raise AssertionError("the ids differ, and no text's do")


def inserted(ids: npt.NDArray[np.int32], at: npt.NDArray[np.int64], values: npt.NDArray[Any]) -> npt.NDArray[np.int32]:
    """ids with a value before each of the places `at`, which are in order; some times faster than numpy.insert."""
    whole = np.empty(len(ids) + len(at), np.int32)
    kept = np.ones(len(whole), bool)
    new = at + np.arange(len(at))
    kept[new] = False
    whole[new] = values
    whole[kept] = ids
    return whole
