"""The runs of eight_gpus.py: which model, how it is spread, for how many steps, and what it must reach."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from shapes import SHAPES

from latxa_megatron import _core
from latxa_megatron.data.store import FORMAT, MANIFEST, VERSION, manifest_fingerprint
from latxa_megatron.files import write_json

FP8 = ["precision.gradients=bf16", "precision.fp8=tensorwise", "precision.fp8_params=true"]
HEAD = [*FP8, "precision.fp8_head=true"]
SPEED, TFLOPS = "positions_per_second_per_rank", "model_tflops_per_rank"
WORDS = {SPEED: "positions/s/GPU", TFLOPS: "model TFLOP/s/GPU"}
RESUMED, RESUMED_LENGTH = "small, 8 layers", 1024
VOCABULARY, TINY_VOCABULARY = 128256, 512
LONGEST = 131072
"""Positions of a document that is cut into samples: a multiple of every sample's."""


@dataclass(frozen=True)
class Row:
    """A run of so many steps. bar: what the number `key` of its metrics must reach; without one it is held to its plan.

    published: the same number of NVIDIA's own row (docs/plan.md), if there is one.
    """

    name: str
    shape: str
    seq_length: int
    overrides: list[str]
    steps: int
    key: str
    bar: float | None = None
    published: str = ""


def rows(gpus: int) -> list[Row]:
    """Runs for 2, 4 or 8 GPUs of a node, the most important first; on fewer GPUs the large model has fewer layers.

    The stages are those with the shortest step by `latxa plan`: the head in FP8 is worth a layer or so. 48 microbatches leave a
    bubble of 1%; NVIDIA's row of 64 GPUs has one of 2%. The bar for the large model is for 8 GPUs: with fewer layers the head
    weighs more.
    """
    part = gpus // 2
    large = f"70B-shaped, {20 * gpus // 8} layers"
    stages = {8: [5, 5, 5, 5], 4: [3, 3, 2, 2], 2: [2, 1, 1, 1]}[gpus]
    batch = f"train.global_batch={16 * gpus}"
    split = [f"parallel.tp={part}", "parallel.pp=2", "parallel.vp=2", f"parallel.stages={stages}".replace(" ", "")]
    ours = f"DP{gpus}, fp8, head in fp8"
    goal = 780.0 if gpus == 8 else None
    return [
        Row(ours, "Llama-3.1-8B", 8192, [*HEAD, batch], 4, SPEED, 15000, "14451 on 8 x H100"),
        Row(
            f"TP{part} PP2 VP2, fp8, head in fp8",
            large,
            8192,
            [*HEAD, *split, f"train.global_batch={6 * gpus}"],
            4,
            TFLOPS,
            goal,
            "736 on 64 x H100, TP4 PP8 VP5" if goal else "",
        ),
        Row(
            f"CP2 TP{part}, fp8, head in fp8",
            large,
            32768,
            [*HEAD, "parallel.cp=2", f"parallel.tp={part}", "train.global_batch=4"],
            5,
            TFLOPS,
        ),
        Row(
            f"TP{gpus}, fp8, head in fp8",
            large,
            8192,
            [*HEAD, f"parallel.tp={gpus}", f"train.global_batch={2 * gpus}"],
            5,
            TFLOPS,
        ),
        Row(f"DP{gpus}, fp8", "Llama-3.1-8B", 8192, [*FP8, batch], 4, SPEED, 15000, "14451 on 8 x H100"),
    ]


TINY_LENGTHS = {8192: 128, 32768: 256, RESUMED_LENGTH: 64}


def tiny_shape(layers: int) -> str:
    """The name of a shape that a CPU can train."""
    name = f"tiny, {layers} layers"
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 8, "vocab_size": TINY_VOCABULARY}
    SHAPES[name] = {**sizes, "num_hidden_layers": layers}
    return name


def tiny(row: Row, gpus: int) -> Row:
    """The same run of a tiny model, in bf16."""
    layers = 2 if row.shape == "Llama-3.1-8B" else SHAPES[row.shape]["num_hidden_layers"]
    kept = [each for each in row.overrides if each.startswith("parallel.")]
    batch = 2 * gpus if row.shape == "Llama-3.1-8B" else 4
    overrides = [*kept, f"train.global_batch={batch}"]
    name, length = row.name.replace("fp8", "bf16 for fp8"), TINY_LENGTHS[row.seq_length]
    return replace(row, name=name, shape=tiny_shape(layers), seq_length=length, overrides=overrides)


def write_documents(directory: Path, vocabulary: int, tokens: int, mean: float | None = None) -> None:
    """A store of documents, with tokens by Zipf's law; some of them are trained, so that samples differ in how many.

    mean: of documents of log-normal length, sigma 1. Without it each is one document to every sample that it is cut into, whose
    attention is the longest possible: what published rows are measured with.
    """
    draws = np.random.default_rng(33)
    directory.mkdir(parents=True)
    writer = _core.ShardWriter(str(directory / "00000"), 4, True)
    while writer.tokens < tokens:
        length = max(16, round(draws.lognormal(np.log(mean) - 0.5, 1.0))) if mean else LONGEST + 1
        words = np.minimum(draws.zipf(1.2, length), vocabulary - 1).astype(np.int32)
        words[-1] = 0
        borders = np.unique(draws.integers(0, length + 1, 2 * (1 + length // 100)))
        writer.add(words, borders[: len(borders) // 2 * 2].reshape(-1, 2).astype(np.int32))
    writer.finish()
    counts = {"documents": writer.documents, "tokens": writer.tokens, "trained_tokens": writer.trained_tokens}
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "tokenizer": {"fingerprint": "none", "vocab_size": vocabulary, "bos": None, "document_end": 0, "template": None},
        "settings": {},
        "sources": {"random": {"hold_out": 0.0, "files": []}},
        "mask": "spans",
        "shards": [{"name": "00000", "source": "random", **counts, "sha256": {}}],
    }
    manifest["fingerprint"] = manifest_fingerprint(manifest)
    write_json(directory / MANIFEST, manifest)
