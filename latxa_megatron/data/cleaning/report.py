"""report.json: what was read, kept and dropped, by source and by evaluation set."""

from collections import Counter
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import orjson

from latxa_megatron.data.cleaning.contamination import NGRAM, SHORTEST, EvaluationSets
from latxa_megatron.data.cleaning.ledger import Ledger
from latxa_megatron.data.cleaning.rules import DROPS, Rule, Rules
from latxa_megatron.files import sha256

REPORT = "report.json"


@dataclass
class Count:
    """Records and the bytes of their lines."""

    records: int = 0
    bytes: int = 0


@dataclass(frozen=True)
class SourceReport:
    """Of one source: what was read, kept and, by rule, dropped; the files it was read from and those that were written."""

    read: Count
    kept: Count
    dropped: dict[str, Count]
    inputs: list[dict[str, Any]]
    files: list[str]


@dataclass(frozen=True)
class SetReport:
    """Of one evaluation set: its items, those without a string of 8 words, and those found first in some record; its files."""

    items: int
    short: int
    found: int
    inputs: list[dict[str, Any]]


@dataclass(frozen=True)
class Report:
    """What a cleaning did. rules: those that it followed, as JSON."""

    rules: dict[str, Any]
    sources: dict[str, SourceReport]
    against: dict[str, SetReport]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def report(of: Ledger, rules: Rules, evaluation: EvaluationSets | None, files: list[str], dropped: Path) -> Report:
    """files: what was written, by task. dropped: the file with a line for each record that was dropped."""
    sources: dict[str, SourceReport] = {}
    for task, (start, end), file in zip(of.tasks, pairwise(of.starts), files, strict=True):
        name = task.source.name
        if name not in sources:
            empty = {rule.label: Count() for rule in DROPS}
            sources[name] = SourceReport(Count(), Count(), empty, _inputs(task.source.paths), [])
        found = sources[name]
        found.files.append(file)
        for rule in Rule:
            sizes = of.size[start:end][of.rule[start:end] == rule]
            for count in (found.read, found.kept if rule is Rule.KEPT else found.dropped[rule.label]):
                count.records += len(sizes)
                count.bytes += int(sizes.sum())
    return Report(_rules(rules), sources, _sets(rules, evaluation, dropped))


def _rules(rules: Rules) -> dict[str, Any]:
    return {
        "exact": rules.exact,
        "near": rules.near,
        "languages": {name: list(codes) for name, codes in rules.languages.items()},
        "min_score": rules.min_score if rules.languages else None,
        "against": [each.name for each in rules.against],
        "ngram": [SHORTEST, NGRAM] if rules.against else None,
        "on_error": "skip" if rules.skip_errors else "stop",
    }


def _sets(rules: Rules, evaluation: EvaluationSets | None, dropped: Path) -> dict[str, SetReport]:
    if evaluation is None:
        return {}
    with dropped.open("rb") as lines:
        told = (orjson.loads(line) for line in lines)
        found = {tuple(each["of"].values()) for each in told if each["rule"] == Rule.CONTAMINATION.label}
    items = Counter(item.name for item in evaluation.items)
    hit = Counter(name for name, _, _ in found)
    return {
        each.name: SetReport(items[each.name], evaluation.short[each.name], hit[each.name], _inputs(each.paths))
        for each in rules.against
    }


def _inputs(paths: tuple[Path, ...]) -> list[dict[str, Any]]:
    return [{"path": str(path), "bytes": path.stat().st_size, "sha256": sha256(path)} for path in paths]
