"""Seconds of an optimizer step: products, attention, work bound by memory, messages, the pipeline's bubble, the optimizer.

Products run at the rate that gpus.yaml has. Work bound by memory is counted in passes over what a layer keeps for backward:
10.7 in bf16 and 18.9 with FP8's casts; 10 bytes for each logit; 75 bytes a parameter in the optimizer. These four were fitted
to runs on one H200 (docs/plan.md). Messages count where nothing hides them: seven of ten over tp; those over pp where nothing is
interleaved, else while the pipeline fills and drains; gradients over dp beyond the last microbatch's backward, and weights
beyond the first one's forward; those over cp beyond attention, which is slower in the pieces that cp cuts it into. Launches:
what the CPU takes to start a microbatch's work beyond the time of that work, as of small models and short samples; none where a
CUDA graph starts it.
"""

from dataclasses import dataclass, fields

import torch

from latxa_megatron.model.layout import Layout, Precision
from latxa_megatron.model.llama import LlamaShape
from latxa_megatron.plan.gpus import REACHED, Gpu
from latxa_megatron.plan.stages import Stage, layer_bytes
from latxa_megatron.sections import TrainSection

_PASSES = {False: 10.7, True: 18.9}
_PER_LOGIT, _PER_PARAMETER = 10, 75
_MESSAGES = 7
"""Gathers and scatters of a layer over tp that its time goes by: four forward and two backward, for which products wait, and one
for the other four of backward, beside which products are slower."""
_RING = 3
"""Times that a layer's keys and values go round over cp: forward, backward, and backward their gradients."""
_PIECES = 270
"""Bytes of memory traffic, by its time, that attention in pieces costs for each position and query channel under cp. From one
comparison of bare 70B-shaped layers in FP8 on two H200s: cp 2 over 8192 positions took 8% longer than dp 2 with as much work."""
_LAUNCHES = {False: 3.0e-3, True: 4.0e-3}
"""Seconds in which the CPU starts a layer's work on a microbatch, forward and backward, in bf16 and in FP8: it takes no less.
Five sixths of what SmolLM2-135M took, whose layers compute next to nothing: 0.43 and 0.58 s for 120 (docs/gpu-results.md)."""
_FORWARD = 1 / 3


@dataclass(frozen=True)
class Seconds:
    """Of a step, by kind of work, on the slowest stage."""

    products: float
    attention: float
    memory_bound: float
    tp_messages: float
    cp_messages: float
    pp_messages: float
    launches: float
    bubble: float
    dp_messages: float
    optimizer: float

    @property
    def step(self) -> float:
        return sum(getattr(self, each.name) for each in fields(self))

    def largest(self) -> str:
        return max((each.name for each in fields(self)), key=lambda name: getattr(self, name)).replace("_", " ")


def step_seconds(
    pipeline: list[Stage],
    shape: LlamaShape,
    layout: Layout,
    precision: Precision,
    train: TrainSection,
    positions: int,
    document: float,
    dp: int,
    gpu: Gpu,
    node: int,
) -> Seconds:
    """positions: those of a sample. document: mean length of the document that a position is in. node: GPUs of one.

    Ranks are laid out tp, cp, dp, pp as megatron-core does.
    """
    microbatches = train.global_batch // (dp * train.micro_batch)
    own = train.micro_batch * positions / layout.cp
    found = [_microbatch(stage, shape, layout, precision, train, own, document, gpu, node) for stage in pipeline]
    times = [sum(each) for each in found]
    slowest = max(range(len(found)), key=lambda index: times[index])
    one, stage = found[slowest], pipeline[slowest]
    shards = dp * layout.cp
    optimizer = _PER_PARAMETER * stage.parameters / shards / (gpu.bandwidth * 1e12)
    products, attention, memory_bound, over_tp, over_cp, launches = (microbatches * term for term in one)
    return Seconds(
        products,
        attention,
        memory_bound,
        over_tp,
        over_cp,
        _over_pp(shape, layout, own, microbatches, shards, gpu, node),
        launches,
        (sum(times) - times[slowest]) / layout.vp,  # while the pipeline fills and drains, the slowest stage waits for the others
        _over_dp(stage, precision, times[slowest], layout.tp, shards, gpu, node, ahead=not train.cuda_graph),
        optimizer,
    )


