"""What `latxa plan` is measured by: seconds a step and GPU memory of runs on one GPU.

    latxa data build --out store --tokenizer models/Llama-3.1-8B --source basque='corpus/*.jsonl'
    python benchmarks/gpu/plan_rows.py --store store --out plan-rows-out [--only bf16] [--from 9]

Adds one line of JSON for each run to OUT/rows.jsonl: its settings, the median seconds of the steps after the third, the peak of
what torch had allocated, and how much more of the GPU was in use than before it. Runs in two processes share the GPU where there
is one: their memory counts, their speed does not. A run that fails says so and does not stop the next.
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
IN_TWO = {name: [f"parallel.{name}=2", *BF16] for name in ("tp", "pp", "cp")} | {"dp": BF16}


class MemoryInUse:
    """The most of the GPU that was in use inside the block, in GiB above what was before it; by the driver's word."""

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
            self.most = max(self.most, self._now() - self.before)

    def _now(self) -> float:
        command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
        return sum(map(float, subprocess.run(command, text=True, capture_output=True, check=True).stdout.split())) / 1024


def measured(out: Path, store: Path, shape: str, seq_length: int, overrides: list[str], *, pair: bool) -> dict[str, Any]:
    plan = out / f"plan-{seq_length}"
    if not plan.exists():
        latxa("data", "pack", "--out", plan, "--seq-length", seq_length, "--seed", 33, f"{store}:epochs=8")
    asked = ["train.global_batch=8", "train.steps=6", *overrides]
    name = f"{'pair ' if pair else ''}{seq_length} {' '.join(overrides)}"
    with MemoryInUse() as used:
        lines = (run_pair if pair else run_shape)(out, name, shape, plan, asked)
    seconds = statistics.median(line["seconds"] for line in lines[3:])
    flops = statistics.median(line["model_tflops_per_rank"] * line["seconds"] for line in lines[3:])
    return {
        "shape": shape,
        "seq_length": seq_length,
        "overrides": asked,
        "processes": 1 + pair,
        "seconds": round(seconds, 4),
        "teraflops_of_a_step": round(flops, 1),
        "peak_gib": round(max(line["peak_memory_gib"] for line in lines), 3),
        "used_gib": round(used.most, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", default="", help="runs whose shape, length and settings hold this")
    parser.add_argument("--from", dest="first", type=int, default=0, help="leave out so many runs")
    arguments = parser.parse_args()
    out = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    jobs = [(shape, length, overrides, False) for shape, length, overrides in RUNS]
    jobs += [("8B-shaped, 4 layers", 8192, overrides, True) for overrides in IN_TWO.values()]
    for shape, length, overrides, pair in jobs[arguments.first :]:
        if arguments.only in f"{shape} {length} {' '.join(overrides)}":
            try:
                row = measured(out, arguments.store.resolve(), shape, length, overrides, pair=pair)
            except Exception as error:  # one run that fails does not stop the next
                print(f"{shape} {overrides}: failed: {str(error).strip()[-400:]}", file=sys.stderr, flush=True)
                continue
            with (out / "rows.jsonl").open("a") as rows:
                rows.write(json.dumps(row) + "\n")
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
