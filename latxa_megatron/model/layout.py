"""How a model is spread over ranks and in which numbers; checked here without megatron-core, so in a second on a login node."""

from dataclasses import dataclass

import torch

from latxa_megatron.errors import LatxaError
from latxa_megatron.model.llama import LlamaShape


@dataclass(frozen=True)
class Layout:
    """How a model is spread: tensor, pipeline, virtual pipeline and context sizes. Sequence parallelism goes with tp > 1.

    stages has the layers of each of the pp x vp stages in the model's order; without it they are equal. tp_overlap:
    tensor-parallel messages go beside the products (model/userbuffers.py).
    """

    tp: int = 1
    pp: int = 1
    vp: int = 1
    stages: tuple[int, ...] | None = None
    cp: int = 1
    tp_overlap: bool = False

    def layer_layout(self) -> list[list[str]] | None:
        """stages in megatron-core's words: the embedding in the first, the loss in the last."""
        if self.stages is None or len(self.stages) == 1:
            return None
        layout = [["decoder"] * layers for layers in self.stages]
        return [["embedding", *layout[0]], *layout[1:-1], [*layout[-1], "loss"]]


@dataclass(frozen=True)
class Precision:
    """bf16 or fp32 parameters, the type that gradients are summed in, and what Transformer Engine does in FP8.

    fp8: its recipe, "none" for no FP8. fp8_params keeps the layers' weights in FP8; fp8_head computes the output head in it; so
    many first and last layers as bf16_layers says stay out of it.
    """

    dtype: torch.dtype = torch.bfloat16
    gradients: torch.dtype = torch.float32
    fp8: str = "none"
    fp8_params: bool = False
    fp8_head: bool = False
    bf16_layers: tuple[int, int] = (0, 0)


def check_layout(shape: LlamaShape, layout: Layout) -> None:
    """Raise LatxaError for a layout that this model cannot be spread over."""
    for what, size in (
        ("attention heads", shape.heads),
        ("key-value heads", shape.kv_heads),
        ("feed-forward rows", shape.ffn),
        ("vocabulary entries", shape.vocab),
    ):
        if size % layout.tp:
            raise LatxaError(f"parallel.tp: {size} {what} do not divide by {layout.tp}; choose another tp")
    stages = layout.pp * layout.vp
    if layout.stages is not None:
        if len(layout.stages) != stages or sum(layout.stages) != shape.layers or min(layout.stages) < 0:
            raise LatxaError(
                f"parallel.stages: {list(layout.stages)} are not {stages} stages (pp x vp) of {shape.layers} layers in all"
            )
    elif shape.layers % stages:
        raise LatxaError(
            f"parallel.pp: {shape.layers} layers do not divide by {stages} stages (pp x vp); choose another pp or vp"
        )
