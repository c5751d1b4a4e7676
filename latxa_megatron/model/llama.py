"""The sizes of a model of Llama's architecture or a relative of it, read from a Hugging Face directory's config.json."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latxa_megatron.errors import LatxaError
from latxa_megatron.files import read_json

FAMILIES: dict[str, dict[str, bool]] = {
    "llama": {},  # Llama 2 to 3.3, SmolLM2, and whatever else calls itself one
    "mistral": {},
    "qwen2": {"qkv_bias": True},  # 2.5 too
    "qwen3": {"qk_norm": True},
}
"""The model_type of config.json, and what is not a Llama's in such a model."""

_UNSAID: dict[str, dict[str, Any]] = {
    "llama": {"max_position_embeddings": 2048},
    "mistral": {"max_position_embeddings": 131072, "num_key_value_heads": 8},
    "qwen2": {"max_position_embeddings": 32768, "num_key_value_heads": 32},
    "qwen3": {"max_position_embeddings": 32768, "num_key_value_heads": 32, "head_dim": 128},
}
"""What transformers takes where config.json has no such key; a null is another thing: as many as, or by the number of, heads."""


@dataclass(frozen=True)
class LlamaShape:
    """Sizes in elements. rope_factor is Llama 3.1's RoPE scaling (8 there, 32 in 3.2), None without scaling.

    max_positions is the window where attention slides: up to there it is causal attention. qkv_bias: query, key and value have a
    bias. qk_norm: queries and keys are normalized head by head.
    """

    layers: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    max_positions: int
    norm_eps: float
    rope_theta: float
    rope_factor: float | None
    tied: bool
    qkv_bias: bool = False
    qk_norm: bool = False

    @classmethod
    def from_hf(cls, directory: Path) -> "LlamaShape":
        """The shape in DIRECTORY/config.json. Raises LatxaError for a model of no family here, or with what is not supported."""
        if not directory.is_dir():
            raise LatxaError(f"{directory}: there is no such Hugging Face directory")
        file = directory / "config.json"
        config = read_json(file)
        if not isinstance(config, dict):
            raise LatxaError(f"{file}: is not the configuration of a model")
        family = config.get("model_type")
        if family not in FAMILIES:
            raise LatxaError(f"{file}: model_type is '{family}'; supported are {', '.join(FAMILIES)}")
        config = {"rms_norm_eps": 1e-6, **_UNSAID[family], **config}
        for key in ("attention_bias", "mlp_bias"):
            if config.get(key):
                raise LatxaError(f"{file}: {key} is set; a model with such biases is not supported")
        if config.get("quantization_config"):
            raise LatxaError(
                f"{file}: quantization_config is set; quantized weights are not read, take the model they were made from"
            )
        if config.get("hidden_act", "silu") != "silu":
            raise LatxaError(f"{file}: hidden_act is '{config['hidden_act']}'; only silu is supported")
        try:
            heads = config["num_attention_heads"]
            theta, factor = _rope(config, file)
            shape = cls(
                layers=config["num_hidden_layers"],
                hidden=config["hidden_size"],
                ffn=config["intermediate_size"],
                heads=heads,
                kv_heads=config.get("num_key_value_heads") or heads,
                head_dim=config.get("head_dim") or config["hidden_size"] // heads,
                vocab=config["vocab_size"],
                max_positions=_positions(config),
                norm_eps=float(config["rms_norm_eps"]),
                rope_theta=theta,
                rope_factor=factor,
                tied=config.get("tie_word_embeddings", False),
                **FAMILIES[family],
            )
        except KeyError as error:
            raise LatxaError(f"{file}: the key {error} is missing") from None
        except (TypeError, ValueError, ZeroDivisionError):
            raise LatxaError(f"{file}: a size is not a number") from None
        for name in ("layers", "hidden", "ffn", "heads", "kv_heads", "head_dim", "vocab", "max_positions"):
            size = getattr(shape, name)
            if not isinstance(size, int) or size < 1:
                raise LatxaError(f"{file}: its sizes are those of no model: {name} is {size!r}")
        if heads % shape.kv_heads:
            raise LatxaError(f"{file}: its sizes are those of no model: {heads} heads, {shape.kv_heads} key-value heads")
        return shape

    def tensor_shape(self, hf_name: str) -> tuple[int, ...]:
        """The shape that a Hugging Face tensor of this model has. Raises KeyError for a name that is none of its."""
        part, _, kind = hf_name.rpartition(".")
        part = part.rpartition(".")[2]
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        if kind == "bias":
            return {"q_proj": (queries,), "k_proj": (keys,), "v_proj": (keys,)}[part]
        return {
            "embed_tokens": (self.vocab, self.hidden),
            "lm_head": (self.vocab, self.hidden),
            "q_proj": (queries, self.hidden),
            "k_proj": (keys, self.hidden),
            "v_proj": (keys, self.hidden),
            "o_proj": (self.hidden, queries),
            "gate_proj": (self.ffn, self.hidden),
            "up_proj": (self.ffn, self.hidden),
            "down_proj": (self.hidden, self.ffn),
            "input_layernorm": (self.hidden,),
            "post_attention_layernorm": (self.hidden,),
            "norm": (self.hidden,),
            "q_norm": (self.head_dim,),
            "k_norm": (self.head_dim,),
        }[part]


def _positions(config: dict[str, Any]) -> int:
    longest: int = config["max_position_embeddings"]
    family = config["model_type"]  # Mistral's attention slides, Qwen's where it is said to, Llama's never
    slides = family == "mistral" or (family != "llama" and config.get("use_sliding_window", False))
    return min(longest, config.get("sliding_window", 4096) or longest) if slides else longest


def _rope(config: dict[str, Any], file: Path) -> tuple[float, float | None]:
    """(theta, scaling factor) from transformers 5's rope_parameters or the older rope_theta and rope_scaling.

    Of a file that has both, one version of transformers goes by the one, the next by the other.
    """
    sections = [config[key] for key in ("rope_parameters", "rope_scaling") if config.get(key)]
    found = [_rope_of(section, config, file) for section in sections or [{}]]
    if found[0] != found[-1]:
        raise LatxaError(f"{file}: rope_parameters and rope_scaling say different things; remove the one that is wrong")
    return found[0]


def _rope_of(rope: dict[str, Any], config: dict[str, Any], file: Path) -> tuple[float, float | None]:
    if not isinstance(rope, dict) or any(isinstance(value, dict) for value in rope.values()):
        raise LatxaError(f"{file}: RoPE parameters {rope} are not those of such a model")
    if (part := rope.get("partial_rotary_factor", config.get("partial_rotary_factor"))) not in (None, 1):
        raise LatxaError(f"{file}: partial_rotary_factor is {part}; only models that rotate whole heads are supported")
    theta = float(rope.get("rope_theta", config.get("rope_theta", 10000.0)))
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return theta, None
    # megatron-core has the other three numbers of Llama 3's scaling as constants
    fixed = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    if kind != "llama3" or any(rope.get(key) != value for key, value in fixed.items()):
        raise LatxaError(f"{file}: RoPE scaling {rope} is not supported; Llama 3's is")
    return theta, float(rope["factor"])
