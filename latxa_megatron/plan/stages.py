"""What each pipeline rank holds of a model: the sizes from which memory and time follow."""

from collections.abc import Sequence
from dataclasses import dataclass

from latxa_megatron.model.layout import Layout, Precision
from latxa_megatron.model.llama import LlamaShape


@dataclass(frozen=True)
class Stage:
    """One of `ranks` pipeline ranks: the layers of its chunks, and the parameters on one GPU of it.

    embedding and head count the parameters there (0 on other stages).
    """

    index: int
    ranks: int
    microbatches: int
    chunks: tuple[int, ...]
    layer_parameters: int
    embedding: int
    head: int

    @property
    def layers(self) -> int:
        return sum(self.chunks)

    def recomputed(self, recompute: int | str) -> int:
        """Layers whose activations are computed again."""
        return sum(self.recomputed_of_chunks(recompute))

    def recomputed_of_chunks(self, recompute: int | str) -> list[int]:
        """Of each chunk the first N, as megatron-core does."""
        return [min(chunk, recompute) if isinstance(recompute, int) else 0 for chunk in self.chunks]

    def kept(self, each: Sequence[float]) -> float:
        """The most that is kept for backward at once, where of a microbatch each[i] is kept in chunk i.

        1F1B, or interleaved, in which pp microbatches go through a chunk and then through the next (Narayanan et al., 2021).
        """
        vp, pp = len(self.chunks), self.ranks
        total, behind = self.microbatches * vp, pp - self.index - 1
        first = min(total, 2 * behind + (vp - 1) * pp if vp > 1 else behind)  # forward passes before the first backward one
        if len(set(each)) == 1:
            return min(total, first + 1) * each[0]
        now = most = 0.0
        for number in range(min(total, first + 2 * pp * vp)):  # it repeats itself after pp x vp
            now += each[number % (pp * vp) // pp]
            most = max(most, now)
            if number >= first:
                now -= each[vp - 1 - (number - first) % (pp * vp) // pp]
        return most

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
                layout.pp,
                microbatches,
                chunks[index :: layout.pp],
                layer_parameters(shape) // layout.tp,
                rows if first and not shared else 0,
                rows if last else 0,
            )
        )
    return found


def layer_bytes(shape: LlamaShape, precision: Precision) -> int:
    """What a layer keeps for backward of each position, in bytes, before it is split over tp.

    In bf16: both norms' inputs and outputs, queries, keys and values, attention's output, gate and up, their product. FP8
    products keep their inputs in FP8; attention and SwiGLU keep theirs in bf16.
    """
    h, kv, q = shape.hidden, shape.kv_heads * shape.head_dim, shape.heads * shape.head_dim
    kept = 2 * h + 2 * h + 2 * (q + 2 * kv) + 2 * q + 4 * shape.ffn
    inputs = 2 * h + shape.ffn
    return kept + (inputs + q if precision.fp8 != "none" else 2 * inputs)
