"""Speed and memory of latxa convert, both ways, beside `cp` of the same files and beside building the whole model.

    python benchmarks/converting.py [--shape 8b|70b] [--layers N] [--vocab N] [--workers N] [--peer] [--directory DIR]

Writes a Hugging Face directory of random bf16 weights in files of at most 5 GB: Llama 3.1 8B (16 GB), or 70B-shaped with 4 layers
unless --layers says otherwise. Each way is a process of its own, started with its modules loaded, on files that are dropped from
the page cache first, and ends when what it wrote is on the disk. Memory is the most that was resident above that start.
The peer's way loads the model with transformers, builds megatron-core's GPTModel, copies the weights and saves it with
megatron-core's dist_checkpointing: what it holds is the model twice, so it fits in 24 GB with few --layers alone.
"""

import argparse
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import torch

from latxa_megatron.convert.hf import HfTensors
from latxa_megatron.convert.names import rows
from latxa_megatron.convert.safetensors_writer import Entry, write_safetensors
from latxa_megatron.model.llama import LlamaShape

SIZES = {"8b": (32, 4096, 14336, 32), "70b": (4, 8192, 28672, 64)}
FILE_BYTES = 5_000_000_000
PIECE = 16 << 20


def write_model(directory: Path, kind: str, layers: int | None, vocab: int) -> None:
    """A Hugging Face directory of random weights."""
    usual, hidden, ffn, heads = SIZES[kind]
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "num_hidden_layers": layers or usual,
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "num_attention_heads": heads,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": vocab,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "hidden_act": "silu",
        "torch_dtype": "bfloat16",
        "tie_word_embeddings": False,
    }
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(config))
    shape = LlamaShape.from_hf(directory)
    names = [
        name.format(layer) for row in rows(shape) for name in row.hf for layer in (range(shape.layers) if row.in_layers else [0])
    ]
    names.sort(
        key=lambda name: (name.startswith("lm_head"), "layers." in name, int(name.split(".")[2]) if "layers." in name else 0)
    )
    files: list[list[str]] = [[]]
    held = 0
    for name in names:
        size = 2 * torch.Size(shape.tensor_shape(name)).numel()
        if held + size > FILE_BYTES:
            files.append([])
            held = 0
        files[-1].append(name)
        held += size
    noise = (torch.randn(PIECE) / 64).bfloat16()
    where = {}
    for i, some in enumerate(files):
        file = f"model-{i + 1:05d}-of-{len(files):05d}.safetensors"
        entries = [Entry(n, torch.bfloat16, shape.tensor_shape(n), pieces(noise, shape.tensor_shape(n), n)) for n in some]
        write_safetensors(directory / file, entries, {})
        where.update(dict.fromkeys(some, file))
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))


def pieces(noise: torch.Tensor, shape: tuple[int, ...], name: str) -> Iterator[torch.Tensor]:
    """Numbers of which no two tensors have the same: a piece of noise that is rolled by the tensor's name."""
    left = torch.Size(shape).numel()
    mine = noise.roll(sum(name.encode()) * 7919)
    while left:
        yield mine[: min(left, PIECE)]
        left -= min(left, PIECE)


def status(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1e3 for line in lines if line.startswith(field + ":"))


def copy(source: Path, out: Path) -> None:
    shutil.copytree(source, out)


def import_ours(source: Path, out: Path, workers: int) -> None:
    from latxa_megatron.convert.importer import import_hf

    import_hf(source, out, workers=workers)


def export_ours(source: Path, out: Path, workers: int) -> None:
    from latxa_megatron.convert.exporter import export_hf

    export_hf(source, out, workers=workers)


def verify_ours(source: Path, out: Path, workers: int) -> None:
    from latxa_megatron.convert.verify import verify

    verify(source, out, workers=workers)


