"""What FP8 needs beyond megatron-core and Transformer Engine: an output head in it, and a fast cast of updated weights.

docs/performance.md has what each brings. Importing this needs Transformer Engine.
"""

from copy import copy
from typing import Any

from megatron.core.extensions.transformer_engine import TEColumnParallelLinear
from megatron.core.fp8_utils import get_fp8_context
from megatron.core.models.gpt.gpt_model import GPTModel
from torch import Tensor
from transformer_engine.pytorch.tensor.float8_tensor import Float8Quantizer


class Fp8Head(TEColumnParallelLinear):
    """The output head as a Transformer Engine layer; megatron-core keeps it in bf16 on Hopper.

    GPTModel calls it as it calls its own head. The checkpoint key and shape are the same.
    """

    def __init__(self, *sizes: Any, **options: Any) -> None:
        super().__init__(*sizes, **options)
        # GPTModel leaves the head's empty state out of checkpoints; torch's strict load asks for it.
        self._register_load_state_dict_pre_hook(lambda loaded, prefix, *_: loaded.setdefault(f"{prefix}_extra_state"))

    def forward(self, x: Tensor, weight: Tensor | None = None, runtime_gather_output: bool | None = None) -> Any:
        """[s, b, hidden] -> ([s, b, vocabulary / tp], None)."""
        assert weight is None, "an FP8 head has its own weight"
        assert not runtime_gather_output, "its output stays split over tensor-parallel ranks"
        with get_fp8_context(self.config):
            return super().forward(x)

    def get_extra_state(self) -> None:
        """None, as the bf16 head's: no recipe that a head may have keeps a state, and the checkpoint serves both heads."""

    def set_extra_state(self, state: Any) -> None: ...


def replace_head(model: GPTModel, vocab: int) -> None:
    """Give the last pipeline stage's model an Fp8Head for its bf16 head."""
    config = copy(model.config)
    config.tp_comm_overlap = False  # userbuffers are for the products of layers
    model.output_layer = Fp8Head(
        config.hidden_size,
        vocab,
        config=config,
        init_method=config.init_method,
        gather_output=False,
        bias=False,
        skip_bias_add=False,
        is_expert=False,
    )


_update_quantized = Float8Quantizer.update_quantized


def _without_transpose(self: Float8Quantizer, src: Tensor, dst: Any, **options: Any) -> Any:
    """Float8Quantizer.update_quantized, for a tensor of one row without its transpose."""
    columnwise = self.columnwise_usage
    if src.numel() == src.shape[-1]:
        self.set_usage(columnwise=False)
    try:
        return _update_quantized(self, src, dst, **options)
    finally:
        self.set_usage(columnwise=columnwise)


def cast_weights_without_transpose() -> None:
    """Make the optimizer's cast of flat weight shards to FP8 write no transposes, which Transformer Engine 2.20 throws away.

    Its kernel for both is made for matrices; on one row of millions of elements it took a fifth of a step. The transposes that
    the layers use are made after the shards are gathered.
    """
    Float8Quantizer.update_quantized = _without_transpose
