"""What Megatron-LM reads of a checkpoint that is no tensor: the arguments of the program that wrote it, in common.pt.

With them its --use-checkpoint-args needs no word about the model on the command line.
"""

from argparse import Namespace
from pathlib import Path
from typing import Any

import torch

from latxa_megatron.convert.torch_dist_reader import TorchDistReader
from latxa_megatron.errors import LatxaError
from latxa_megatron.model.llama import LlamaShape
from latxa_megatron.train import checkpoint


def common(shape: LlamaShape, dtype: torch.dtype) -> dict[str, Any]:
    """The content of common.pt for a model's weights alone."""
    return {
        "args": arguments(shape, dtype),
        "checkpoint_version": 3.0,
        "iteration": 0,
        "content_metadata": checkpoint.CONTENT,
    }


def arguments(shape: LlamaShape, dtype: torch.dtype) -> Namespace:
    """Megatron-LM's arguments that say what a model is, by their names there."""
    return Namespace(
        num_layers=shape.layers,
        hidden_size=shape.hidden,
        ffn_hidden_size=shape.ffn,
        num_attention_heads=shape.heads,
        group_query_attention=shape.kv_heads != shape.heads,
        num_query_groups=shape.kv_heads,
        kv_channels=shape.head_dim,
        max_position_embeddings=shape.max_positions,
        position_embedding_type="rope",
        add_position_embedding=False,
        use_rotary_position_embeddings=True,
        rotary_base=shape.rope_theta,
        rotary_percent=1.0,
        rotary_interleaved=False,
        use_rope_scaling=shape.rope_factor is not None,
        rope_scaling_factor=shape.rope_factor or 1.0,
        normalization="RMSNorm",
        norm_epsilon=shape.norm_eps,
        swiglu=True,
        squared_relu=False,
        add_bias_linear=False,
        add_qkv_bias=shape.qkv_bias,
        qk_layernorm=shape.qk_norm,
        apply_layernorm_1p=False,
        apply_query_key_layer_scaling=False,
        attention_dropout=0.0,
        hidden_dropout=0.0,
        untie_embeddings_and_output_weights=not shape.tied,
        vocab_size=shape.vocab,
        padded_vocab_size=shape.vocab,
        bf16=dtype == torch.bfloat16,
        fp16=dtype == torch.float16,
        ckpt_format="torch_dist",
        no_save_optim=True,
        no_save_rng=True,
        tensor_model_parallel_size=1,
        pipeline_model_parallel_size=1,
    )


_TOLD = (  # of which the tensors tell nothing, or not all
    *("num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads", "num_query_groups", "kv_channels"),
    *("rotary_base", "use_rope_scaling", "rope_scaling_factor", "norm_epsilon"),
    *("position_embedding_type", "rotary_percent", "rotary_interleaved", "normalization", "apply_layernorm_1p"),
    *("swiglu", "squared_relu"),
)
_PLAIN = {
    "apply_residual_connection_post_layernorm": False,
    "rotary_seq_len_interpolation_factor": 1,
    "softmax_type": "vanilla",
    "qk_l2_norm": False,
    "multi_latent_attention": False,
}
"""More of which the tensors tell nothing, and which Hugging Face's models of these families are all alike in."""


def check_same(directory: Path, shape: LlamaShape) -> None:
    """Raise LatxaError where the arguments in a checkpoint, if it has any that are safe to read, are of a model of another shape.

    Of some sizes the tensors tell nothing: 8 heads of 64 are as large as 4 of 128.
    """
    there, wanted = TorchDistReader(directory).common().get("args"), arguments(shape, torch.bfloat16)
    ignored = set() if shape.rope_factor else {"rope_scaling_factor"}
    if not getattr(there, "group_query_attention", True):
        ignored.add("num_query_groups")
    for name, value in [*((name, getattr(wanted, name)) for name in _TOLD), *_PLAIN.items()]:
        known = getattr(there, name, None)
        if name not in ignored and known is not None and known != value:
            raise LatxaError(f"{directory}: was written with {name} {known}; config.json says {value}")
