"""Eight GPUs of a node (or four, or two): training speed beside published rows and `latxa plan`, bandwidth, resuming elsewhere.

    python benchmarks/gpu/eight_gpus.py --out eight-out                     # at most nine minutes
    python benchmarks/gpu/eight_gpus.py --out eight-out --dry-run           # no GPU: checks and plans each run, starts none
    python benchmarks/gpu/eight_gpus.py --out tiny-out --tiny --gpus 8      # no GPU: all of it, with tiny models over gloo
    python benchmarks/gpu/eight_gpus.py --bandwidth node.json [job.json]    # the line of gpus.yaml for what doctor measured

Prints one table: what must be reached, what was measured, the plan's seconds and memory beside what they were; then the line of
plan/gpus.yaml with the links that were measured. Speeds are medians of the steps after the second. A row that fails, or takes
twice as long as it should, says so and does not stop the next; one for which --budget-seconds leaves no time is left out, and
says so. Text: random words, each sample one document, as in the published rows; packed documents with --mean, and real ones from
a store that `latxa data build` wrote with --store. OUT/rows.jsonl has each run's numbers. Needs 30 GB of disk.
"""

import argparse
import json
import os
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from eight_rows import (
    RESUMED,
    RESUMED_LENGTH,
    TINY_LENGTHS,
    TINY_VOCABULARY,
    VOCABULARY,
    WORDS,
    Row,
    rows,
    tiny,
    tiny_shape,
    write_documents,
)
from shapes import latxa, run_shape, write_run

from latxa_megatron.config import load_run
from latxa_megatron.errors import LatxaError
from latxa_megatron.plan.estimate import Estimate, estimate
from latxa_megatron.plan.gpus import as_yaml, find_gpu, with_links
from latxa_megatron.plan.memory import SLACK
from latxa_megatron.train.check import check_run

WARM = 2  # steps that are not measured
START = {False: 40.0, True: 45.0}
"""Seconds until a run's first step and after its last, on GPUs and for tiny runs on a CPU. Chosen: on one GPU it took 34."""
TIME, MEMORY, NATS = 0.07, 0.05, 1e-3
SAVES = ["train.deterministic=true", "optimizer.decay=constant", "optimizer.warmup=0", "checkpoint.every=2", "checkpoint.keep=3"]


@dataclass(frozen=True)
class Found:
    """What was measured, whether the bar holds, and for a run the seconds of a step and the peak in GiB (0 on a CPU)."""

    words: str
    holds: bool | None
    seconds: float | None = None
    peak: float | None = None


@dataclass(frozen=True)
class Job:
    """A line of the table. lasts: its seconds, estimated; check: raises LatxaError for what cannot work; planned: after that."""

    what: str
    bar: str
    lasts: float
    measure: Callable[[float], Found]
    planned: Estimate | None = None


