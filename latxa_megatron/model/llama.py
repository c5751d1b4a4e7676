"""The sizes of a Llama-architecture model, read from a Hugging Face directory's config.json."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latxa_megatron.errors import LatxaError
from latxa_megatron.files import read_json


@dataclass(frozen=True)
class LlamaShape:
    """Sizes in elements. rope_factor is Llama 3.1's RoPE scaling (8 there, 32 in 3.2), None without scaling."""

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

    @classmethod
    def from_hf(cls, directory: Path) -> "LlamaShape":
        """The shape in DIRECTORY/config.json. Raises LatxaError for a model that is no Llama or has what is not supported."""
        if not directory.is_dir():
            raise LatxaError(f"{directory}: there is no such Hugging Face directory")
        file = directory / "config.json"
        config = read_json(file)
        if config.get("model_type") != "llama":
            raise LatxaError(f"{file}: model_type is '{config.get('model_type')}'; only 'llama' is supported")
        for key in ("attention_bias", "mlp_bias"):
            if config.get(key):
                raise LatxaError(f"{file}: {key} is set; a Llama with biases is not supported")
        try:
            heads = config["num_attention_heads"]
            theta, factor = _rope(config, file)
            return cls(
                layers=config["num_hidden_layers"],
                hidden=config["hidden_size"],
                ffn=config["intermediate_size"],
                heads=heads,
                kv_heads=config.get("num_key_value_heads") or heads,
                head_dim=config.get("head_dim") or config["hidden_size"] // heads,
                vocab=config["vocab_size"],
                max_positions=config["max_position_embeddings"],
                norm_eps=config["rms_norm_eps"],
                rope_theta=theta,
                rope_factor=factor,
                tied=config.get("tie_word_embeddings", False),
            )
        except KeyError as error:
            raise LatxaError(f"{file}: the key {error} is missing") from None

    def tensor_shape(self, hf_name: str) -> tuple[int, ...]:
        """The shape that a Hugging Face tensor of this model has. Raises KeyError for a name that is none of its."""
        part = hf_name.removesuffix(".weight").rpartition(".")[2]
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
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
        }[part]


def _rope(config: dict[str, Any], file: Path) -> tuple[float, float | None]:
    """(theta, scaling factor) from transformers 5's rope_parameters or the older rope_theta and rope_scaling."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    theta = float(rope.get("rope_theta", config.get("rope_theta", 10000.0)))
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return theta, None
    # megatron-core has the other three numbers of Llama 3's scaling as constants
    fixed = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    if kind != "llama3" or any(rope.get(key) != value for key, value in fixed.items()):
        raise LatxaError(f"{file}: RoPE scaling {rope} is not supported; Llama 3's is")
    return theta, float(rope["factor"])
