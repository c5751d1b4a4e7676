"""GPU memory of each pipeline stage at its peak, as torch counts what is allocated.

A peak is in one of two moments: in the last forward pass before a backward one, or in the optimizer's step. Terms that one
forgets, each seen in measured peaks: in the optimizer's step, for each parameter that a rank updates, 4 bytes for its gradient in
fp32, where gradients are summed in bf16, and 2 for its value in bf16, where weights are kept in FP8; the empty gradients that
products with fused accumulation hand to autograd, which stay, one for each shape of matrix.
"""

from dataclasses import InitVar, dataclass, field

import torch

from latxa_megatron.model.layout import Layout, Precision
from latxa_megatron.model.llama import LlamaShape
from latxa_megatron.plan.stages import Stage, layer_bytes
from latxa_megatron.sections import TrainSection

_GIB = 2**30
_ELSE = 0.11 * _GIB  # cuBLAS's and Transformer Engine's workspaces, RoPE, the batch
SLACK = 4.0
"""GiB on top of a peak: CUDA's context, the buffers of each communication group, and for the allocator what is left of it, which
it cannot use. Chosen, not measured."""
_CONTEXT, _GROUP = 0.6, 0.35


@dataclass(frozen=True)
class StageMemory:
    """GiB on one GPU of a stage, by term.

    peak is what torch allocates, less than the sum of its terms, since two of them never meet; needed is that and SLACK. With a
    CUDA graph they do: what its passes need stays its own.
    """

    stage: int
    weights: float
    gradients: float
    optimizer: float
    optimizer_step: float
    activations: float
    logits: float
    rest: float
    communication: float
    context: float = field(default=_CONTEXT, init=False)
    allocator: float = field(init=False)
    peak: float = field(init=False)
    needed: float = field(init=False)
    cuda_graph: InitVar[bool] = field(default=False, kw_only=True)

    def __post_init__(self, cuda_graph: bool) -> None:
        always = self.weights + self.gradients + self.optimizer + self.rest
        moments = (self.optimizer_step, self.activations + self.logits)
        peak = always + (sum(moments) if cuda_graph else max(moments))
        object.__setattr__(self, "peak", peak)
        object.__setattr__(self, "allocator", SLACK - self.context - self.communication)
        object.__setattr__(self, "needed", peak + SLACK)

    def largest(self) -> str:
        """The name of the largest term."""
        terms = {name: getattr(self, name) for name in TERMS}
        return max(terms, key=lambda name: terms[name]).replace("_", " ")


TERMS = ("weights", "gradients", "optimizer", "optimizer_step", "activations", "logits", "rest")
"""Those of a peak."""
BESIDE = ("communication", "context", "allocator")
"""Those beside it."""


def stage_memory(
    stage: Stage, shape: LlamaShape, layout: Layout, precision: Precision, train: TrainSection, seq_length: int, dp: int
) -> StageMemory:
    """dp: data-parallel ranks; the optimizer's state is split over them and over cp."""
    size = 4 if precision.dtype == torch.float32 else 2
    gradients = 4 if precision.gradients == torch.float32 else 2
    shards = dp * layout.cp
    layers = stage.layers * stage.layer_parameters
    in_fp8 = layers * max(0.0, 1 - sum(precision.bf16_layers) / shape.layers) if precision.fp8 != "none" else 0.0
    weights = size * stage.parameters + (0 if precision.fp8_params else 2) * in_fp8  # FP8: a byte for each direction
    if precision.fp8_head:
        weights += 2 * stage.head
    positions = train.micro_batch * seq_length // layout.cp
    state = (8 if size == 4 else 12) * stage.parameters / shards
    step = ((4 if gradients == 2 else 0) * stage.parameters + (2 if precision.fp8_params else 0) * in_fp8) / shards
    again = stage.recomputed_of_chunks(train.recompute)
    per_layer, checkpoint = (each * positions / layout.tp for each in (layer_bytes(shape, precision), 2 * shape.hidden))
    chunks = [(layers - n) * per_layer + n * checkpoint for layers, n in zip(stage.chunks, again, strict=True)]
    activations = stage.kept(chunks) + (per_layer if any(again) else 0)
    logits = 2 * size * positions * shape.vocab / layout.tp if stage.head else 0.0  # and their gradients
    empty = 2 * (stage.layer_parameters + stage.head)
    groups = _GROUP * _GIB * sum(ranks > 1 for ranks in (layout.tp, layout.cp, layout.pp, dp))
    terms = (weights, gradients * stage.parameters, state, step, activations, logits, empty + _ELSE, groups)
    return StageMemory(stage.index, *(term / _GIB for term in terms), cuda_graph=train.cuda_graph)
