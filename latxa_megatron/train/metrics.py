"""metrics.jsonl: one JSON line for each step of a run."""

import json
import math
from pathlib import Path
from typing import Any

from latxa_megatron.files import read_json_lines, write_atomically

FILE = "metrics.jsonl"


class MetricsLog:
    """metrics.jsonl of a run directory, cut back to the steps before `start` when a run resumes there."""

    def __init__(self, out: Path, start: int) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self._path = out / FILE
        kept = [line for line in read_metrics(out) if line["step"] <= start]
        write_atomically(self._path, "".join(json.dumps(line) + "\n" for line in kept))

    def write(self, values: dict[str, Any]) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(_numbers(values)) + "\n")


def _numbers(value: Any) -> Any:
    """The same with null for what is no number: JSON has neither infinity nor NaN."""
    if isinstance(value, dict):
        return {key: _numbers(each) for key, each in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_metrics(out: Path) -> list[dict[str, Any]]:
    """The steps that a run has reported, oldest first; a line that a kill cut short is left out."""
    return read_json_lines(out / FILE)
