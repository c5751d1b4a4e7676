"""The first reading: what each record tells by itself, and the digest and signature by which it is compared with the others."""

import hashlib
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from latxa_megatron.data import sources as src
from latxa_megatron.data.cleaning.contamination import EvaluationSets
from latxa_megatron.data.cleaning.language import LanguageIdentifier
from latxa_megatron.data.cleaning.rules import Rule, Rules, text_of
from latxa_megatron.data.cleaning.words import words
from latxa_megatron.data.readers import Chunk
from latxa_megatron.data.records import Record, Skipped


@dataclass(frozen=True)
class Task:
    """Some 64 MB of a source: chunks of its files that follow each other. They become one file of the result."""

    number: int
    source: src.Source
    chunks: tuple[Chunk, ...]
    scratch: Path

    def file(self, suffix: str) -> Path:
        return self.scratch / f"{self.number:05d}.{suffix}"


@dataclass(frozen=True)
class Columns:
    """A value for each record of a task, in order.

    path: which of the source's files. offset: of its line, in bytes. size: bytes of its line. rule: a Rule. digest: [records, 2],
    the first 128 bits of its text's SHA-256.
    """

    path: npt.NDArray[np.int32]
    offset: npt.NDArray[np.int64]
    size: npt.NDArray[np.int64]
    rule: npt.NDArray[np.uint8]
    digest: npt.NDArray[np.uint64]


class Judge:
    """Says of each record by itself whether it is dropped."""

    def __init__(self, rules: Rules, evaluation: EvaluationSets | None) -> None:
        self.rules = rules
        self._evaluation = evaluation
        self._language = LanguageIdentifier() if rules.languages else None

    def read(self, task: Task) -> Columns:
        """Judge the records of a task; write why some are dropped, a line for each, and the signatures of the others."""
        columns = (array("i"), array("q"), array("q"), array("B"), array("Q"))
        with task.file("why").open("wb") as why:
            left = self._left(task, columns, why)
            if self.rules.near is None:
                for _ in left:
                    pass
            else:
                from latxa_megatron.data.cleaning.signatures import write_signatures

                write_signatures(task.scratch, self.rules.near, task.number, left)
        path, offset, size, rule, digest = (np.array(column) for column in columns)
        return Columns(path, offset, size, rule, digest.reshape(-1, 2))

    def _left(self, task: Task, columns: tuple[Any, ...], why: Any) -> Iterator[list[str]]:
        """The words of each record that is not dropped."""
        paths, offsets, sizes, rules, digests = columns
        for record in records(task, self.rules):
            rule, told, some = self._judge(record, task.source.name)
            paths.append(task.source.paths.index(record.place.path))
            offsets.append(record.place.offset)
            sizes.append(len(record.line) if isinstance(record, Record) else 0)
            rules.append(rule)
            digest = hashlib.sha256(text_of(record).encode()).digest() if isinstance(record, Record) else bytes(16)
            digests.frombytes(digest[:16])
            if rule is Rule.KEPT:
                yield some
            else:
                why.write(orjson.dumps(told) + b"\n")

    def _judge(self, record: Record | Skipped, source: str) -> tuple[Rule, dict[str, Any], list[str]]:
        """The rule, what there is to say of it, and the record's words where something needs them."""
        if isinstance(record, Skipped):
            return Rule.INVALID, {"why": record.why}, []
        text = text_of(record)
        if self._language is not None and (wanted := self.rules.languages.get(source)):
            scores = self._language.scores(text)
            score = max(scores[code] for code in wanted)
            if score < self.rules.min_score:
                return Rule.LANGUAGE, {"language": next(iter(scores)), "score": round(score, 4)}, []
        some = words(text) if self._evaluation is not None or self.rules.near is not None else []
        if self._evaluation is not None and (match := self._evaluation.find(some)):
            ngram = " ".join(some[match.start : match.start + match.length])
            of = {"set": match.item.name, "file": match.item.path, "line": match.item.line}
            return Rule.CONTAMINATION, {"of": of, "words": ngram, "score": match.length}, []
        return Rule.KEPT, {}, some


def records(task: Task, rules: Rules) -> Iterator[Record | Skipped]:
    """All records of a task, in order."""
    read = src.records_or_why if rules.skip_errors else src.records
    for chunk in task.chunks:
        yield from read(chunk, field=task.source.field)
