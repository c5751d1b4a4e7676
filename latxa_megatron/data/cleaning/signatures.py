"""MinHash signatures of texts, and the pairs that they make candidates, by datatrove's blocks.

A signature's hashes stand in buckets of so many that two texts whose Jaccard index is the threshold agree in a whole bucket, and
so become candidates, with a probability of at least 95%; more alike ones do with more. Whether they are near duplicates is then
computed exactly (near.py).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from datatrove.data import Document
from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupBuckets, MinhashDedupSignature
from datatrove.utils.word_tokenizers import WhitespaceTokenizer
from loguru import logger

from latxa_megatron.data.cleaning.words import Hashes, ngram_hashes, word_hashes

SHINGLE = 5
"""Words of the n-grams of which two texts are compared."""

_HASHES = 128
"""The most in a signature."""

_BLOCK = 1 << 14
"""Shingles that are hashed at a time: a signature of a text takes 1 KB for each."""

logger.disable("datatrove")


def shingles(text_words: list[str]) -> Hashes:
    """Hashes of the n-grams of a text, as often as they occur; none for a text with fewer words."""
    return ngram_hashes(word_hashes(text_words), SHINGLE)


def buckets(threshold: float) -> tuple[int, int]:
    """(buckets, hashes in each): the most hashes with which 128 in all find 95% of the pairs at the threshold."""
    for rows in range(_HASHES, 0, -1):
        count = _HASHES // rows
        if 1 - (1 - threshold**rows) ** count >= 0.95:
            return count, rows
    raise AssertionError("one hash in a bucket finds every pair")


def _config(threshold: float) -> MinhashConfig:
    count, rows = buckets(threshold)
    return MinhashConfig(n_grams=SHINGLE, num_buckets=count, hashes_per_bucket=rows)


class _Signatures(MinhashDedupSignature):
    """datatrove's first step, for texts that are words already, so its tokenizer of words is not asked; a block at a time."""

    def get_shingles(self, text: str) -> Any:
        return shingles(text.split()).reshape(-1, 1)

    def get_signature(self, shingles: Any) -> list[list[int]]:
        parts = [super(_Signatures, self).get_signature(shingles[i : i + _BLOCK]) for i in range(0, len(shingles), _BLOCK)]
        return np.array(parts, np.uint64).min(axis=0).tolist()


def write_signatures(scratch: Path, threshold: float, task: int, texts: Iterator[list[str]]) -> None:
    """Sorted signatures of a task's texts (each its words), one file for each bucket."""
    documents = (Document(" ".join(some), str(i)) for i, some in enumerate(texts))
    _Signatures(str(scratch / "signatures"), _config(threshold), language=WhitespaceTokenizer()).run(documents, rank=task)


def write_pairs(scratch: Path, threshold: float, bucket: int) -> None:
    """Merge the signatures of one bucket; each text that agrees with another is written beside the one before it."""
    config = _config(threshold)
    step = MinhashDedupBuckets(str(scratch / "signatures"), str(scratch / "pairs"), config=config, lines_to_buffer=1024)
    step.run(rank=bucket, world_size=config.num_buckets)


def read_pairs(scratch: Path, bucket: int) -> npt.NDArray[np.uint32]:
    """[pairs, 4]: (task, text, task, text), the texts by their number among those of write_signatures."""
    return np.fromfile(scratch / "pairs" / f"{bucket:05d}_00.dups", np.uint32).reshape(-1, 4)
