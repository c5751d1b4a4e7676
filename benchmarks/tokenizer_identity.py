"""Whether the fast tokenizer gives the ids of the reference, on fuzzed strings, every code point and a corpus; and its speed.

    python benchmarks/tokenizer_identity.py --tokenizer models/Llama-3.1-8B --corpus 'corpus/*.jsonl' [--strings 120000]

The fuzzed strings are cut out of the corpus at random and then changed: characters of the whole of Unicode, blanks, digits,
marks, apostrophes, control tokens and hard cases are put in, doubled, taken out or changed in case. Each code point stands alone,
between letters and after a blank. Control tokens are text, as in a build. Prints what was compared and how many texts have other
ids; the speeds are of the same texts in one thread.
"""

import argparse
import glob
import json
import os
import random
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np

from latxa_megatron.data.engine import HARD, Engine, Fastokens, HuggingFace

BATCH = 4096
PIECES = [
    " ",
    "  ",
    "\n",
    "\r\n",
    "\t",
    "\u00a0",
    "\u200d",
    "\u0301",
    "\ufe0f",
    "0",
    "1234",
    "'s",
    "'LL",
    "\u2019t",
    "-",
    "...",
    "!?",
]


def texts_of(pattern: str) -> Iterator[str]:
    for file in sorted(glob.glob(pattern)):  # noqa: PTH207
        with Path(file).open(encoding="utf-8") as lines:
            yield from (text for line in lines if isinstance(text := json.loads(line).get("text"), str))


def fuzzed(corpus: list[str], draw: random.Random) -> Iterator[str]:
    while True:
        text = draw.choice(corpus)
        start = draw.randrange(len(text) + 1)
        characters = list(text[start : start + draw.randrange(1, 120)])
        for _ in range(draw.randrange(8)):
            at = draw.randrange(len(characters) + 1)
            how = draw.randrange(6)
            if how == 0:
                characters.insert(at, code_point(draw))
            elif how == 1:
                characters.insert(at, draw.choice(PIECES))
            elif how == 2:
                characters.insert(at, draw.choice(HARD)[:40])
            elif how == 3:
                characters[at : at + draw.randrange(5)] = []
            elif how == 4:
                characters[at:at] = characters[at : at + 1] * draw.randrange(1, 40)
            else:
                characters[at : at + 1] = [c.upper() if c.islower() else c.lower() for c in characters[at : at + 1]]
        yield "".join(characters)


def code_point(draw: random.Random) -> str:
    """Half of them of the first 12,000."""
    while True:
        point = draw.randrange(0x110000 if draw.random() < 0.5 else 12_000)
        if not 0xD800 <= point < 0xE000:
            return chr(point)


def code_points() -> Iterator[str]:
    for c in (chr(i) for i in range(0x110000) if not 0xD800 <= i < 0xE000):
        yield from (c, f"a{c}b", f" {c}")


def compare(texts: Iterator[str], fast: Engine, reference: Engine) -> tuple[int, int, int, float, float]:
    """Texts, tokens, texts with other ids, seconds of the fast engine and of the reference."""
    count = tokens = wrong = 0
    seconds = [0.0, 0.0]
    while batch := list(islice(texts, BATCH)):
        found = []
        for i, engine in enumerate((fast, reference)):
            began = time.perf_counter()
            found.append(engine.encode(batch))
            seconds[i] += time.perf_counter() - began
        (ids, offsets), (expected, borders) = found
        if not (np.array_equal(ids, expected) and np.array_equal(offsets, borders)):
            pairs = zip(np.split(ids, offsets[1:-1]), np.split(expected, borders[1:-1]), strict=True)
            wrong += sum(not np.array_equal(one, other) for one, other in pairs)
        count, tokens = count + len(batch), tokens + len(expected)
    return count, tokens, wrong, *seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--corpus", required=True, help="JSONL glob with 'text'")
    parser.add_argument("--strings", type=int, default=120_000)
    parser.add_argument("--seed", type=int, default=33)
    arguments = parser.parse_args()
    os.environ.update(TOKENIZERS_PARALLELISM="false", RAYON_NUM_THREADS="1")
    from transformers import AutoTokenizer

    backend = AutoTokenizer.from_pretrained(arguments.tokenizer).backend_tokenizer
    backend.encode_special_tokens = True
    print("| texts | count | tokens | with other ids | fastokens, Mtok/s | `tokenizers`, Mtok/s | ratio |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    fast, reference = Fastokens(backend), HuggingFace(backend)
    some = [text for text in islice(texts_of(arguments.corpus), 5000) if text]
    kinds = {
        "fuzzed strings": islice(fuzzed(some, random.Random(arguments.seed)), arguments.strings),
        "every code point, three ways": code_points(),
        "the corpus": texts_of(arguments.corpus),
    }
    for name, texts in kinds.items():
        count, tokens, wrong, quick, slow = compare(texts, fast, reference)
        speeds = f"{tokens / quick / 1e6:.1f} | {tokens / slow / 1e6:.2f} | {slow / quick:.0f}"
        print(f"| {name} | {count:,} | {tokens:,} | {wrong:,} | {speeds} |", flush=True)


if __name__ == "__main__":
    main()
