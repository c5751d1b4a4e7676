"""A run reads an export as it reads the plan, and goes on from the one with the other."""

import json

import pytest

from latxa_megatron.data.export import export
from latxa_megatron.errors import LatxaError


def losses(tiny_run, name: str) -> list[float]:
    return [json.loads(line)["loss"] for line in (tiny_run.out(name) / "metrics.jsonl").read_text().splitlines()]


def test_a_run_from_an_export_is_that_from_its_plan(tiny_run):
    export(tiny_run.root / "export", tiny_run.root / "plan")
    other = f"data.plan={tiny_run.root / 'export'}"
    options = ["train.steps=4", "checkpoint.every=2", "train.neftune_alpha=5"]
    tiny_run.train_here("from plan", options)
    tiny_run.train_here("from export", [*options, other])
    assert losses(tiny_run, "from export") == losses(tiny_run, "from plan")
    tiny_run.train_here("from plan", ["train.steps=6", other, *options[1:]])
    assert len(losses(tiny_run, "from plan")) == 6
    with pytest.raises(LatxaError, match=r"was packed for 64"):
        tiny_run.train_here("refused", [other, "data.seq_length=32"])