def _over_pp(shape: LlamaShape, layout: Layout, positions: float, microbatches: int, shards: int, gpu: Gpu, node: int) -> float:
    """A stage's output on, and its gradient back. Interleaved, they are sent beside the computation of other chunks."""
    if layout.pp == 1:
        return 0.0
    one = 2 * positions * shape.hidden / layout.tp / _between(gpu, layout.tp * shards * layout.pp, node)
    return 2 * one * (layout.pp - 1 + (microbatches if layout.vp == 1 else 0))


def _over_dp(stage: Stage, precision: Precision, one: float, tp: int, shards: int, gpu: Gpu, node: int, *, ahead: bool) -> float:
    """Gradients beyond the last microbatch's backward, and updated weights beyond the first one's forward; one: of both.

    ahead: whether that forward begins before all weights have come (train/optimizer.py).
    """
    if shards == 1:
        return 0.0
    each = stage.parameters * (shards - 1) / shards / _among(gpu, shards, tp, node)
    gradients = (4 if precision.gradients == torch.float32 else 2) * each
    weights = (4 if precision.dtype == torch.float32 else 2) * each
    return max(0.0, gradients - one * (1 - _FORWARD)) + max(0.0, weights - ahead * one * _FORWARD)


def _between(gpu: Gpu, ranks: int, node: int) -> float:
    """Bytes per second that a rank sends to the next one of a group which spans so many ranks."""
    return (gpu.link if ranks <= node else gpu.network) * 1e9 * REACHED


def _among(gpu: Gpu, ranks: int, apart: int, node: int) -> float:
    """Bytes per second of gathers and scatters in a group, by rank (NCCL's bus bandwidth).

    Its ranks are `apart` from each other; those of it that share a node have a way of their own to the next one each.
    """
    ways = max(1, node // apart)
    return (gpu.link if ranks * apart <= node else min(gpu.link, ways * gpu.network)) * 1e9 * REACHED


def _microbatch(
    stage: Stage,
    shape: LlamaShape,
    layout: Layout,
    precision: Precision,
    train: TrainSection,
    positions: float,
    document: float,
    gpu: Gpu,
    node: int,
) -> tuple[float, float, float, float, float, float]:
    """Products, attention, work bound by memory, tp's and cp's messages of one microbatch, forward and backward; last by how much
    longer the CPU takes to start all that."""
    in_fp8 = precision.fp8 != "none" and gpu.fp8 is not None
    layer_rate = (gpu.fp8 if in_fp8 and gpu.fp8 else gpu.bf16) * 1e12
    head_rate = (gpu.fp8 if precision.fp8_head and gpu.fp8 else gpu.bf16) * 1e12
    layers = stage.layers + stage.recomputed(train.recompute) * _FORWARD
    products = 6 * positions * (layers * stage.layer_parameters / layer_rate + stage.head / head_rate)
    heads = shape.heads * shape.head_dim / layout.tp
    attention_layers = layers if train.recompute != "selective" else stage.layers * (1 + _FORWARD)
    bandwidth = gpu.bandwidth * 1e12
    pieces = _PIECES / bandwidth if layout.cp > 1 else 0.0
    attention = attention_layers * heads * positions * (6 * document / (gpu.attention * 1e12) + pieces)
    kept = layer_bytes(shape, Precision()) / layout.tp
    memory_bound = (
        positions * (layers * kept * _PASSES[in_fp8] + (shape.vocab / layout.tp * _PER_LOGIT if stage.head else 0)) / bandwidth
    )
    sent = positions * shape.hidden * 2 * (layout.tp - 1) / layout.tp
    over_tp = layers * _MESSAGES * sent / _among(gpu, layout.tp, 1, node)
    keys_and_values = 2 * shape.kv_heads * shape.head_dim / layout.tp * 2 * positions
    passed_on = attention_layers * _RING * (layout.cp - 1) * keys_and_values / _between(gpu, layout.tp * layout.cp, node)
    over_cp = max(0.0, passed_on - attention)
    started = 0.0 if train.cuda_graph else layers * _LAUNCHES[in_fp8]
    launches = max(0.0, started - (products + attention + memory_bound + over_tp + over_cp))
    return products, attention, memory_bound, over_tp, over_cp, launches
