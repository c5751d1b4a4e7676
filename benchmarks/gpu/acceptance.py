"""Whether training on a GPU computes what it should: bf16 against a CPU's fp32, FP8 against bf16, two processes against one, a
resumed run against a whole.

    latxa data build --out store --tokenizer models/Llama-3.1-8B --source basque='corpus/*.jsonl'
    python benchmarks/gpu/acceptance.py --store store --out acceptance-out [--only resume]

Prints one table: what was compared, the bar, what was measured. Needs 60 GB of disk and 40 GB of host memory. Two processes get a
GPU each where there are two; on one GPU they share it, and NCCL joins them as if they were two hosts. A check that fails says so
in its line and does not stop the next. training_speed.py has the speeds.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from shapes import kill, latxa, read_metrics, run_pair, run_shape, write_run, write_shape

SHAPE, SMALL = "8B-shaped, 4 layers", "small, 8 layers"
FP8 = ["precision.fp8=tensorwise", "precision.fp8_params=true"]
RECIPES = {
    "fp8 tensorwise, head in fp8": [*FP8, "precision.fp8_head=true"],
    "fp8 tensorwise": FP8,
    "fp8 delayed": ["precision.fp8=delayed", "precision.fp8_params=true"],
    "fp8 blockwise": ["precision.fp8=blockwise"],
}
IN_TWO = {"tp2": ["parallel.tp=2"], "pp2": ["parallel.pp=2"], "cp2": ["parallel.cp=2"], "dp2": []}
LONG = ["train.steps=200", "train.global_batch=4", "optimizer.lr=3e-4"]
DETERMINISTIC = ["train.deterministic=true", "train.steps=6", "train.global_batch=2"]
SMOOTH = ["optimizer.lr=3e-4", "optimizer.eps=1e-4"]
"""Updates as large as gradients are, and not below the spacing of bf16 weights. AdamW's first updates else have one size for all:
where a gradient is near zero its rounding decides the sign, and bf16 and fp32 part within a few steps."""
SAVING = [*DETERMINISTIC, "checkpoint.every=3", "checkpoint.keep=2"]


Line = tuple[str, str, str, bool]
"""What is compared, the bar, what was measured, whether it holds."""


def compared(what: str, bar: float, found: list[float], expected: list[float]) -> Line:
    """The widest difference of any step, in nats and as a part of the loss expected there, which the bar is for."""
    nats, part = max((abs(a - b), abs(a / b - 1)) for a, b in zip(found, expected, strict=True))
    return what, f"{bar:g}" if bar else "bitwise", f"widest difference {nats:.1e} nats, {part:.1e} of the loss", part <= bar


class Checks:
    """The checks, each a method that yields its lines of the table."""

    def __init__(self, out: Path, store: Path) -> None:
        self.out, self.store = out, store

    def plan(self, seq_length: int) -> Path:
        plan = self.out / f"plan-{seq_length}"
        if not plan.exists():
            latxa("data", "pack", "--out", plan, "--seq-length", seq_length, "--seed", 33, f"{self.store}:epochs=8")
        return plan

    def losses(self, name: str, shape: str, seq_length: int, overrides: list[str], *, pair: bool = False) -> list[float]:
        """Those of a run, in two processes if asked, which is run unless it was, to its end."""
        file = write_run(self.out, name, shape, self.plan(seq_length))
        lines = read_metrics(file) if file.with_name("metrics.jsonl").exists() else []
        if not lines or f"train.steps={lines[-1]['step']}" not in overrides:
            run = run_pair if pair else run_shape
            lines = run(self.out, name, shape, self.plan(seq_length), overrides)
        return [line["loss"] for line in lines]

    def fp8(self) -> Iterator[Line]:
        """The mean loss of the last 20 of 200 steps from random weights."""
        yield from self.recipes("fp8 tensorwise, head in fp8", "fp8 tensorwise")

    def fp8_others(self) -> Iterator[Line]:
        yield from self.recipes("fp8 blockwise", "fp8 delayed")

    def recipes(self, *names: str) -> Iterator[Line]:
        expected = statistics.mean(self.losses("bf16", SHAPE, 2048, LONG)[-20:])
        for name in names:
            found = statistics.mean(self.losses(name, SHAPE, 2048, [*LONG, *RECIPES[name]])[-20:])
            away = found / expected - 1
            measured = f"{found:.4f}, {expected:.4f}: {away:+.2%}"
            yield f"{name} against bf16, 200 steps", "1%", measured, abs(away) <= 0.01

    def resume(self) -> Iterator[Line]:
        """Six steps, and the last three again from the checkpoint after three, which was written while step 4 went on."""
        whole = self.losses("whole", SMALL, 1024, SAVING)
        resumed, cut = self.resumed("whole", "cut", SAVING)
        root = write_run(self.out, "whole", SMALL, self.plan(1024)).parent / "checkpoints"
        same = self.same_files(root / "iter_0000006", cut / "iter_0000006")
        alike = resumed == whole[3:]
        yield "resumed run: losses, and every tensor of its last checkpoint", "bitwise", f"{alike}, {same}", alike and same
        again = self.losses("recomputed", SMALL, 1024, [*DETERMINISTIC, "train.recompute=8"])
        yield compared("all activations recomputed: losses", 0, again, whole)

    def moved(self) -> Iterator[Line]:
        """The last three of those steps in two processes. Tensor parallelism rounds other partial sums to bf16."""
        whole = self.losses("whole", SMALL, 1024, SAVING)
        for name, layout in IN_TWO.items():
            resumed, _ = self.resumed("whole", f"moved {name}", [*DETERMINISTIC, *layout], pair=True)
            yield compared(f"resumed under {name}: losses", 1e-4, resumed, whole[3:])

    def resume_fp8(self) -> Iterator[Line]:
        """The same with weights kept in FP8."""
        overrides = [*SAVING, *RECIPES["fp8 tensorwise, head in fp8"]]
        whole = self.losses("whole fp8", SMALL, 1024, overrides)
        yield compared(
            "resumed run with FP8 weights: losses", 1e-4, self.resumed("whole fp8", "cut fp8", overrides)[0], whole[3:]
        )

    def resumed(self, whole: str, name: str, overrides: list[str], *, pair: bool = False) -> tuple[list[float], Path]:
        """The losses of a run that goes on from the third step of another, and where its checkpoints are."""
        first, cut = (write_run(self.out, each, SMALL, self.plan(1024)).parent / "checkpoints" for each in (whole, name))
        shutil.copytree(first / "iter_0000003", cut / "iter_0000003")
        return self.losses(name, SMALL, 1024, overrides, pair=pair), cut

    def same_files(self, one: Path, other: Path) -> bool:
        """Whether two checkpoints hold the same tensors, through torch's own reader."""
        import torch
        from torch.distributed.checkpoint import FileSystemReader
        from torch.distributed.checkpoint.default_planner import _EmptyStateDictLoadPlanner
        from torch.distributed.checkpoint.state_dict_loader import _load_state_dict

        found: list[dict[str, Any]] = [{}, {}]
        for state, directory in zip(found, (one, other), strict=True):
            _load_state_dict(state, FileSystemReader(directory), planner=_EmptyStateDictLoadPlanner(), no_dist=True)
        tensors = {key for key, value in found[0].items() if isinstance(value, torch.Tensor)}
        return bool(tensors) and all(torch.equal(found[0][key], found[1][key]) for key in tensors)

    def weights(self) -> Path:
        """A checkpoint of random weights, the same for every layout and machine."""
        imported = self.out / "imported"
        if not imported.exists():
            hf = write_shape(self.out, SHAPE)
            code = (
                "import sys, torch; from transformers import AutoConfig, LlamaForCausalLM\n"
                "torch.manual_seed(1); torch.set_default_dtype(torch.bfloat16); torch.set_default_device('cuda')\n"
                "LlamaForCausalLM(AutoConfig.from_pretrained(sys.argv[1])).save_pretrained(sys.argv[2])"
            )
            subprocess.run([sys.executable, "-c", code, str(hf), str(self.out / "weights")], check=True, capture_output=True)
            latxa("convert", "import", "--hf", self.out / "weights", "--out", imported)
        return imported

    def begin_cpu(self) -> None:
        """Start the CPU's eight steps, which take minutes."""
        self.cpu_run = write_run(self.out, "cpu", SHAPE, self.plan(512))
        command = [
            sys.executable,
            "-m",
            "latxa_megatron",
            "train",
            str(self.cpu_run),
            *self.short(),
            *SMOOTH,
            "precision.dtype=fp32",
        ]
        self.on_cpu = subprocess.Popen(
            command, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""}, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )

    def short(self) -> list[str]:
        return ["train.steps=8", "train.global_batch=2", "optimizer.lr=1e-5", f"model.checkpoint={self.weights()}"]

    def cpu(self) -> Iterator[Line]:
        """Eight steps on Transformer Engine in bf16 and on the CPU in fp32, from the same weights."""
        found = self.losses("gpu", SHAPE, 512, [*self.short(), *SMOOTH])
        _, said = self.on_cpu.communicate()
        if self.on_cpu.returncode:
            raise RuntimeError(said[-4000:])
        expected = [line["loss"] for line in read_metrics(self.cpu_run)]
        yield compared("bf16 on the GPU against fp32 on the CPU, 8 steps", 1e-2, found, expected)

    def layouts(self) -> Iterator[Line]:
        """Eight steps in one process and in two, from the same weights."""
        alone = self.losses("alone", SHAPE, 2048, self.short())
        for name, layout in IN_TWO.items():
            found = self.losses(name, SHAPE, 2048, [*self.short(), *layout], pair=True)
            yield compared(f"{name} against one process, 8 steps", 2e-3, found, alone)

    def stall(self) -> Iterator[Line]:
        """What saving adds between two steps, and what pinning the host memory for it, beside the first steps, adds to these."""
        overrides = ["train.steps=31", "checkpoint.every=15", "checkpoint.keep=1", "train.global_batch=32"]
        lines = run_shape(self.out, "stall", "8B-shaped, 2 layers", self.plan(8192), overrides)
        first, second = (lines[step]["pause"] for step in (15, 30))
        early, usual = (sum(line["pause"] + line["seconds"] for line in some) for some in (lines[1:8], lines[8:15]))
        measured = f"{first:.2f} s, {second:.2f} s; pinning its memory cost {early - usual:.2f} s of the first steps"
        yield "a save beside training stops it for", "1 s", measured, max(first, second) <= 1

    def gone(self) -> Iterator[Line]:
        """How long it takes until all has ended when rank 1 is killed in the middle of a run. Needs two GPUs."""
        with self.under_way("gone", []) as (launcher, ranks):
            ranks["1"].kill()
            seconds, said = ended(launcher)
        named = "rank 1" in said.splitlines()[-1] and not ranks["0"].is_running()
        yield "a rank is killed: the launcher names it and ends after", "10 s", f"{seconds:.1f} s", named and seconds <= 10

    def hangs(self) -> Iterator[Line]:
        """The same when rank 1 is stopped, and the others wait for it: a step may take half a minute here."""
        with self.under_way("hangs", ["guard.hang_minutes=0.5"]) as (launcher, ranks):
            ranks["1"].suspend()
            seconds, said = ended(launcher)
        report = "; ".join(line.strip() for line in said.splitlines() if line.startswith("  rank "))
        waits, stands = "rank 0: " in report and "not ended: " in report, "rank 1: wrote no stack" in report
        named = waits and stands and not any(rank.is_running() for rank in ranks.values())
        what = "a rank stands still: what the report says, and when all has ended"
        yield what, "names it", f"{report}; after {seconds:.1f} s", named

    @contextmanager
    def under_way(self, name: str, overrides: list[str]) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
        """The launcher of a run on two GPUs after its third step, and psutil's processes of its ranks."""
        import psutil

        file = write_run(self.out, name, "8B-shaped, 2 layers", self.plan(8192))
        command = [sys.executable, "-m", "latxa_megatron", "launch", "local", str(file), "--nproc", "2", *overrides]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as launcher:
            while not (file.with_name("metrics.jsonl").exists() and len(read_metrics(file)) > 2):
                if launcher.poll() is not None:
                    raise RuntimeError(launcher.communicate()[1][-4000:])
                time.sleep(0.2)
            ranks = {each.environ().get("RANK", ""): each for each in psutil.Process(launcher.pid).children()}
            yield launcher, ranks


