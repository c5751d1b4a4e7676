"""Seconds of an optimizer step: products, attention, work bound by memory, messages, the pipeline's bubble, the optimizer.

Products run at the rate that gpus.yaml has. Work bound by memory is counted in passes over what a layer keeps for backward:
10.7 in bf16 and 18.9 with FP8's casts; 10 bytes for each logit; 75 bytes a parameter in the optimizer. These four were fitted to
runs on one H200 (docs/plan.md). Six of ten messages over tp are waited for; those over dp are overlapped with the last
microbatch's backward; those over cp are overlapped with attention.
"""

from dataclasses import dataclass, fields

from latxa_megatron.model.layout import Layout, Precision
from latxa_megatron.model.llama import LlamaShape
from latxa_megatron.plan.gpus import REACHED, Gpu
from latxa_megatron.plan.stages import Stage, layer_bytes
from latxa_megatron.sections import TrainSection

_PASSES = {False: 10.7, True: 18.9}
_PER_LOGIT, _PER_PARAMETER = 10, 75
_MESSAGES = 6
"""Gathers and scatters of a layer over tp that products wait for: four forward, two backward. Transformer Engine runs the other
four of backward beside products."""
_RING = 3
"""Times that a layer's keys and values go round over cp: forward, backward, and backward their gradients."""
_FORWARD = 1 / 3


@dataclass(frozen=True)
class Seconds:
    """Of a step, by kind of work, on the slowest stage."""

    products: float
    attention: float
    memory_bound: float
    tp_messages: float
    cp_messages: float
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

    Ranks are laid out tp, cp, dp, pp as megatron-core does: groups that fill no more than a node go by its links.
    """
    microbatches = train.global_batch // (dp * train.micro_batch)
    own = train.micro_batch * positions / layout.cp
    found = [_microbatch(stage, shape, layout, precision, train, own, document, gpu, node) for stage in pipeline]
    slowest = max(range(len(found)), key=lambda index: sum(found[index]))
    one, stage = found[slowest], pipeline[slowest]
    bandwidth, shards = gpu.bandwidth * 1e12, dp * layout.cp
    bubble = sum(one) * (layout.pp - 1) / layout.vp
    optimizer = _PER_PARAMETER * stage.parameters / shards / bandwidth
    link = _link(gpu, layout.tp * layout.cp * dp, node)
    size = 2 if str(precision.gradients) == "torch.bfloat16" else 4
    sent = (size + 2) * stage.parameters * (shards - 1) / shards / link
    exposed = max(0.0, sent - sum(one) * (1 - _FORWARD)) if shards > 1 else 0.0
    products, attention, memory_bound, over_tp, over_cp = (microbatches * term for term in one)
    return Seconds(products, attention, memory_bound, over_tp, over_cp, bubble, exposed, optimizer)


def _link(gpu: Gpu, ranks: int, node: int) -> float:
    """Bytes per second between ranks that follow each other."""
    return (gpu.link if ranks <= node else gpu.network) * 1e9 * REACHED


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
) -> tuple[float, float, float, float, float]:
    """Products, attention, work bound by memory, and tp's and cp's messages of one microbatch, forward and backward."""
    in_fp8 = precision.fp8 != "none" and gpu.fp8 is not None
    layer_rate = (gpu.fp8 if in_fp8 and gpu.fp8 else gpu.bf16) * 1e12
    head_rate = (gpu.fp8 if precision.fp8_head and gpu.fp8 else gpu.bf16) * 1e12
    layers = stage.layers + stage.recomputed(train.recompute) * _FORWARD
    products = 6 * positions * (layers * stage.layer_parameters / layer_rate + stage.head / head_rate)
    heads = shape.heads * shape.head_dim / layout.tp
    attention_layers = layers if train.recompute != "selective" else stage.layers * (1 + _FORWARD)
    attention = 6 * attention_layers * heads * positions * document / (gpu.attention * 1e12)
    bandwidth = gpu.bandwidth * 1e12
    kept = layer_bytes(shape, Precision()) / layout.tp
    memory_bound = (
        positions * (layers * kept * _PASSES[in_fp8] + (shape.vocab / layout.tp * _PER_LOGIT if stage.head else 0)) / bandwidth
    )
    sent = positions * shape.hidden * 2 * (layout.tp - 1) / layout.tp
    over_tp = layers * _MESSAGES * sent / _link(gpu, layout.tp, node) if layout.tp > 1 else 0.0
    keys_and_values = 2 * shape.kv_heads * shape.head_dim / layout.tp * 2 * positions
    passed_on = attention_layers * _RING * (layout.cp - 1) * keys_and_values / _link(gpu, layout.tp * layout.cp, node)
    return products, attention, memory_bound, over_tp, max(0.0, passed_on - attention)
