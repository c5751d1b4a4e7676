"""Verify passes what is the same and names what differs: a bit, a tensor, a setting, a layout that agrees with itself alone."""

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from latxa_megatron.convert import names
from latxa_megatron.convert.importer import import_hf
from latxa_megatron.convert.verify import TOLERANCE, verify
from latxa_megatron.errors import LatxaError
from latxa_megatron.model.llama import LlamaShape
from tests.data.writers import write_tokenizer
from tests.tiny import LLAMA31_ROPE, write_llama

MODELS = {
    "llama 3.1": {"rope": LLAMA31_ROPE, "max_position_embeddings": 16384, "dtype": torch.bfloat16},
    "tied": {"tied": True},
    "mistral": {"family": "Mistral", "max_shard_size": "100KB"},
    "qwen2": {"family": "Qwen2"},
    "qwen3": {"family": "Qwen3", "head_dim": 16},
}


@pytest.mark.parametrize("name", MODELS)
def test_an_import_is_its_source(name, tmp_path):
    hf = write_llama(tmp_path / "hf", **MODELS[name])
    if name == "tied":
        write_tokenizer(hf)
    import_hf(hf, tmp_path / "ckpt")
    done = []
    found = verify(hf, tmp_path / "ckpt", report=lambda *bytes_: done.append(bytes_))
    held = [tensor for path in hf.glob("*.safetensors") for tensor in load_file(path).values()]
    assert (found.tensors, found.bytes) == (len(held), sum(tensor.nbytes for tensor in held))
    assert found.tokens > 48 if name == "tied" else found.tokens == 48
    assert len(found.layers) == 4
    assert 0 < found.logits.relative < TOLERANCE / 10
    assert done[-1] == (2 * found.bytes, 2 * found.bytes)


def test_one_bit_is_found(tmp_path):
    hf = write_llama(tmp_path / "hf", dtype=torch.bfloat16)
    import_hf(hf, tmp_path / "ckpt")
    tensors = load_file(hf / "model.safetensors")
    name = "model.layers.1.self_attn.k_proj.weight"
    tensors[name].view(torch.int16)[5, 7] ^= 1
    save_file(tensors, hf / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(LatxaError, match=f"differs from {hf} in 1 values of {name}$"):
        verify(hf, tmp_path / "ckpt")
    tensors["model.norm.weight"][:3] = -tensors["model.norm.weight"][:3]
    save_file(tensors, hf / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(LatxaError, match=r"differs from .* in . values of .*, and in 1 other tensors"):
        verify(hf, tmp_path / "ckpt")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"}}, "rotary_base 50000.0; config.json says 10000.0"),
        ({"rms_norm_eps": 1e-3}, "norm_epsilon 1e-05; config.json says 0.001"),
        ({"num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 4}, "num_attention_heads 8; config.json says 16"),
        ({"num_hidden_layers": 3}, "has the tensor model.layers.3."),
        ({"tie_word_embeddings": True}, "lm_head.weight is not model.embed_tokens.weight"),
    ],
)
def test_a_configuration_that_was_changed_is_found(setting, message, tmp_path):
    hf = write_llama(tmp_path / "hf")
    import_hf(hf, tmp_path / "ckpt")
    config = json.loads((hf / "config.json").read_text())
    (hf / "config.json").write_text(json.dumps({**config, **setting}))
    with pytest.raises(LatxaError, match=message):
        verify(hf, tmp_path / "ckpt")


@pytest.mark.parametrize("family", ["Llama", "Qwen2"])
def test_a_wrong_table_is_found_by_what_the_layers_compute(family, monkeypatch, tmp_path):
    """With all queries before all keys, import and bitwise comparison agree with each other, and not with megatron-core."""
    rows = names.rows
    plain = lambda shape: tuple(dataclasses.replace(row, by_heads=False) for row in rows(shape))  # noqa: E731
    for module in ("importer", "megatron", "names", "source"):
        monkeypatch.setattr(f"latxa_megatron.convert.{module}.rows", plain)
    hf = write_llama(tmp_path / "hf", family=family)
    import_hf(hf, tmp_path / "ckpt")
    with pytest.raises(LatxaError, match="layer 0 computes something else, by"):
        verify(hf, tmp_path / "ckpt")


def test_a_setting_that_megatron_is_not_given_is_found(monkeypatch, tmp_path):
    hf = write_llama(tmp_path / "hf", rope=LLAMA31_ROPE, max_position_embeddings=16384)
    import_hf(hf, tmp_path / "ckpt")
    read = LlamaShape.from_hf
    monkeypatch.setattr(LlamaShape, "from_hf", lambda directory: dataclasses.replace(read(directory), rope_theta=60000.0))
    monkeypatch.setattr("latxa_megatron.convert.megatron_args.check_same", lambda *_: None)
    monkeypatch.setattr("latxa_megatron.convert.origin.check_same", lambda *_: None)
    with pytest.raises(LatxaError, match="layer 0 computes something else"):
        verify(hf, tmp_path / "ckpt")
