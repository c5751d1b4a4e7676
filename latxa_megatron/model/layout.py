"""How a model is spread over ranks and in which numbers; checked here without megatron-core, so in a second on a login node."""

from dataclasses import dataclass

import torch

from latxa_megatron.errors import LatxaError
from latxa_megatron.model.llama import LlamaShape


@dataclass(frozen=True)
class Layout:
    """How a model is spread: tensor, pipeline and virtual pipeline sizes. Sequence parallelism goes with tp > 1."""

    tp: int = 1
    pp: int = 1
    vp: int = 1


@dataclass(frozen=True)
class Precision:
    """bf16 or fp32 parameters, and Transformer Engine's FP8 recipe ("none" or "tensorwise")."""

    dtype: torch.dtype = torch.bfloat16
    fp8: str = "none"


def check_layout(shape: LlamaShape, layout: Layout) -> None:
    """Raise LatxaError for a layout that this model cannot be spread over."""
    for what, size in (("attention heads", shape.heads), ("key-value heads", shape.kv_heads), ("vocabulary", shape.vocab)):
        if size % layout.tp:
            raise LatxaError(f"parallel.tp: {size} {what} do not divide by {layout.tp}; choose another tp")
    stages = layout.pp * layout.vp
    if shape.layers % stages:
        raise LatxaError(
            f"parallel.pp: {shape.layers} layers do not divide by {stages} stages (pp x vp); choose another pp or vp"
        )
