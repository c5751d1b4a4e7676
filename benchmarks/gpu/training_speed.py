"""Training speed of `latxa train` as users start it, on real packed text, beside plain megatron-core and transformers + Liger.

    latxa data build --out store --tokenizer models/Llama-3.1-8B --source basque='corpus/*.jsonl'
    python benchmarks/gpu/training_speed.py --store store --out speed-out [--gpus 2] [--only fp8]

Prints one table with a line for each run: seconds a step, positions per second and GPU, model TFLOP/s per GPU (6 for each
parameter and position, and causal attention inside each document), the share of a step that waits for data, peak memory; medians
of the steps after the third. A run that fails says so in its line and does not stop the next.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from shapes import latxa, run_shape, write_shape

BF16 = ["precision.gradients=bf16"]
FP8 = [*BF16, "precision.fp8=tensorwise", "precision.fp8_params=true"]
HEAD = [*FP8, "precision.fp8_head=true"]
TWICE = ["train.micro_batch=2", "train.recompute=4"]
GRAPH = "train.cuda_graph=true"
BALANCED = ["parallel.pp=2", "parallel.vp=2"]
RUNS: list[tuple[int, str, str, list[str]]] = [
    (1, "70B-shaped, 4 layers", "fp8, head in fp8", HEAD),
    (1, "70B-shaped, 4 layers", "fp8", FP8),
    (1, "70B-shaped, 4 layers", "bf16", BF16),
    (1, "70B-shaped, 4 layers", "fp8, head in fp8, 2 samples a microbatch, all layers recomputed", [*HEAD, *TWICE]),
    (1, "8B-shaped, 8 layers", "fp8, head in fp8", HEAD),
    (1, "8B-shaped, 8 layers", "bf16", BF16),
    (1, "8B-shaped, 8 layers", "fp8, head in fp8, 2 samples a microbatch", [*HEAD, "train.micro_batch=2"]),
    (1, "8B-shaped, 8 layers", "fp8, head in fp8, all layers recomputed", [*HEAD, "train.recompute=8"]),
    (1, "8B-shaped, 8 layers", "fp8, head in fp8, CUDA graph", [*HEAD, GRAPH]),
    (1, "135M-shaped", "bf16", BF16),
    (1, "135M-shaped", "bf16, CUDA graph", [*BF16, GRAPH]),
    (2, "135M-shaped", "dp2, bf16", [*BF16, "train.global_batch=32"]),
    (2, "135M-shaped", "dp2, bf16, CUDA graph", [*BF16, GRAPH, "train.global_batch=32"]),
    (2, "Llama-3.1-8B", "dp2, fp8, head in fp8", [*HEAD, "train.global_batch=32"]),
    (2, "70B-shaped, 8 layers", "tp2, fp8, head in fp8", [*HEAD, "parallel.tp=2"]),
    (2, "70B-shaped, 8 layers", "pp2 vp2, fp8, head in fp8", [*HEAD, *BALANCED, "parallel.stages=[2,3,2,1]"]),
    (2, "70B-shaped, 8 layers", "tp2 with userbuffers, fp8, head in fp8", [*HEAD, "parallel.tp=2", "parallel.tp_overlap=true"]),
]
PEERS: dict[str, tuple[str, list[str]]] = {
    "megatron-core + Transformer Engine bare, fp8": ("bare_layers.py", ["--fp8", "tensorwise"]),
    "megatron-core + Transformer Engine bare, fp8, op fuser": ("bare_layers.py", ["--fp8", "tensorwise", "--op-fuser"]),
    "transformers + Liger, checkpointing, bf16": ("liger_layers.py", []),
}
PEER_SHAPE = "70B-shaped, 4 layers"


def line_of(lines: list[dict[str, Any]], gpus: int) -> str:
    def median(key: str) -> float:
        return statistics.median(line[key] for line in lines[3:])

    return (
        f"{median('seconds'):.3f} | {median('positions_per_second') / gpus:,.0f} | {median('model_tflops_per_rank'):.0f} | "
        f"{median('data_wait') / median('seconds'):.2%} | {max(line['peak_memory_gib'] for line in lines):.1f} | "
        f"{lines[0]['loss']:.3f} -> {lines[-1]['loss']:.3f} |"
    )


def run_latxa(out: Path, name: str, shape: str, plan: Path, overrides: list[str], gpus: int) -> str:
    return line_of(run_shape(out, name, shape, plan, overrides, gpus=gpus), gpus)


def run_peer(out: Path, script: str, options: list[str], plan: Path) -> str:
    command = [sys.executable, str(Path(__file__).with_name(script)), "--hf", str(write_shape(out, PEER_SHAPE)), *options]
    if script == "bare_layers.py":
        command += ["--plan", str(plan)]
    done = subprocess.run(command, text=True, capture_output=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-6000:])
    found = json.loads(done.stdout.strip().splitlines()[-1])
    peak = f"{found['peak_memory_gib']:.1f}" if "peak_memory_gib" in found else ""
    return f"{found['seconds']:.3f} | | {found['model_tflops']:.0f} | | {peak} | |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--gpus", type=int, default=1, choices=[1, 2])
    parser.add_argument("--only", default="", help="runs whose model and name hold this")
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--seq-length", type=int, default=8192)
    arguments = parser.parse_args()
    out, store = arguments.out.resolve(), arguments.store.resolve()
    plan = out / "plan"
    latxa("data", "pack", "--out", plan, "--seq-length", arguments.seq_length, "--seed", 33, f"{store}:epochs=4")
    print("| model | run | s/step | positions/s/GPU | model TFLOP/s/GPU | data wait | peak GiB | loss |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |", flush=True)
    jobs: list[tuple[str, str, Callable[[], str]]] = []
    for gpus, shape, name, overrides in RUNS:
        if gpus == arguments.gpus:
            all_of = [f"train.steps={arguments.steps}", *overrides]
            jobs.append((shape, name, partial(run_latxa, out, name, shape, plan, all_of, gpus)))
    if arguments.gpus == 1:
        for name, (script, options) in PEERS.items():
            jobs.append((PEER_SHAPE, name, partial(run_peer, out, script, options, plan)))
    for shape, name, measure in jobs:
        if arguments.only in f"{shape}, {name}":
            try:
                result = measure()
            except Exception as error:  # one run that fails does not stop the next
                print(error, file=sys.stderr, flush=True)
                result = f"failed: {str(error).strip().splitlines()[-1][:160]} | | | | | |"
            print(f"| {shape} | {name} | {result}", flush=True)


if __name__ == "__main__":
    main()
