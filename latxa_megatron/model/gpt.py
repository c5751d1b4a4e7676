"""GPTModel from megatron-core for a Llama shape, a parallel layout and a precision."""

from typing import Any, Literal, TypeAlias

import megatron.core
import torch
from megatron.core import parallel_state
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.utils import is_te_min_version
from packaging.version import Version

from latxa_megatron.errors import LatxaError
from latxa_megatron.model import device
from latxa_megatron.model.layers import block_spec
from latxa_megatron.model.layout import Layout, Precision, check_layout
from latxa_megatron.model.llama import LlamaShape

Recompute: TypeAlias = int | Literal["none", "selective"]
"""Activations computed again in backward: none, attention's alone, or those of so many layers of each stage."""


def transformer_config(
    shape: LlamaShape,
    layout: Layout,
    precision: Precision,
    recompute: Recompute = "none",
    *,
    deterministic: bool = False,
    cuda_graph: bool = False,
) -> TransformerConfig:
    """megatron-core's configuration: no dropout, loss summed over tokens. cuda_graph: train/graph.py records its passes."""
    gpu, te = device.on_gpu(), device.has_transformer_engine()
    if layout.tp_overlap and not te:
        raise LatxaError("parallel.tp_overlap: needs GPUs and Transformer Engine; set it to false")
    if cuda_graph and not (te and Version(megatron.core.__version__) >= Version("0.19") and is_te_min_version("2.20.0")):
        raise LatxaError(
            "train.cuda_graph: needs a GPU, megatron-core 0.19 or newer, and Transformer Engine 2.20 or newer, since older "
            "ones may free weights in FP8 that the graph goes on writing; set it to false"
        )
    interleaved = layout.vp > 1
    saved: dict[str, Any] = {}
    if recompute == "selective":
        saved = {"recompute_granularity": "selective"}
    elif recompute != "none":
        saved = {"recompute_granularity": "full", "recompute_method": "block", "recompute_num_layers": recompute}
    return TransformerConfig(
        num_layers=shape.layers,
        hidden_size=shape.hidden,
        ffn_hidden_size=shape.ffn,
        num_attention_heads=shape.heads,
        num_query_groups=shape.kv_heads,
        kv_channels=shape.head_dim,
        layernorm_epsilon=shape.norm_eps,
        normalization="RMSNorm",
        gated_linear_unit=True,
        activation_func=torch.nn.functional.silu,
        add_bias_linear=False,
        add_qkv_bias=shape.qkv_bias,
        qk_layernorm=shape.qk_norm,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        tensor_model_parallel_size=layout.tp,
        pipeline_model_parallel_size=layout.pp,
        context_parallel_size=layout.cp,
        cp_comm_type="p2p",
        virtual_pipeline_model_parallel_size=layout.vp if interleaved else None,
        pipeline_model_parallel_layout=layout.layer_layout(),
        sequence_parallel=layout.tp > 1,
        tp_comm_overlap=layout.tp_overlap,
        params_dtype=precision.dtype,
        pipeline_dtype=precision.dtype,
        bf16=precision.dtype == torch.bfloat16,
        # Before DDP is built, or data-parallel gradients are scaled wrong (Adam hides it).
        calculate_per_token_loss=True,
        # The interleaved schedule is silently wrong with batched point-to-point messages.
        overlap_p2p_comm=interleaved,
        batch_p2p_comm=not interleaved,
        # Overlapped sends over gloo may still be under way when megatron-core frees a stage's output; CUDA streams keep the
        # order. Without freeing, backward goes through torch.autograd.backward, where device.py's mode does not reach.
        deallocate_pipeline_outputs=gpu or not interleaved,
        use_cpu_initialization=not gpu,
        bias_activation_fusion=gpu,
        bias_dropout_fusion=gpu,
        apply_rope_fusion=te,
        cross_entropy_loss_fusion=te and not deterministic,
        cross_entropy_fusion_impl="te" if te else "native",
        masked_softmax_fusion=False,
        persist_layer_norm=False,
        gradient_accumulation_fusion=te,
        deterministic_mode=deterministic,
        **({"cuda_graph_impl": "full_iteration"} if cuda_graph else {}),
        **_fp8(precision),
        **saved,
    )


def _fp8(precision: Precision) -> dict[str, Any]:
    if precision.fp8 == "none":
        return {}
    if not device.has_transformer_engine():
        raise LatxaError(f"precision.fp8: {precision.fp8} needs a GPU and Transformer Engine; set it to none")
    if precision.fp8_params and Version(megatron.core.__version__) < Version("0.19"):
        raise LatxaError("precision.fp8_params: needs megatron-core 0.19 or newer, which transposes gathered weights anew")
    options: dict[str, Any] = {"fp8": "hybrid", "fp8_recipe": precision.fp8, "fp8_param": precision.fp8_params}
    if precision.fp8 == "delayed":
        options.update(fp8_amax_history_len=1024, fp8_amax_compute_algo="max")
    if any(precision.bf16_layers):
        first, last = precision.bf16_layers
        options.update(first_last_layers_bf16=True, num_layers_at_start_in_bf16=first, num_layers_at_end_in_bf16=last)
    return options


def build_model(
    shape: LlamaShape,
    layout: Layout,
    precision: Precision,
    recompute: Recompute = "none",
    *,
    deterministic: bool = False,
    cuda_graph: bool = False,
) -> list[GPTModel]:
    """This rank's model chunks: one, or layout.vp of them, on its device, with random weights.

    torch.distributed and megatron-core's parallel state must be initialized. Raises LatxaError for an impossible layout.
    """
    check_layout(shape, layout)
    config = transformer_config(shape, layout, precision, recompute, deterministic=deterministic, cuda_graph=cuda_graph)
    chunks = [_chunk(shape, config, i if layout.vp > 1 else None) for i in range(layout.vp)]
    if precision.fp8 != "none":
        from latxa_megatron.model import fp8  # needs Transformer Engine

        if precision.fp8_params:
            fp8.cast_weights_without_transpose()
        if precision.fp8_head and chunks[-1].post_process:
            fp8.replace_head(chunks[-1], shape.vocab)
    return [chunk.to(device.device()) for chunk in chunks]


def _chunk(shape: LlamaShape, config: TransformerConfig, vp_stage: int | None) -> GPTModel:
    stage: dict[str, Any] = {} if vp_stage is None else {"ignore_virtual": False, "vp_stage": vp_stage}
    return GPTModel(
        config,
        block_spec(config, vp_stage),
        vocab_size=shape.vocab,
        max_sequence_length=shape.max_positions,
        pre_process=parallel_state.is_pipeline_first_stage(**stage),
        post_process=parallel_state.is_pipeline_last_stage(**stage),
        share_embeddings_and_output_weights=shape.tied,
        position_embedding_type="rope",
        rotary_base=shape.rope_theta,
        rope_scaling=shape.rope_factor is not None,
        rope_scaling_factor=shape.rope_factor or 1.0,
        vp_stage=vp_stage,
    )
