"""The one table of names: each Megatron tensor of a model, and the Hugging Face tensors whose rows it holds.

Names on the Megatron side are those in a checkpoint's files, which are the same for both layer specifications: the norms
before attention and MLP stand there under Transformer Engine's fused layers. A layer's tensors are stacked over layers.
"""

from dataclasses import dataclass
from typing import NamedTuple

from latxa_megatron.model.llama import LlamaShape


@dataclass(frozen=True)
class Row:
    """One Megatron tensor: the rows of its parts one after the other, or by key-value heads, each with its part of all of them.

    In layers, hf names have a {} for the layer. padded: Megatron may have more rows than there are tokens.
    """

    mcore: str
    hf: tuple[str, ...]
    by_heads: bool = False
    padded: bool = False

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


LAYERS = "decoder.layers."
_HF = "model.layers.{}."

EMBEDDING = Row("embedding.word_embeddings.weight", ("model.embed_tokens.weight",), padded=True)
_LLAMA = (
    Row(LAYERS + "self_attention.linear_qkv.layer_norm_weight", (_HF + "input_layernorm.weight",)),
    Row(LAYERS + "self_attention.linear_qkv.weight", tuple(f"{_HF}self_attn.{x}_proj.weight" for x in "qkv"), by_heads=True),
    Row(LAYERS + "self_attention.linear_proj.weight", (_HF + "self_attn.o_proj.weight",)),
    Row(LAYERS + "mlp.linear_fc1.layer_norm_weight", (_HF + "post_attention_layernorm.weight",)),
    Row(LAYERS + "mlp.linear_fc1.weight", (_HF + "mlp.gate_proj.weight", _HF + "mlp.up_proj.weight")),
    Row(LAYERS + "mlp.linear_fc2.weight", (_HF + "mlp.down_proj.weight",)),
)
FINAL_NORM = Row("decoder.final_layernorm.weight", ("model.norm.weight",))
_QKV_BIAS = (
    Row(LAYERS + "self_attention.linear_qkv.bias", tuple(f"{_HF}self_attn.{x}_proj.bias" for x in "qkv"), by_heads=True),
)
_QK_NORM = tuple(Row(f"{LAYERS}self_attention.{x}_layernorm.weight", (f"{_HF}self_attn.{x}_norm.weight",)) for x in "qk")
HEAD = Row("output_layer.weight", ("lm_head.weight",), padded=True)


def rows(shape: LlamaShape) -> tuple[Row, ...]:
    """The rows of a model; tied models have no head of their own."""
    return (
        EMBEDDING,
        *_LLAMA,
        *(_QKV_BIAS if shape.qkv_bias else ()),
        *(_QK_NORM if shape.qk_norm else ()),
        FINAL_NORM,
        *(() if shape.tied else (HEAD,)),
    )


_STATEFUL = (
    *(f"{LAYERS}self_attention.{x}" for x in ("linear_qkv", "core_attention", "linear_proj")),
    *(f"{LAYERS}mlp.{x}" for x in ("linear_fc1", "linear_fc2")),
)
_STATEFUL_NORMS = tuple(f"{LAYERS}self_attention.{x}_layernorm" for x in "qk")


def states(shape: LlamaShape) -> list[str]:
    """The objects beside the tensors that one or the other of megatron-core's layer specifications asks a checkpoint for.

    They are of modules that have a state of their own, as Transformer Engine's for FP8; without one they are empty. A model that
    is loaded asks for all of its own, and takes no notice of others.
    """
    modules = (*_STATEFUL, *(_STATEFUL_NORMS if shape.qk_norm else ()))
    in_layers = [f"{module}._extra_state/shard_{i}_{shape.layers}" for module in modules for i in range(shape.layers)]
    return [*in_layers, f"{FINAL_NORM.mcore.removesuffix('weight')}_extra_state/shard_0_1"]


class Part(NamedTuple):
    """Where a Hugging Face tensor stands in Megatron's: in which row of the table, as which of its parts, in which layer."""

    row: Row
    part: int
    layer: int


def parts(shape: LlamaShape) -> dict[str, Part]:
    """Each Hugging Face tensor of a model; the head of a tied one, which some directories have, is its embedding."""
    found = {
        name.format(layer): Part(row, part, layer)
        for row in rows(shape)
        for layer in (range(shape.layers) if row.in_layers else [0])
        for part, name in enumerate(row.hf)
    }
    return {HEAD.hf[0]: found[EMBEDDING.hf[0]], **found}
