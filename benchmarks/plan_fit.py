"""The numbers of `latxa plan` that are fitted to measured steps, fitted anew to all rows of benchmarks/gpu/plan_measured.jsonl.

    python benchmarks/plan_fit.py [--hold 0.05]

A step's seconds are a sum of parts, each in proportion to one number: one over the rates of products and of attention, the
passes of work bound by memory, what a logit and a parameter take, messages over tp, attention's pieces under cp. The fit is the
least sum of squared relative errors. Few rows say much of some numbers: each is held to what it is, as by a row that is all of
it and counts as much as --hold. Prints each number as it is and as fitted, then each row's error with both; changes nothing.
"""

import argparse
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import numpy.typing as npt
from plan_check import planned_as_measured, rows, time_counts

from latxa_megatron.plan import seconds
from latxa_megatron.plan.gpus import Gpu, find_gpu


@dataclass(frozen=True)
class Number:
    """now: as plan/seconds.py or gpus.yaml has it. times: a context in which the plan takes so many times as long for its part.

    inverse: its part of a step is in proportion to one over it.
    """

    name: str
    now: float
    times: Callable[[float], Any]
    inverse: bool = False

    def scaled(self, factor: float) -> float:
        return self.now / factor if self.inverse else self.now * factor


def numbers() -> list[Number]:
    h200 = find_gpu("h200")
    rates = [Number(f"h200 {name}", getattr(h200, name), _rate(name), inverse=True) for name in ("bf16", "fp8", "attention")]
    passes = [Number(f"passes, {'fp8' if fp8 else 'bf16'}", now, _passes(fp8)) for fp8, now in seconds._PASSES.items()]
    constants = ("_PER_LOGIT", "_PER_PARAMETER", "_MESSAGES", "_PIECES")
    return [*rates, *passes, *(Number(name, getattr(seconds, name), _constant(name)) for name in constants)]


def _rate(name: str) -> Callable[[float], Any]:
    @contextmanager
    def times(factor: float) -> Iterator[None]:
        def other(gpu: str) -> Gpu:
            found = find_gpu(gpu)
            return replace(found, **{name: getattr(found, name) / factor})

        with patch("plan_check.find_gpu", other):
            yield

    return times


def _passes(fp8: bool) -> Callable[[float], Any]:
    return lambda factor: patch.dict(seconds._PASSES, {fp8: seconds._PASSES[fp8] * factor})


def _constant(name: str) -> Callable[[float], Any]:
    return lambda factor: patch.object(seconds, name, getattr(seconds, name) * factor)


def shares(measured: list[dict[str, Any]], of: list[Number], directory: Path) -> npt.NDArray[np.float64]:
    """[rows, numbers + 1]: each number's share of the measured seconds, by the plan; last what is in proportion to none."""

    def steps() -> npt.NDArray[np.float64]:
        found = [planned_as_measured(row, directory) for row in measured]
        return np.array([each.seconds.step / row["seconds"] for each, row in zip(found, measured, strict=True)])

    now, columns = steps(), []
    for number in of:
        with number.times(2.0):
            columns.append(steps() - now)
    return np.stack([*columns, now - sum(columns)], axis=1)


def fitted(parts: npt.NDArray[np.float64], hold: float) -> npt.NDArray[np.float64]:
    """Factors for the numbers, of which each is held to 1 as by a row that is all of it and counts as much as `hold`."""
    wanted = 1 - parts[:, -1]
    held = hold * np.eye(parts.shape[1] - 1)
    found, *_ = np.linalg.lstsq(np.vstack([parts[:, :-1], held]), np.concatenate([wanted, np.full(len(held), hold)]), rcond=None)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hold", type=float, default=0.05)
    arguments = parser.parse_args()
    measured, found = [row for row in rows("plan_measured.jsonl") if time_counts(row)], numbers()
    with tempfile.TemporaryDirectory() as directory:
        parts = shares(measured, found, Path(directory))
    factors = fitted(parts, arguments.hold)
    for number, factor in zip(found, factors, strict=True):
        print(f"{number.name:16} {number.now:8.4g} -> {number.scaled(factor):8.4g}")
    now, then = parts.sum(axis=1), parts[:, :-1] @ factors + parts[:, -1]
    for row, before, after in zip(measured, now, then, strict=True):
        print(
            f"{before - 1:+6.1%} {after - 1:+6.1%}  {row['processes']} x {row['shape']}, {row['seq_length']}: {row['overrides']}"
        )


if __name__ == "__main__":
    main()
