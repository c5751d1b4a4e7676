"""Tests of what only a GPU can run: python -m pytest -m gpu tests/gpu, on a machine with Transformer Engine."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.tiny import random_documents, write_llama, write_store


@pytest.fixture(scope="session", autouse=True)
def gpu():
    import torch

    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


@pytest.fixture(scope="module")
def one_process():
    """megatron-core laid out over this process alone, for what is no whole run; a run does so itself."""
    from latxa_megatron.model.layout import Layout
    from latxa_megatron.train.distributed import connected, spread

    with connected():
        spread(Layout(), seed=1)
        yield


@pytest.fixture(scope="session")
def run_file(tmp_path_factory):
    """A tiny Llama, which begins with an import, and packed documents."""
    from latxa_megatron.convert.importer import import_hf
    from latxa_megatron.data.mixture import Mix
    from latxa_megatron.data.packing import pack

    root = tmp_path_factory.mktemp("run")
    sizes = {"hidden_size": 256, "intermediate_size": 512, "vocab_size": 512, "num_attention_heads": 4, "num_hidden_layers": 4}
    hf = write_llama(root / "hf", **sizes)
    import_hf(hf, root / "imported")
    store = write_store(root / "store", *random_documents(600, longest=100))
    pack(root / "plan", [Mix(store, {})], seq_length=256, seed=5)
    run = {
        "name": "tiny",
        "model": {"hf": str(hf), "checkpoint": str(root / "imported")},
        "data": {"store": str(store), "plan": str(root / "plan"), "seq_length": 256},
        "optimizer": {"lr": 1e-3, "warmup": 0, "decay": "constant"},
        "checkpoint": {"every": 5},
        "train": {"steps": 8, "global_batch": 4},
        "validation": {"every": 4, "plans": {"same": str(root / "plan")}},
    }
    (root / "run.yaml").write_text(yaml.safe_dump(run))
    return root / "run.yaml"


def trained(run_file, name: str, overrides: list[str]) -> list[dict]:
    """metrics.jsonl of the run with these overrides; NAME beside the run file is its `out`."""
    from latxa_megatron.config import load_run
    from latxa_megatron.train.loop import train

    out = run_file.parent / name
    train(load_run(run_file, [f"out={out}", *overrides]))
    return _metrics(out)


def trained_on_two(run_file, name: str, overrides: list[str]) -> list[dict]:
    """The same of a run on two GPUs, as users start it."""
    out = run_file.parent / name
    command = [sys.executable, "-m", "latxa_megatron", "launch", "local", run_file, "--nproc", 2, f"out={out}", *overrides]
    done = subprocess.run([*map(str, command)], text=True, capture_output=True, check=False)
    assert not done.returncode, done.stderr[-4000:]
    return _metrics(out)


def _metrics(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
