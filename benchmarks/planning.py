"""Time and memory of a plan and its order over a simulated store, beside megatron-core's GPTDataset over the same files.

    python benchmarks/planning.py [--documents 4300000] [--epochs 4] [--concat] [--runs 5] [--no-peer] [--directory DIR]

The store has shards of a million documents with log-normal lengths (mean 600, sigma 1), real indexes and sparse, empty token
files; shards share one index. Each side runs in a process of its own, started with all modules loaded, and prints its median of
so many runs: ours writes the plan (fsynced) and evaluates the place of every sample; GPTDataset builds its document, sample and
shuffle indexes of each
shard, which it does not fsync. Memory is the peak above what the process had before, of anonymous pages (its own) and of all
(mapped files of the page cache too). `--no-peer` leaves GPTDataset out.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import sys
import tempfile
import threading
import time
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from latxa_megatron.data.store import FORMAT, MANIFEST, VERSION, manifest_fingerprint
from latxa_megatron.files import write_json

SEQ_LENGTH = 8192
SHARD = 1_000_000


def write_store(directory: Path, documents: int) -> int:
    """A simulated store of about so many documents; the tokens in it."""
    count = max(1, round(documents / SHARD))
    n = documents // count
    draws = np.random.default_rng(0).lognormal(np.log(600) - 0.5, 1.0, n)
    lengths = np.maximum(np.round(draws), 2).astype("<i4")
    directory.mkdir(parents=True)
    with (directory / "00000.idx").open("wb") as file:
        file.write(b"MMIDIDX\x00\x00" + np.array([1], "<u8").tobytes() + b"\x04" + np.array([n, n + 1], "<u8").tobytes())
        file.write(lengths.tobytes())
        file.write(np.concatenate([[0], np.cumsum(lengths[:-1], dtype="<i8") * 4]).astype("<i8").tobytes())
        file.write(np.arange(n + 1, dtype="<i8").tobytes())
    tokens = int(lengths.sum(dtype=np.int64))
    with (directory / "00000.bin").open("wb") as file:
        file.truncate(4 * tokens)
    for i in range(1, count):
        for suffix in ("idx", "bin"):
            os.link(directory / f"00000.{suffix}", directory / f"{i:05d}.{suffix}")
    shard = {"source": "eu", "documents": n, "tokens": tokens, "trained_tokens": tokens, "sha256": {}}
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "tokenizer": {"fingerprint": "none", "vocab_size": 128256, "bos": None, "document_end": 0, "template": None},
        "settings": {},
        "sources": {"eu": {"hold_out": 0.0, "files": []}},
        "mask": "all",
        "shards": [{"name": f"{i:05d}", **shard} for i in range(count)],
    }
    manifest["fingerprint"] = manifest_fingerprint(manifest)
    write_json(directory / MANIFEST, manifest)
    return tokens * count


def status(field: str) -> float:
    """A field of /proc/self/status in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1e3 for line in lines if line.startswith(field + ":"))


def measured(call, results, runs: int) -> None:
    """Sends medians of a call's seconds and CPU seconds, the two peaks in MB, and what it returned."""
    before, anonymous, stop = status("VmRSS"), status("RssAnon"), threading.Event()
    highest = [0.0]

    def watch() -> None:
        while not stop.wait(0.005):
            highest[0] = max(highest[0], status("RssAnon") - anonymous)

    watcher = threading.Thread(target=watch)
    watcher.start()
    times = []
    for _ in range(runs):
        began, cpu = time.perf_counter(), time.process_time()
        facts = call()
        times.append((time.perf_counter() - began, time.process_time() - cpu))
    stop.set()
    watcher.join()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3 - before
    results.put((statistics.median(t for t, _ in times), statistics.median(c for _, c in times), highest[0], peak, facts))


def ours(store: Path, epochs: float, packing: str, runs: int, results) -> None:
    from latxa_megatron.data.mixture import Mix
    from latxa_megatron.data.packing import pack

    def call() -> str:
        out = store.parent / "plan"
        shutil.rmtree(out, ignore_errors=True)
        plan = pack(out, [Mix(store, {"eu": epochs})], seq_length=SEQ_LENGTH, seed=33, packing=packing)
        for first in range(0, len(plan), 1 << 20):
            plan.rows(first, min(first + (1 << 20), len(plan)))
        size = sum(path.stat().st_size for path in out.iterdir())
        return f"{len(plan):,} samples, {plan.efficiency():.4%} filled, {size / 1e6:.0f} MB of files"

    measured(call, results, runs)


def peer(store: Path, epochs: float, tokens: int, runs: int, results) -> None:
    """GPTDataset over the same shards, blended as Megatron blends files."""
    import torch
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
    from megatron.core.datasets.indexed_dataset import IndexedDataset
    from megatron.core.datasets.utils import Split

    shards = len(json.loads((store / MANIFEST).read_text())["shards"])
    tokenizer = SimpleNamespace(eod=0, vocab_size=128256, unique_identifiers={"class": "none"}, pad=0)

    def call() -> str:
        samples = 0
        for i in range(shards):
            with tempfile.TemporaryDirectory(dir=store.parent) as cache:
                config = GPTDatasetConfig(
                    random_seed=33,
                    sequence_length=SEQ_LENGTH,
                    blend=([str(store / f"{i:05d}")], None),
                    split="1,0,0",
                    path_to_cache=cache,
                    tokenizer=tokenizer,
                    reset_position_ids=False,
                    reset_attention_mask=False,
                    eod_mask_loss=False,
                )
                indexed = IndexedDataset(str(store / f"{i:05d}"))
                wanted = int(tokens / shards * epochs / SEQ_LENGTH)
                documents = np.arange(len(indexed), dtype=np.int32)
                made = GPTDataset(indexed, str(store / f"{i:05d}"), documents, wanted, Split.train, config)
                samples += len(made)
        return f"{samples:,} samples"

    torch.set_num_threads(1)
    measured(call, results, runs)


def alone(function, *arguments):
    """What a function sends from a process of its own."""
    context = get_context("spawn")
    results = context.Queue()
    process = context.Process(target=function, args=(*arguments, results))
    process.start()
    while process.is_alive() and results.empty():
        process.join(0.2)
    if results.empty() and process.exitcode:
        sys.exit(f"{function.__name__} ended with status {process.exitcode}")
    found = results.get()
    process.join()
    return found


def line(name: str, found) -> None:
    seconds, cpu, anonymous, peak, facts = found
    print(
        f"{name:<12} {seconds:8.3f} s  {cpu:8.3f} s of CPU  {anonymous:6.0f} MB own  {peak:6.0f} MB with files  {facts}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=4_300_000)
    parser.add_argument("--epochs", type=float, default=4)
    parser.add_argument("--concat", action="store_true")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--no-peer", action="store_true")
    parser.add_argument("--directory", type=Path, help="where the store and the plan are written, and removed again")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.directory) as directory:
        store = Path(directory, "store")
        tokens = write_store(store, arguments.documents)
        print(f"{arguments.documents:,} documents, {tokens:,} tokens, {arguments.epochs:g} epochs")
        mine = alone(ours, store, arguments.epochs, "concat" if arguments.concat else "best_fit", arguments.runs)
        line("pack plan", mine)
        if not arguments.no_peer:
            theirs = alone(peer, store, arguments.epochs, tokens, arguments.runs)
            line("GPTDataset", theirs)
            wall, cpu, _, memory = (theirs[i] / mine[i] for i in range(4))
            print(f"GPTDataset / pack plan: {wall:.2f}x time, {cpu:.2f}x CPU, {memory:.2f}x memory")


if __name__ == "__main__":
    main()