def import_whole(source: Path, out: Path) -> None:
    """As peers do it: the whole model in memory, first as transformers has it, then as megatron-core does."""
    import transformers
    from megatron.core import dist_checkpointing

    from latxa_megatron.convert.names import runs
    from latxa_megatron.model.gpt import build_model
    from latxa_megatron.model.layout import Layout, Precision
    from latxa_megatron.train import checkpoint
    from latxa_megatron.train.distributed import connected, spread

    given = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16).state_dict()
    shape = LlamaShape.from_hf(source)
    with torch.no_grad(), connected():
        spread(Layout(), seed=1)
        model = build_model(shape, Layout(), Precision(torch.bfloat16))[0]
        weights = dict(model.named_parameters())
        norms = {"self_attention.linear_qkv.layer_norm_": "input_layernorm.", "mlp.linear_fc1.layer_norm_": "pre_mlp_layernorm."}
        for row in rows(shape):
            for layer in range(shape.layers) if row.in_layers else [0]:
                parts = [given[name.format(layer)] for name in row.hf]
                found = torch.cat([parts[run.part][run.start : run.start + run.rows] for run in runs(shape, row)])
                name = row.mcore.replace("decoder.layers.", f"decoder.layers.{layer}.")
                for stored, own in norms.items():
                    name = name.replace(stored, own)
                weights[name].copy_(found)
        out.mkdir(parents=True)
        dist_checkpointing.save(model.sharded_state_dict(metadata=dict(checkpoint.CONTENT)), str(out))


def worker(way: Callable[[Path, Path], None], source: Path, out: Path, results) -> None:
    import latxa_megatron.convert.exporter
    import latxa_megatron.convert.importer
    import latxa_megatron.convert.verify  # noqa: F401

    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak
    began = time.perf_counter()
    way(source, out)
    os.sync()
    results.put((time.perf_counter() - began, status("VmHWM") - before))


def drop(directory: Path) -> None:
    """Forget what the page cache holds of files."""
    for path in directory.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measured(name: str, way: Callable[[Path, Path], None], source: Path, out: Path, size: int) -> float:
    drop(source)
    if out.exists():
        drop(out)
    context = get_context("spawn")
    results = context.SimpleQueue()
    process = context.Process(target=worker, args=(way, source, out, results))
    process.start()
    process.join()
    if process.exitcode:
        print(f"| {name} | failed | | |")
        return 0.0
    seconds, peak = results.get()
    print(f"| {name} | {seconds:.1f} | {size / seconds / 1e6:,.0f} | {peak:,.0f} |", flush=True)
    return seconds


def same_weights(one: Path, other: Path) -> bool:
    found, back = HfTensors(one), HfTensors(other)
    if set(found.names()) != set(back.names()):
        return False
    return all(all(map(torch.equal, found.blocks(name, PIECE), back.blocks(name, PIECE))) for name in found.names())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SIZES, default="8b")
    parser.add_argument("--layers", type=int)
    parser.add_argument("--vocab", type=int, default=128256)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--peer", action="store_true", help="also the way that holds the whole model in memory")
    parser.add_argument("--directory", type=Path, help="where everything is written, and removed again")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.directory) as name:
        place = Path(name)
        write_model(place / "hf", arguments.shape, arguments.layers, arguments.vocab)
        size = sum(path.stat().st_size for path in (place / "hf").iterdir())
        print(f"{size / 1e9:.1f} GB")
        print("| way | seconds | MB/s | MB of memory |")
        print("| --- | --- | --- | --- |")
        cp = measured("cp", copy, place / "hf", place / "copy", size)
        shutil.rmtree(place / "copy")
        peer = 0.0
        if arguments.peer:
            peer = measured("the whole model: transformers + GPTModel", import_whole, place / "hf", place / "peer", size)
            shutil.rmtree(place / "peer", ignore_errors=True)
        ways = {way.__name__: partial(way, workers=arguments.workers) for way in (import_ours, export_ours, verify_ours)}
        there = measured("latxa convert import", ways["import_ours"], place / "hf", place / "megatron", size)
        back = measured("latxa convert export", ways["export_ours"], place / "megatron", place / "back", size)
        same = same_weights(place / "hf", place / "back")
        shutil.rmtree(place / "back")
        measured("latxa convert verify", ways["verify_ours"], place / "hf", place / "megatron", size)
        print(f"of cp's speed: import {cp / there:.2f}, export {cp / back:.2f}; the same weights: {same}")
        if peer:
            print(f"the whole model takes {peer / there:.1f} times as long")


if __name__ == "__main__":
    main()
