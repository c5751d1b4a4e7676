"""The one table of names: each Megatron tensor of a Llama, and the Hugging Face tensors whose rows it holds.

Names on the Megatron side are those in a checkpoint's files, which are the same for both layer specifications: the norms
before attention and MLP stand there under Transformer Engine's fused layers. A layer's tensors are stacked over layers.
"""

from dataclasses import dataclass
from typing import NamedTuple

from latxa_megatron.model.llama import LlamaShape


@dataclass(frozen=True)
class Row:
    """One Megatron tensor: the rows of its parts one after the other, or by key-value heads, each with its part of all of them.

    In layers, hf names have a {} for the layer.
    """

    mcore: str
    hf: tuple[str, ...]
    by_heads: bool = False

    @property
    def in_layers(self) -> bool:
        return "{}" in self.hf[0]


class Run(NamedTuple):
    """Rows [start, start + rows) of a part, which are the next ones of the Megatron tensor."""

    part: int
    start: int
    rows: int


def runs(shape: LlamaShape, row: Row) -> list[Run]:
    """What the rows of a Megatron tensor are, in order."""
    groups = shape.kv_heads if row.by_heads else 1
    sizes = [shape.tensor_shape(name)[0] // groups for name in row.hf]
    return [Run(part, group * size, size) for group in range(groups) for part, size in enumerate(sizes)]


_LAYERS = "decoder.layers."
_HF = "model.layers.{}."

_LLAMA = (
    Row("embedding.word_embeddings.weight", ("model.embed_tokens.weight",)),
    Row(_LAYERS + "self_attention.linear_qkv.layer_norm_weight", (_HF + "input_layernorm.weight",)),
    Row(_LAYERS + "self_attention.linear_qkv.weight", tuple(f"{_HF}self_attn.{x}_proj.weight" for x in "qkv"), by_heads=True),
    Row(_LAYERS + "self_attention.linear_proj.weight", (_HF + "self_attn.o_proj.weight",)),
    Row(_LAYERS + "mlp.linear_fc1.layer_norm_weight", (_HF + "post_attention_layernorm.weight",)),
    Row(_LAYERS + "mlp.linear_fc1.weight", (_HF + "mlp.gate_proj.weight", _HF + "mlp.up_proj.weight")),
    Row(_LAYERS + "mlp.linear_fc2.weight", (_HF + "mlp.down_proj.weight",)),
    Row("decoder.final_layernorm.weight", ("model.norm.weight",)),
)
_HEAD = Row("output_layer.weight", ("lm_head.weight",))


def rows(shape: LlamaShape) -> tuple[Row, ...]:
    """The rows of a model; tied models have no head of their own."""
    return _LLAMA if shape.tied else (*_LLAMA, _HEAD)
