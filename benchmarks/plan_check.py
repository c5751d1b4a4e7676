"""What `latxa plan` says beside what was measured on one H200, and beside rows that NVIDIA published for H100s.

    python benchmarks/plan_check.py

Reads benchmarks/gpu/plan_measured.jsonl, which plan_rows.py and training_speed.py measured, and plan_published.jsonl (Megatron-
Bridge's performance pages, 8k and 4k positions a sample, each one document); needs no GPU. Prints the two tables of docs/plan.md.
"""

import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from latxa_megatron.config import RunConfig, load_run
from latxa_megatron.model.llama import LlamaShape
from latxa_megatron.plan.estimate import Estimate, estimate
from latxa_megatron.plan.gpus import find_gpu
from latxa_megatron.train.flops import matrix_parameters

sys.path.insert(0, str(Path(__file__).parent / "gpu"))
from shapes import write_shape

GPU = Path(__file__).parent / "gpu"


def rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (GPU / name).read_text().splitlines()]


def run_of(row: dict[str, Any], directory: Path) -> RunConfig:
    hf, file = write_shape(directory, row["shape"]), directory / "run.yaml"
    data = {"store": "unused", "plan": "none", "seq_length": row["seq_length"]}
    run = {"name": "row", "out": "out", "model": {"hf": str(hf)}, "data": data, "train": {"steps": 1}, "optimizer": {}}
    file.write_text(yaml.safe_dump(run))
    return load_run(file, row["overrides"])


def planned(row: dict[str, Any], gpu: str, gpus: int, directory: Path) -> Estimate:
    """The plan of a row's run; its documents' mean length follows from the FLOPs that the run counted."""
    loaded = run_of(row, directory)
    shape = LlamaShape.from_hf(loaded.model.hf)
    document = float(row["seq_length"])
    if "teraflops_of_a_step" in row:
        flops = row["teraflops_of_a_step"] * 1e12 * gpus / (loaded.train.global_batch * row["seq_length"])
        document = (flops - 6 * matrix_parameters(shape)) / (6 * shape.layers * shape.heads * shape.head_dim)
    return estimate(loaded, find_gpu(gpu), gpus, document)


def planned_as_measured(row: dict[str, Any], directory: Path) -> Estimate:
    """The plan of a row of plan_measured.jsonl, on the GPU that it was measured on."""
    return planned(row, row.get("gpu", "h200"), row["processes"], directory)


def time_counts(row: dict[str, Any]) -> bool:
    """Whether no two processes of a measured row shared a GPU."""
    return row["processes"] == 1 or row.get("own_gpus", False)


def beside(said: float, was: float, digits: int) -> str:
    return f"{said:.{digits}f} | {was:.{digits}f} | {said / was - 1:+.1%}"


def tables() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        yield "| model | sample | GPUs | settings | GiB planned | measured | | s/step planned | measured | |"
        yield "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"
        for row in rows("plan_measured.jsonl"):
            found = planned_as_measured(row, directory)
            values = dict(each.split(".", 1)[1].split("=", 1) for each in row["overrides"] if "steps=" not in each)
            settings = ", ".join(f"{key}={value}" for key, value in values.items())
            time = beside(found.seconds.step, row["seconds"], 3) if time_counts(row) else " | | "
            memory = beside(found.memory[0].peak, row["peak_gib"], 1)
            gpus = f"{row['processes'] if time_counts(row) else 1} x {row.get('gpu', 'h200').partition('-')[0].upper()}"
            yield f"| {row['shape']} | {row['seq_length']} | {gpus} | {settings} | {memory} | {time} |"
        yield ""
        yield "| model | GPUs | layout | positions/s/GPU planned | published | |"
        yield "| --- | --- | --- | --- | --- | --- |"
        for row in rows("plan_published.jsonl"):
            found = planned(row, "h100-80g", row["gpus"], directory)
            layout = " ".join(
                each.removeprefix("parallel.") for each in row["overrides"] if "parallel" in each and "[" not in each
            )
            speed = beside(found.positions_per_second_per_gpu, row["positions_per_second_per_gpu"], 0)
            yield f"| {row['shape']}, {row['seq_length']} | {row['gpus']} x H100 | {layout} | {speed} |"


if __name__ == "__main__":
    for line in tables():
        print(line)