def ended(launcher: subprocess.Popen[str]) -> tuple[float, str]:
    """Seconds until it ended, and what it said in the end. Raises RuntimeError where it does not."""
    began = time.monotonic()
    try:
        _, said = launcher.communicate(timeout=300)
    except subprocess.TimeoutExpired:
        kill(launcher.pid)
        raise RuntimeError("no end after 300 s") from None
    return time.monotonic() - began, said


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    every = ["layouts", "cpu", "resume", "moved", "resume_fp8", "fp8", "stall", "fp8_others", "gone", "hangs"]
    parser.add_argument("--only", nargs="*", default=every)
    arguments = parser.parse_args()
    checks = Checks(arguments.out.resolve(), arguments.store.resolve())
    if "cpu" in arguments.only:
        checks.begin_cpu()
    print("| what | bar | measured | |\n| --- | --- | --- | --- |", flush=True)
    for name in arguments.only:
        check: Callable[[], Iterator[Line]] = getattr(checks, name)
        try:
            for what, bar, measured, holds in check():
                print(f"| {what} | {bar} | {measured} | {'holds' if holds else 'FALLS SHORT'} |", flush=True)
        except Exception as error:  # one check that fails does not stop the next
            print(error, file=sys.stderr, flush=True)
            print(f"| {name} | | failed: {(str(error).strip() or repr(error)).splitlines()[-1][:160]} | |", flush=True)


if __name__ == "__main__":
    main()