class Script:
    """What all rows have in common: where they write, the machine, the text."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.out, self.gpus, self.tiny = arguments.out.resolve(), arguments.gpus, arguments.tiny
        self.only = arguments.only
        self.gpu, self.start = find_gpu(arguments.gpu), START[arguments.tiny]
        self.measured_links: dict[str, Any] | None = None
        self.out.mkdir(parents=True, exist_ok=True)
        self.store = arguments.store.resolve() if arguments.store else self.out / "store"
        if not self.store.exists():
            vocabulary, tokens, mean = (TINY_VOCABULARY, 20_000, 40.0) if self.tiny else (VOCABULARY, 1_000_000, arguments.mean)
            write_documents(self.store, vocabulary, tokens, mean)

    def plan(self, seq_length: int) -> Path:
        plan = self.out / f"plan-{seq_length}"
        if not plan.exists():
            latxa("data", "pack", "--out", plan, "--seq-length", seq_length, "--seed", 33, f"{self.store}:epochs=8")
        return plan

    def jobs(self) -> list[tuple[str, Callable[[], Job]]]:
        """One for each line asked for, the most important first, by name; each raises LatxaError where it cannot be run."""
        runs = [tiny(row, self.gpus) if self.tiny else row for row in rows(self.gpus)]
        training = [(f"{row.shape}, {row.seq_length}: {row.name}", partial(self.training, row)) for row in runs]
        every = [("bandwidth", self.bandwidth), *training[:-1], ("resume", self.resume), training[-1]]
        return [(what, job) for what, job in every if any(words in what for words in self.only)]

    def checked(self, name: str, shape: str, seq_length: int, overrides: list[str]) -> Estimate:
        """The plan of a run that can start on these GPUs and fits them; its run file is written."""
        file = write_run(self.out, name, shape, self.plan(seq_length))
        run = load_run(file, overrides)
        check_run(run, self.gpus)
        found = estimate(run, self.gpu, self.gpus)
        if not found.fits:
            raise LatxaError(f"does not fit: {found.worst.peak:.1f} of {self.gpu.memory} GiB, and {SLACK:.0f} must stay free")
        return found

    def training(self, row: Row) -> Job:
        overrides = [*row.overrides, f"train.steps={row.steps}"]
        planned = self.checked(row.name, row.shape, row.seq_length, overrides)
        bar = f"{row.bar:,.0f} {WORDS[row.key]}" if row.bar else f"plan: time {TIME:.0%}, memory {MEMORY:.0%}"
        if row.published:
            bar += f" (published: {row.published})"

        def measure(limit: float) -> Found:
            plan = self.plan(row.seq_length)
            lines = run_shape(self.out, row.name, row.shape, plan, overrides, gpus=self.gpus, limit=limit)
            median = {key: statistics.median(line[key] for line in lines[WARM:]) for key in (*WORDS, "seconds")}
            peak = max(line["peak_memory_gib"] for line in lines)
            self.note(row, overrides, median, peak)
            words = "; ".join(f"{median[key]:,.0f} {words}" for key, words in WORDS.items())
            near = abs(median["seconds"] / planned.seconds.step - 1) <= TIME and abs(peak / planned.memory[0].peak - 1) <= MEMORY
            holds = median[row.key] >= row.bar if row.bar else near
            return Found(words, holds, median["seconds"], peak)

        what = f"{row.shape}, {row.seq_length}: {row.name}"
        return Job(what, bar, self.start + (row.steps + 1) * planned.seconds.step, measure, planned)

    def note(self, row: Row, overrides: list[str], median: dict[str, float], peak: float) -> None:
        """A line of rows.jsonl, for plan_measured.jsonl; own_gpus: no two processes shared a GPU, so its time counts."""
        teraflops = median["model_tflops_per_rank"] * median["seconds"]
        line = {"shape": row.shape, "seq_length": row.seq_length, "overrides": overrides}
        line |= {"processes": self.gpus, "own_gpus": True}
        line |= {"seconds": round(median["seconds"], 4), "teraflops_of_a_step": round(teraflops, 1), "peak_gib": round(peak, 3)}
        with (self.out / "rows.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")

    def bandwidth(self) -> Job:
        def measure(limit: float) -> Found:
            said = json.loads(latxa("doctor", "--gpus", "--json", limit=limit, allowed=1))
            found, lines = said["bandwidth"], said["findings"]
            if found is None:
                raise RuntimeError(next(line["found"] for line in lines if line["check"] == "bandwidth"))
            (self.out / "bandwidth.json").write_text(json.dumps(found))
            self.measured_links = found
            lines = [line for line in lines if line["check"].startswith(("all-", "p2p"))]
            words = "; ".join(f"{line['check']} {line['found'].split(', ')[0]}" for line in lines)
            return Found(words, all(line["state"] == "ok" for line in lines))

        return Job("bandwidth, latxa doctor --gpus", "half of the NVLinks", 0.75 * self.start, measure)

    def resume(self) -> Job:
        """Steps 3 and 4 of a run under another layout, from its checkpoint after 2; then 5 and 6 under its own, from theirs."""
        shape = tiny_shape(8) if self.tiny else RESUMED
        length = TINY_LENGTHS[RESUMED_LENGTH] if self.tiny else RESUMED_LENGTH
        moved, end = ["parallel.tp=2", "train.steps=4"], ["train.steps=6"]
        runs = [("whole", end, None), ("moved", moved, ("whole", 2)), ("back", end, ("moved", 4))]
        directories = {}
        for name, overrides, _ in runs:
            self.checked(name, shape, length, [*SAVES, *overrides])
            directories[name] = write_run(self.out, name, shape, self.plan(length)).parent

        def measure(limit: float) -> Found:
            ends, lines = time.monotonic() + limit, {}
            for name, overrides, source in runs:
                shutil.rmtree(directories[name])
                if source:
                    step = f"checkpoints/iter_{source[1]:07d}"
                    shutil.copytree(directories[source[0]] / step, directories[name] / step, copy_function=os.link)
                left = max(1.0, ends - time.monotonic())
                asked = [*SAVES, *overrides]
                lines[name] = run_shape(self.out, name, shape, self.plan(length), asked, gpus=self.gpus, limit=left)
            return resumed_as(lines["whole"], [*lines["moved"], *lines["back"]])

        what = f"{shape}, {length}: DP{self.gpus} resumed as TP2 DP{self.gpus // 2}, and that as DP{self.gpus}, bf16"
        return Job(what, f"same samples, {NATS:g} nats", 3 * (0.9 * self.start), measure)


def resumed_as(whole: list[dict[str, Any]], resumed: list[dict[str, Any]]) -> Found:
    """Steps 3 to 6 against those of the whole run. Trained tokens tell samples apart, and so do losses that differ by step."""
    expected = whole[2:]
    same = [line["step"] for line in resumed] == [3, 4, 5, 6]
    same &= [line["trained_tokens"] for line in resumed] == [line["trained_tokens"] for line in expected]
    if not same:
        return Found("other steps or other samples", False)
    nats = max(abs(a["loss"] - b["loss"]) for a, b in zip(resumed, expected, strict=True))
    apart = min(abs(a["loss"] - b["loss"]) for a, b in pairwise(whole))
    return Found(f"widest difference {nats:.1e} nats; two steps differ by {apart:.1e} at least", nats <= NATS and nats < apart)


def beside(said: float | None, was: float | None, digits: int) -> str:
    """Planned, measured, and by how much what was measured is off."""
    words = [f"{value:.{digits}f}" if value else "" for value in (said, was)]
    off = "" if not said or not was else f"{was / said - 1:+.1%}" if was < 10 * said else "over 1000%"
    return f"{words[0]} | {words[1]} | {off}"


def line_of(job: Job, found: Found, took: float | None) -> str:
    planned = job.planned
    verdict = "" if found.holds is None else "holds" if found.holds else "FALLS SHORT"
    seconds = beside(planned.seconds.step if planned else None, found.seconds, 3)
    memory = beside(planned.memory[0].peak if planned else None, found.peak, 1)
    took_words = "" if took is None else f"{took:.0f} "
    return f"| {job.what} | {job.bar} | {found.words} | {verdict} | {seconds} | {memory} | {took_words}({job.lasts:.0f}) |"


def failure(error: Exception) -> str:
    return "failed: " + (str(error).strip() or repr(error)).splitlines()[-1].replace("|", "/")[:200]


def table(script: Script, began: float, budget: float, *, dry: bool) -> float:
    """Print it, line by line; the estimated seconds of all its rows."""
    print("| what | must reach | measured | | s/step planned | measured | | GiB planned | measured | | s (estimated) |")
    print("| --- " * 11 + "|", flush=True)
    whole = 0.0
    for what, make in script.jobs():
        try:
            job = make()
        except Exception as error:  # a row that cannot be run does not stop the next
            print(f"| {what} | | {failure(error)} | FALLS SHORT | | | | | | | |", flush=True)
            continue
        whole += job.lasts
        left = budget - (time.monotonic() - began)
        if dry:
            print(line_of(job, Found("not run", None), None), flush=True)
        elif job.lasts > left:
            words = f"left out: takes some {job.lasts:.0f} s, and {left:.0f} are left"
            print(line_of(job, Found(words, None), None), flush=True)
        else:
            first = time.monotonic()
            try:
                found = job.measure(min(left, 60 + 2 * job.lasts))
            except Exception as error:
                print(error, file=sys.stderr, flush=True)
                found = Found(failure(error), False)
            print(line_of(job, found, time.monotonic() - first), flush=True)
    return whole


def machine() -> str:
    """What ran: the GPU and the versions."""
    from importlib.metadata import PackageNotFoundError, version

    import torch

    found = [torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU", f"Python {sys.version.split()[0]}"]
    for name in ("torch", "megatron-core", "transformer-engine"):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"no {name}")
    return ", ".join(found)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("eight-out"))
    parser.add_argument("--store", type=Path, help="real text instead of random words")
    parser.add_argument("--mean", type=float, help="mean length of documents of random words; each a whole sample without it")
    parser.add_argument("--gpus", type=int, choices=[2, 4, 8], help="those that are there, or 8")
    parser.add_argument("--gpu", default="h200", help="the GPU's name in plan/gpus.yaml")
    parser.add_argument("--only", nargs="*", default=[""], help="rows whose names hold one of these")
    parser.add_argument("--budget-seconds", type=float, default=525)
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--tiny", action="store_true", help="tiny models in bf16, on the CPU")
    parser.add_argument("--bandwidth", type=Path, nargs="+", metavar="JSON", help="what `latxa doctor --gpus --json` printed")
    arguments = parser.parse_args()
    if arguments.gpus is None:
        import torch

        there = 0 if arguments.tiny or arguments.dry_run else torch.cuda.device_count()
        arguments.gpus = there if there in (2, 4) else 8
    return arguments


def main() -> None:
    arguments, began = parse(), time.monotonic()
    if arguments.bandwidth:
        gpu = find_gpu(arguments.gpu)
        for file in arguments.bandwidth:
            gpu = with_links(gpu, json.loads(file.read_text())["bandwidth"])
        print(as_yaml(gpu))
        return
    os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    if arguments.tiny:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    script = Script(arguments)
    whole = table(script, began, arguments.budget_seconds, dry=arguments.dry_run)
    print(f"\n{arguments.gpus} x {script.gpu.name}; {machine()}; {time.monotonic() - began:.0f} s in all")
    print(f"estimated: {whole:.0f} s ({whole / 60:.1f} minutes), of {arguments.budget_seconds:.0f}")
    if script.measured_links and not arguments.tiny:
        print("the line of latxa_megatron/plan/gpus.yaml with the links that were measured:")
        print(as_yaml(with_links(script.gpu, script.measured_links)))


if __name__ == "__main__":
    main()
