"""Imported weights give transformers' logits, in fp32, under every parallel layout."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from latxa_megatron.convert.importer import import_hf
from tests.tiny import LLAMA31_ROPE, load_llama, write_llama

LAYOUTS = [{"tp": 1, "pp": 1}, {"tp": 2, "pp": 1}, {"tp": 1, "pp": 2}, {"tp": 2, "pp": 2}]

SMALL = {"num_hidden_layers": 1, "hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1}
MODELS = {
    "gqa": {},
    "tied": {"tied": True},
    "wide heads": {"head_dim": 32},
    "llama 2": {"num_key_value_heads": 8},
    "llama 3.1 rope": {"rope": LLAMA31_ROPE},
    "llama 3.2": {"rope": {**LLAMA31_ROPE, "factor": 32.0}, "tied": True},
    "mistral": {"family": "Mistral", "sliding_window": 48},
    "qwen2": {"family": "Qwen2"},
    "qwen2.5, tied": {"family": "Qwen2", "tied": True},
    "qwen3": {"family": "Qwen3", "head_dim": 16},
}
LONG = {"rope": LLAMA31_ROPE, "max_position_embeddings": 16384, **SMALL}


def tokens(shape: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 128, shape)


def write_job(directory: Path, options: dict, shape: tuple[int, int]) -> Path:
    directory.mkdir()
    import_hf(write_llama(directory / "hf", **options), directory / "ckpt")
    np.save(directory / "tokens.npy", tokens(shape))
    return directory


def run(directories: list[Path], layouts: list[dict[str, int]]) -> None:
    world = max(sizes["tp"] * sizes["pp"] for sizes in layouts)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}"]
    worker = Path(__file__).parent / "logits_worker.py"
    subprocess.run([*torchrun, str(worker), json.dumps(layouts), *map(str, directories)], check=True)


@pytest.fixture(scope="module")
def jobs(tmp_path_factory) -> Path:
    """A directory for each of MODELS, with its logits under every layout, from one start of torchrun."""
    root = tmp_path_factory.mktemp("logits")
    run([write_job(root / name, options, (2, 48)) for name, options in MODELS.items()], LAYOUTS)
    return root


@pytest.mark.parametrize("name", MODELS)
def test_logits_equal_transformers_under_every_layout(name, jobs):
    with torch.no_grad():
        expected = load_llama(jobs / name / "hf")(torch.from_numpy(tokens((2, 48)))).logits.numpy()
    assert np.abs(expected).max() > 1  # random, but not flat
    for i, layout in enumerate(LAYOUTS):
        assert np.abs(np.load(jobs / name / f"{i}.npy") - expected).max() <= 1e-4, layout


def test_llama31_rope_scaling_past_8192_positions(tmp_path):
    job = write_job(tmp_path / "long", LONG, (1, 8192 + 256))
    model = load_llama(job / "hf")
    model.config._attn_implementation = "sdpa"
    given = torch.from_numpy(tokens((1, 8192 + 256)))
    with torch.no_grad():
        expected = model(given).logits.numpy()
        model.model.rotary_emb.inv_freq *= 1.01  # the logits do depend on the frequencies there
        other = model(given).logits.numpy()
    run([job], LAYOUTS[:1])
    assert np.abs(np.load(job / "0.npy") - expected).max() <= 1e-4
    assert np.abs(other - expected)[:, 8192:].max() > 1e-2
