"""The same layers on plain megatron-core and Transformer Engine, with nothing around them: what our loop is held against.

    python benchmarks/gpu/bare_layers.py --hf out/70B-shaped-4-layers --plan out/plan --fp8 tensorwise

One GPU. The packed samples lie on the GPU before the first step; there is no reading, no reporting and no schedule. Prints one
JSON line: seconds a step (median after the second) and model TFLOP/s.
"""

import argparse
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist


def build(hf: dict[str, Any], fp8: str, *, op_fuser: bool) -> tuple[Any, Any]:
    from megatron.core import parallel_state, tensor_parallel
    from megatron.core.distributed import (
        DistributedDataParallel,
        DistributedDataParallelConfig,
        finalize_model_grads,
    )
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_with_transformer_engine_spec
    from megatron.core.models.gpt.gpt_model import GPTModel
    from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
    from megatron.core.transformer.module import Float16Module
    from megatron.core.transformer.transformer_config import TransformerConfig

    parallel_state.initialize_model_parallel()
    tensor_parallel.model_parallel_cuda_manual_seed(1)
    options: dict[str, Any] = {} if fp8 == "none" else {"fp8": "hybrid", "fp8_recipe": fp8, "fp8_param": True}
    config = TransformerConfig(
        num_layers=hf["num_hidden_layers"],
        hidden_size=hf["hidden_size"],
        ffn_hidden_size=hf["intermediate_size"],
        num_attention_heads=hf["num_attention_heads"],
        num_query_groups=hf["num_key_value_heads"],
        gated_linear_unit=True,
        activation_func=torch.nn.functional.silu,
        add_bias_linear=False,
        normalization="RMSNorm",
        hidden_dropout=0.0,
        attention_dropout=0.0,
        bf16=True,
        params_dtype=torch.bfloat16,
        bias_activation_fusion=True,
        bias_dropout_fusion=True,
        apply_rope_fusion=True,
        gradient_accumulation_fusion=True,
        cross_entropy_loss_fusion=True,
        cross_entropy_fusion_impl="te",
        use_transformer_engine_op_fuser=op_fuser,
        **options,
    )
    model = GPTModel(
        config,
        get_gpt_layer_with_transformer_engine_spec(use_te_op_fuser=op_fuser),
        vocab_size=hf["vocab_size"],
        max_sequence_length=hf["max_position_embeddings"],
        position_embedding_type="rope",
        rotary_base=500000,
        share_embeddings_and_output_weights=False,
    )
    ddp = DistributedDataParallelConfig(use_distributed_optimizer=True, grad_reduce_in_fp32=False, fp8_param_gather=bool(options))
    model = DistributedDataParallel(config, ddp, Float16Module(config, model.cuda()))
    adam = {"optimizer": "adam", "lr": 1e-5, "clip_grad": 1.0, "adam_beta2": 0.95, "weight_decay": 0.1}
    optimizer = get_megatron_optimizer(
        OptimizerConfig(bf16=True, params_dtype=torch.bfloat16, use_distributed_optimizer=True, **adam), [model]
    )
    config.finalize_model_grads_func = finalize_model_grads
    config.grad_scale_func = optimizer.scale_loss
    return model, optimizer


def inputs(plan: Path, samples: int) -> tuple[list[dict[str, Any]], Any, int]:
    """GPTModel's arguments for the first samples of a plan, on the GPU; their documents' positions; the sequence length."""
    from megatron.core.packed_seq_params import PackedSeqParams

    from latxa_megatron.data.dataset import PackedDataset

    dataset, found = PackedDataset(plan), []
    for sample in range(samples):
        batch = dataset.batch([sample])
        borders = batch.cu_seqlens.cuda()
        longest = int(batch.cu_seqlens.diff().max())
        packed = PackedSeqParams("thd", borders, borders, max_seqlen_q=longest, max_seqlen_kv=longest)
        tensors = {"input_ids": batch.tokens, "position_ids": batch.position_ids, "labels": batch.labels}
        found.append({**{k: v.cuda() for k, v in tensors.items()}, "attention_mask": None, "packed_seq_params": packed})
    return found, dataset.document_positions(0, samples), dataset.seq_length


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hf", type=Path, required=True)
    parser.add_argument("--plan", type=Path, required=True)
    parser.add_argument("--fp8", default="none", choices=["none", "tensorwise"])
    parser.add_argument("--op-fuser", action="store_true", help="Transformer Engine's fused operations for the feed-forward half")
    parser.add_argument("--microbatches", type=int, default=16)
    parser.add_argument("--steps", type=int, default=6)
    arguments = parser.parse_args()
    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")
    dist.init_process_group("nccl", store=dist.HashStore(), rank=0, world_size=1, device_id=torch.device("cuda", 0))
    from latxa_megatron.model import device
    from latxa_megatron.model.llama import LlamaShape
    from latxa_megatron.train.flops import training_flops

    device.prepare()  # stands in for apex, which megatron-core looks for when it is imported
    from megatron.core.pipeline_parallel import get_forward_backward_func

    hf = json.loads((arguments.hf / "config.json").read_text())
    model, optimizer = build(hf, arguments.fp8, op_fuser=arguments.op_fuser)
    batches, positions, seq_length = inputs(arguments.plan, arguments.microbatches)

    def forward(ready: Any, chunk: Any) -> Any:
        return chunk(**next(ready)), lambda losses: (losses.float().mean(), {})

    seconds = []
    for _ in range(arguments.steps):
        torch.cuda.synchronize()
        began = time.perf_counter()
        model.zero_grad_buffer()
        optimizer.zero_grad()
        get_forward_backward_func()(
            forward_step_func=forward,
            data_iterator=iter(batches),
            model=model,
            num_microbatches=arguments.microbatches,
            seq_length=seq_length,
            micro_batch_size=1,
            forward_only=False,
        )
        optimizer.step()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    median = statistics.median(seconds[2:])
    flops = training_flops(LlamaShape.from_hf(arguments.hf), positions)
    print(json.dumps({"seconds": median, "model_tflops": flops / median / 1e12}))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
