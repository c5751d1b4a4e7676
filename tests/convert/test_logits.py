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

MODELS = {
    "gqa": {},
    "tied": {"tied": True},
    "wide heads": {"head_dim": 32},
    "llama 3.1 rope": {"rope": LLAMA31_ROPE},
}


def megatron_logits(hf: Path, root: Path, tokens: np.ndarray, layouts: list[dict[str, int]], tmp: Path) -> list[np.ndarray]:
    np.save(tmp / "tokens.npy", tokens)
    world = max(sizes["tp"] * sizes["pp"] for sizes in layouts)
    worker = Path(__file__).parent / "logits_worker.py"
    subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}"),
            *map(str, (worker, hf, root, tmp / "tokens.npy", json.dumps(layouts), tmp)),
        ],
        check=True,
    )
    return [np.load(tmp / f"{i}.npy") for i in range(len(layouts))]


@pytest.mark.parametrize("name", MODELS)
def test_logits_equal_transformers_under_every_layout(name, tmp_path):
    hf = write_llama(tmp_path / "hf", **MODELS[name])
    import_hf(hf, tmp_path / "ckpt")
    tokens = np.random.default_rng(0).integers(0, 128, (2, 48))
    with torch.no_grad():
        expected = load_llama(hf)(torch.from_numpy(tokens)).logits.numpy()
    assert np.abs(expected).max() > 1  # random, but not flat
    for layout, found in zip(LAYOUTS, megatron_logits(hf, tmp_path / "ckpt", tokens, LAYOUTS, tmp_path), strict=True):
        assert np.abs(found - expected).max() <= 1e-4, layout


def test_llama31_rope_scaling_past_8192_positions(tmp_path):
    sizes = {"num_hidden_layers": 1, "hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1}
    hf = write_llama(tmp_path / "hf", rope=LLAMA31_ROPE, max_position_embeddings=16384, **sizes)
    import_hf(hf, tmp_path / "ckpt")
    tokens = np.random.default_rng(0).integers(0, 128, (1, 8192 + 256))
    model = load_llama(hf)
    model.config._attn_implementation = "sdpa"
    with torch.no_grad():
        expected = model(torch.from_numpy(tokens)).logits.numpy()
        model.model.rotary_emb.inv_freq *= 1.01  # the logits do depend on the frequencies there
        other = model(torch.from_numpy(tokens)).logits.numpy()
    [found] = megatron_logits(hf, tmp_path / "ckpt", tokens, LAYOUTS[:1], tmp_path)
    assert np.abs(found - expected).max() <= 1e-4
    assert np.abs(other - expected)[:, 8192:].max() > 1e-2
