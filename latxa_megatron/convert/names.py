"""The one table of names: each Megatron tensor of a Llama, the Hugging Face tensors that it holds, and how.

Names on the Megatron side are those in a checkpoint's files, which are the same for both layer specifications: the norms
before attention and MLP stand there under Transformer Engine's fused layers. A layer's tensors are stacked over layers.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from latxa_megatron.model.llama import LlamaShape

Pack = Callable[[LlamaShape, list[Tensor]], Tensor]
Unpack = Callable[[LlamaShape, Tensor], list[Tensor]]


@dataclass(frozen=True)
class Row:
    """One Megatron tensor. In layers, hf names have a {} for the layer; pack and unpack are each other's inverse."""

    mcore: str
    hf: tuple[str, ...]
    pack: Pack
    unpack: Unpack

    @property
    def in_layers(self) -> bool:
        return "{}" in self.hf[0]


def _only(_: LlamaShape, tensors: list[Tensor]) -> Tensor:
    return tensors[0]


def _alone(_: LlamaShape, tensor: Tensor) -> list[Tensor]:
    return [tensor]


def _pack_qkv(shape: LlamaShape, tensors: list[Tensor]) -> Tensor:
    """[q, k, v] -> rows grouped by key-value head: the queries of the group, its key, its value."""
    groups = [t.view(shape.kv_heads, -1, t.shape[-1]) for t in tensors]
    return torch.cat(groups, dim=1).reshape(-1, tensors[0].shape[-1])


def _unpack_qkv(shape: LlamaShape, tensor: Tensor) -> list[Tensor]:
    queries = shape.heads // shape.kv_heads * shape.head_dim
    groups = tensor.view(shape.kv_heads, -1, tensor.shape[-1])
    parts = groups.split([queries, shape.head_dim, shape.head_dim], dim=1)
    return [part.reshape(-1, tensor.shape[-1]) for part in parts]


def _pack_rows(_: LlamaShape, tensors: list[Tensor]) -> Tensor:
    return torch.cat(tensors)


def _unpack_halves(_: LlamaShape, tensor: Tensor) -> list[Tensor]:
    return [half.contiguous() for half in tensor.chunk(2)]


_LAYERS = "decoder.layers."
_HF = "model.layers.{}."

_LLAMA = (
    Row("embedding.word_embeddings.weight", ("model.embed_tokens.weight",), _only, _alone),
    Row(_LAYERS + "self_attention.linear_qkv.layer_norm_weight", (_HF + "input_layernorm.weight",), _only, _alone),
    Row(
        _LAYERS + "self_attention.linear_qkv.weight",
        tuple(f"{_HF}self_attn.{x}_proj.weight" for x in "qkv"),
        _pack_qkv,
        _unpack_qkv,
    ),
    Row(_LAYERS + "self_attention.linear_proj.weight", (_HF + "self_attn.o_proj.weight",), _only, _alone),
    Row(_LAYERS + "mlp.linear_fc1.layer_norm_weight", (_HF + "post_attention_layernorm.weight",), _only, _alone),
    Row(
        _LAYERS + "mlp.linear_fc1.weight",
        (_HF + "mlp.gate_proj.weight", _HF + "mlp.up_proj.weight"),
        _pack_rows,
        _unpack_halves,
    ),
    Row(_LAYERS + "mlp.linear_fc2.weight", (_HF + "mlp.down_proj.weight",), _only, _alone),
    Row("decoder.final_layernorm.weight", ("model.norm.weight",), _only, _alone),
)
_HEAD = Row("output_layer.weight", ("lm_head.weight",), _only, _alone)


def rows(shape: LlamaShape) -> tuple[Row, ...]:
    """The rows of a model; tied models have no head of their own."""
    return _LLAMA if shape.tied else (*_LLAMA, _HEAD)
