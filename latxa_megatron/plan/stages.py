"""What each pipeline rank holds of a model: the sizes from which memory and time follow."""

from dataclasses import dataclass

from latxa_megatron.model.layout import Layout, Precision
from latxa_megatron.model.llama import LlamaShape


@dataclass(frozen=True)
class Stage:
    """One pipeline rank: the layers of its chunks, the parameters on one GPU of it, and the microbatches it keeps at once.

    embedding and head count the parameters there (0 on other stages); in_flight is in microbatches of the rank's own layers.
    """

    index: int
    chunks: tuple[int, ...]
    layer_parameters: int
    embedding: int
    head: int
    in_flight: float

    @property
    def layers(self) -> int:
        return sum(self.chunks)

    def recomputed(self, recompute: int | str) -> int:
        """Layers whose activations are computed again: of each chunk the first N, as megatron-core does."""
        return sum(min(chunk, recompute) for chunk in self.chunks) if isinstance(recompute, int) else 0

    @property
    def parameters(self) -> int:
        return self.layers * self.layer_parameters + self.embedding + self.head


def layer_parameters(shape: LlamaShape) -> int:
    """Those of a layer's matrices; norms and biases, some ten thousand, are left out."""
    attention = shape.hidden * shape.head_dim * (2 * shape.heads + 2 * shape.kv_heads)
    return attention + 3 * shape.hidden * shape.ffn


def stages(shape: LlamaShape, layout: Layout, microbatches: int) -> list[Stage]:
    """The pipeline's ranks in order. layout must be one that model.layout.check_layout takes."""
    chunks = layout.stages or (shape.layers // (layout.pp * layout.vp),) * (layout.pp * layout.vp)
    rows = shape.vocab * shape.hidden // layout.tp
    found = []
    for index in range(layout.pp):
        first, last = index == 0, index == layout.pp - 1
        shared = shape.tied and first and last
        found.append(
            Stage(
                index,
                chunks[index :: layout.pp],
                layer_parameters(shape) // layout.tp,
                rows if first and not shared else 0,
                rows if last else 0,
                _in_flight(layout, index, microbatches),
            )
        )
    return found


def _in_flight(layout: Layout, index: int, microbatches: int) -> float:
    """Microbatches whose activations a rank keeps (1F1B, or interleaved by chunks; Narayanan et al., 2021)."""
    if layout.vp == 1:
        return min(microbatches, layout.pp - index)
    chunks = 2 * (layout.pp - index - 1) + (layout.vp - 1) * layout.pp + 1
    return min(microbatches, chunks / layout.vp)


def layer_bytes(shape: LlamaShape, precision: Precision) -> int:
    """What a layer keeps for backward of each position, in bytes, before it is split over tp.

    In bf16: both norms' inputs and outputs, queries, keys and values, attention's output, gate and up, their product. FP8
    products keep their inputs in FP8; attention and SwiGLU keep theirs in bf16.
    """
    h, kv, q = shape.hidden, shape.kv_heads * shape.head_dim, shape.heads * shape.head_dim
    kept = 2 * h + 2 * h + 2 * (q + 2 * kv) + 2 * q + 4 * shape.ffn
    inputs = 2 * h + shape.ffn
    return kept + (inputs + q if precision.fp8 != "none" else 2 * inputs)
