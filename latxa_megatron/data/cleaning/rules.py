"""What a record can be dropped for, in the order in which it is asked."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum

import orjson

from latxa_megatron.data.records import Record
from latxa_megatron.data.sources import Source
from latxa_megatron.errors import LatxaError


class Rule(IntEnum):
    """Why a record is not among the cleaned ones."""

    KEPT = 0
    INVALID = 1
    LANGUAGE = 2
    CONTAMINATION = 3
    EXACT = 4
    NEAR = 5

    @property
    def label(self) -> str:
        return self.name.lower()


DROPS = [rule for rule in Rule if rule is not Rule.KEPT]


@dataclass(frozen=True)
class Rules:
    """What to drop.

    exact: what repeats the text of an earlier record. near: what shares at least so much (Jaccard index) of its 5-grams of words
    with an earlier one, or None. languages: by source, those of which a text must have one with at least min_score (a
    probability). against: evaluation sets. skip_errors: drop lines that are no record, instead of refusing them.
    """

    exact: bool = True
    near: float | None = 0.8
    languages: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    min_score: float = 0.5
    against: tuple[Source, ...] = ()
    skip_errors: bool = False

    def __post_init__(self) -> None:
        if self.near is not None and not 0.5 <= self.near <= 1:
            raise LatxaError("--near: is a Jaccard index from 0.5 to 1, or off")
        if not 0 < self.min_score <= 1:
            raise LatxaError("--min-score: is a probability above 0, and at most 1")


def text_of(record: Record) -> str:
    """What a record says: a document's text, or the contents of all turns, and their tool calls as JSON."""
    if record.text is not None:
        return record.text
    turns = ((message["content"], message.get("tool_calls")) for message in record.messages or [])
    return "\n\n".join(content + (orjson.dumps(calls).decode() if calls else "") for content, calls in turns)
