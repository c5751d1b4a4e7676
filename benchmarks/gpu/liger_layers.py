"""The same layers on transformers with Liger kernels and SDPA: the stack that the study trained with, on one GPU.

    python benchmarks/gpu/liger_layers.py --hf out/70B-shaped-4-layers [--no-checkpointing]

bf16 weights and AdamW states, sequences of one document, gradient checkpointing as FSDP runs of a 70B need it. Prints one JSON
line: seconds a step (median after the first), model TFLOP/s, peak memory.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import numpy as np
import torch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hf", type=Path, required=True)
    parser.add_argument("--seq-length", type=int, default=8192)
    parser.add_argument("--microbatches", type=int, default=16)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--no-checkpointing", action="store_true")
    arguments = parser.parse_args()
    from liger_kernel.transformers import apply_liger_kernel_to_llama
    from transformers import AutoConfig, LlamaForCausalLM

    from latxa_megatron.model.llama import LlamaShape
    from latxa_megatron.train.flops import training_flops

    apply_liger_kernel_to_llama(rope=True, rms_norm=True, swiglu=True, cross_entropy=False, fused_linear_cross_entropy=True)
    torch.manual_seed(1)
    torch.set_default_dtype(torch.bfloat16)
    config = AutoConfig.from_pretrained(arguments.hf, attn_implementation="sdpa", use_cache=False)
    with torch.device("cuda"):
        model = LlamaForCausalLM(config).train()
    if not arguments.no_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    tokens = torch.randint(0, config.vocab_size, (arguments.microbatches, 1, arguments.seq_length), device="cuda")
    seconds = []
    for _ in range(arguments.steps):
        torch.cuda.synchronize()
        began = time.perf_counter()
        for microbatch in tokens:
            (model(input_ids=microbatch, labels=microbatch).loss / arguments.microbatches).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    median = statistics.median(seconds[1:])
    flops = training_flops(LlamaShape.from_hf(arguments.hf), np.full(arguments.microbatches, arguments.seq_length))
    peak = torch.cuda.max_memory_allocated() / 2**30
    print(json.dumps({"seconds": median, "model_tflops": flops / median / 1e12, "peak_memory_gib": peak}))


if __name__ == "__main__":
    main()
