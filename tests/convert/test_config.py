"""What is read of config.json, whichever version of transformers wrote it, is what transformers makes of it, or is refused."""

import json

import pytest
import torch
import transformers

from latxa_megatron.errors import LatxaError
from latxa_megatron.model.llama import FAMILIES, LlamaShape
from tests.tiny import LLAMA31_ROPE

CONFIG = {
    **{"model_type": "llama", "vocab_size": 128, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4},
    **{"num_attention_heads": 8, "num_key_value_heads": 4, "max_position_embeddings": 16384, "rms_norm_eps": 1e-5},
}
LLAMA31 = {"rope_theta": 500000.0, **LLAMA31_ROPE}

ROPE = {
    "transformers 5": {"rope_parameters": LLAMA31},
    "transformers 4": {"rope_theta": 500000.0, "rope_scaling": LLAMA31_ROPE},
    "both, the same": {"rope_parameters": LLAMA31, "rope_scaling": LLAMA31},
    "theta outside": {"rope_theta": 500000.0, "rope_parameters": {"rope_type": "default"}},
    "null": {"rope_theta": 500000.0, "rope_scaling": None, "rope_parameters": None},
    "nothing": {},
    "all of a head is rotated": {"partial_rotary_factor": 1.0},
}


def read(directory, config: dict) -> LlamaShape:
    (directory / "config.json").write_text(json.dumps(config))
    return LlamaShape.from_hf(directory)


@pytest.mark.parametrize("name", ROPE)
def test_rope_is_that_of_transformers(name, tmp_path):
    shape = read(tmp_path, {**CONFIG, **ROPE[name]})
    expected = transformers.AutoConfig.from_pretrained(tmp_path).rope_parameters
    assert (shape.rope_theta, shape.rope_factor) == (expected["rope_theta"], expected.get("factor"))


REFUSED = {
    "both, and different": (
        {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}, "rope_scaling": LLAMA31_ROPE},
        "rope_parameters and rope_scaling say different things",
    ),
    "half of a head is rotated": ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
    "half, inside": ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor is 0.5"),
    "by kinds of layers": ({"rope_parameters": {"full_attention": LLAMA31}}, "are not those of such a model"),
    "a list": ({"rope_scaling": [8.0]}, "are not those of such a model"),
    "an epsilon that is a word": ({"rms_norm_eps": "small"}, "a size is not a number"),
    "positions that are no whole number": ({"max_position_embeddings": 4096.5}, "of no model: max_positions is 4096.5"),
    "heads that are a word": ({"num_attention_heads": "eight", "head_dim": 8}, "of no model: heads is 'eight'"),
    "no heads": ({"num_attention_heads": 0, "head_dim": 8}, "of no model: heads is 0"),
    "a group of half a head": ({"num_attention_heads": 8, "num_key_value_heads": 16}, "of no model: 8 heads, 16 key-value heads"),
    "quantized": ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantization_config is set; quantized weights"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_clear_is_refused(name, tmp_path):
    changed, message = REFUSED[name]
    with pytest.raises(LatxaError, match=message):
        read(tmp_path, {**CONFIG, **changed})


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("unsaid", ["num_key_value_heads", "head_dim", "max_position_embeddings", "rms_norm_eps"])
def test_what_the_file_does_not_say_is_what_transformers_takes(family, unsaid, tmp_path):
    """Qwen3's heads have 128 elements then, whatever its hidden size; Mistral has 8 key-value heads."""
    config = {**CONFIG, "hidden_size": 256, "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 16}
    config.update(model_type=family, sliding_window=None, torch_dtype="float32")
    del config[unsaid]
    shape = read(tmp_path, config)
    expected = transformers.AutoConfig.from_pretrained(tmp_path)
    assert (shape.max_positions, shape.norm_eps) == (expected.max_position_embeddings, expected.rms_norm_eps)
    assert shape.kv_heads == expected.num_key_value_heads
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(expected)
    for name, parameter in model.named_parameters():
        assert shape.tensor_shape(name) == parameter.shape, name


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "window",
    [{}, {"sliding_window": 1000}, {"sliding_window": None}, {"use_sliding_window": True}, {"use_sliding_window": False}],
)
def test_the_window_of_attention_is_that_of_transformers(family, window, tmp_path):
    shape = read(tmp_path, {**CONFIG, "model_type": family, **window})
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    expected = None if family == "llama" else config.sliding_window  # Llama keeps what it does not know, and ignores it
    assert shape.max_positions == (expected or 16384)
