"""The fit finds the numbers that rows were made with."""

import sys
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import plan_fit
from plan_check import planned_as_measured, rows, time_counts

from latxa_megatron.plan import seconds
from latxa_megatron.plan.gpus import find_gpu


def test_it_finds_the_numbers_that_rows_were_made_with(tmp_path):
    """Attention at 0.9 of its rate, 1.5 times the passes in bf16, twice as long for a logit; of pieces no row has any."""
    made = {"h200 attention": 1 / 0.9, "passes, bf16": 1.5, "_PER_LOGIT": 2.0}
    numbers = {number.name: number for number in plan_fit.numbers()}
    measured = [row for row in rows("plan_measured.jsonl") if time_counts(row)]
    with (
        patch("plan_check.find_gpu", lambda name: replace(find_gpu(name), attention=495 * 0.9)),
        patch.dict(seconds._PASSES, {False: 10.7 * 1.5}),
        patch.object(seconds, "_PER_LOGIT", 20),
    ):
        took = [planned_as_measured(row, tmp_path).seconds.step for row in measured]
    made_rows = [{**row, "seconds": step} for row, step in zip(measured, took, strict=True)]
    parts = plan_fit.shares(made_rows, list(numbers.values()), tmp_path)
    found = dict(zip(numbers, plan_fit.fitted(parts, 1e-5), strict=True))
    assert found == pytest.approx({name: made.get(name, 1.0) for name in numbers}, rel=2e-3)
    assert numbers["h200 attention"].scaled(found["h200 attention"]) == pytest.approx(495 * 0.9, rel=2e-3)
    assert np.allclose(parts[:, :-1] @ list(found.values()) + parts[:, -1], 1, atol=1e-4)
