"""What `latxa plan` is measured by: seconds a step and GPU memory of runs on one GPU, and on two.

    latxa data build --out store --tokenizer models/Llama-3.1-8B --source basque='corpus/*.jsonl'
    python benchmarks/gpu/plan_rows.py --store store --out plan-rows-out [--processes 2] [--only bf16] [--from 9]

Adds one line of JSON for each run to OUT/rows.jsonl, as it goes into plan_measured.jsonl: its settings, the median seconds of
the steps after the third, the peak of what torch had allocated on rank 0, and how much more of the fullest GPU was in use than
before. Runs in two processes have a GPU each where there are two, and say so (own_gpus); where there is one they share it, and
only their memory counts. A run that fails says so and does not stop the next.
"""

import argparse
import json
import statistics
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from shapes import latxa, run_pair, run_shape

BF16 = ["precision.gradients=bf16"]
FP8 = [*BF16, "precision.fp8=tensorwise", "precision.fp8_params=true"]
HEAD = [*FP8, "precision.fp8_head=true"]
LARGE, SMALL, FULL = "70B-shaped, 4 layers", "8B-shaped, 8 layers", "Llama-3.1-8B"
RUNS: list[tuple[str, int, list[str]]] = [
    (LARGE, 8192, BF16),
    (LARGE, 8192, HEAD),
    (SMALL, 8192, BF16),
    (SMALL, 8192, HEAD),
    (SMALL, 8192, [*BF16, "train.recompute=8"]),
    (SMALL, 8192, [*BF16, "train.micro_batch=2"]),
    (SMALL, 32768, [*BF16, "train.global_batch=2"]),
    (FULL, 8192, [*BF16, "train.recompute=32", "train.global_batch=4"]),
    (SMALL, 2048, [*BF16, "train.global_batch=32"]),
    (SMALL, 8192, []),
    (LARGE, 8192, [*BF16, "train.recompute=4"]),
    (SMALL, 8192, [*BF16, "train.recompute=selective"]),
    (SMALL, 8192, FP8),
    (SMALL, 8192, [*HEAD, "train.recompute=4"]),
]
TWO_STAGES = ["parallel.pp=2", "parallel.vp=2", "train.global_batch=16"]
ON_ONE = [
    ("8B-shaped, 4 layers", 8192, [*layout, *BF16]) for layout in (["parallel.tp=2"], ["parallel.pp=2"], ["parallel.cp=2"], [])
]
"""In two processes that share a GPU."""
ON_TWO: list[tuple[str, int, list[str]]] = [
    (LARGE, 8192, ["parallel.tp=2", *HEAD]),
    (LARGE, 8192, [*TWO_STAGES, *HEAD]),
    (SMALL, 32768, ["parallel.cp=2", *BF16, "train.global_batch=2"]),
    (FULL, 8192, [*HEAD, "train.global_batch=16"]),
    (LARGE, 8192, ["parallel.tp=2", *BF16]),
    (SMALL, 8192, BF16),
    (SMALL, 8192, ["parallel.pp=2", *BF16, "train.global_batch=16"]),
    (SMALL, 8192, ["parallel.cp=2", *BF16]),
    (SMALL, 8192, ["parallel.tp=2", *BF16]),
]
"""In two processes with a GPU each."""


class MemoryInUse:
    """The most of a GPU that was in use inside the block, in GiB above what was before it; by the driver's word."""

    def __enter__(self) -> "MemoryInUse":
        self.before, self.most, self._stop = self._now(), 0.0, threading.Event()
        self._watch = threading.Thread(target=self._look)
        self._watch.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._watch.join()

    def _look(self) -> None:
        while not self._stop.wait(0.5):
            self.most = max(self.most, *(now - before for now, before in zip(self._now(), self.before, strict=True)))

    def _now(self) -> list[float]:
        return [float(mib) / 1024 for mib in of_each_gpu("memory.used")]


def of_each_gpu(field: str) -> list[str]:
    """What nvidia-smi says, so that this process takes no memory of a GPU."""
    command = ["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader,nounits"]
    return subprocess.run(command, text=True, capture_output=True, check=True).stdout.splitlines()


def gpu_name() -> str:
    """The GPU's name in plan/gpus.yaml."""
    said = of_each_gpu("name")[0]
    return next((name for word, name in (("H100", "h100-80g"), ("GB200", "gb200"), ("B200", "b200")) if word in said), "h200")


def measured(
    out: Path, store: Path, shape: str, seq_length: int, overrides: list[str], *, processes: int, gpus: int
) -> dict[str, Any]:
    """A line for plan_measured.jsonl. gpus: those that are there."""
    plan = out / f"plan-{seq_length}"
    if not plan.exists():
        latxa("data", "pack", "--out", plan, "--seq-length", seq_length, "--seed", 33, f"{store}:epochs=8")
    asked = ["train.global_batch=8", "train.steps=6", *overrides]
    name = f"{processes} {seq_length} {' '.join(overrides)}"
    own = gpus >= processes
    with MemoryInUse() as used:
        lines = run_shape(out, name, shape, plan, asked, gpus=processes) if own else run_pair(out, name, shape, plan, asked)
    seconds = statistics.median(line["seconds"] for line in lines[3:])
    flops = statistics.median(line["model_tflops_per_rank"] * line["seconds"] for line in lines[3:])
    return {
        "shape": shape,
        "seq_length": seq_length,
        "overrides": asked,
        "gpu": gpu_name(),
        "processes": processes,
        **({"own_gpus": True} if own and processes > 1 else {}),
        "seconds": round(seconds, 4),
        "teraflops_of_a_step": round(flops, 1),
        "peak_gib": round(max(line["peak_memory_gib"] for line in lines), 3),
        "used_gib": round(used.most, 2),
    }


def main() -> None:
    import torch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", default="", help="runs whose shape, length and settings hold this")
    parser.add_argument("--processes", type=int, choices=[1, 2], help="runs in so many alone")
    parser.add_argument("--from", dest="first", type=int, default=0, help="leave out so many runs")
    arguments = parser.parse_args()
    out = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    gpus = torch.cuda.device_count()
    by_processes = {1: RUNS, 2: ON_TWO if gpus > 1 else ON_ONE}
    jobs = [
        (processes, *run) for processes, runs in by_processes.items() for run in runs if arguments.processes in (None, processes)
    ]
    for processes, shape, length, overrides in jobs[arguments.first :]:
        if arguments.only in f"{shape} {length} {' '.join(overrides)}":
            try:
                row = measured(out, arguments.store.resolve(), shape, length, overrides, processes=processes, gpus=gpus)
            except Exception as error:  # one run that fails does not stop the next
                print(f"{shape} {overrides}: failed: {str(error).strip()[-400:]}", file=sys.stderr, flush=True)
                continue
            with (out / "rows.jsonl").open("a") as rows:
                rows.write(json.dumps(row) + "\n")
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
