"""Time of a warm read of one sample of 8192 positions, beside megatron-core's readers of the same shards.

    python benchmarks/reading.py [--documents 100000] [--reads 2000]

The store has one shard of documents and one of conversations, with log-normal lengths (mean 600, sigma 1) and random tokens. Ours
is `PackedDataset.batch([n])` of a plan and of its export: tokens, labels, loss mask, position ids, cu_seqlens and sources, as
tensors. GPTDataset gives tokens, labels, loss mask and position ids, and knows neither document borders nor trained spans; with
`reset_position_ids` it counts positions from each document's start. IndexedDataset.get gives the 8193 raw tokens of one sequence
alone. Each side reads random samples, in turns of a hundred with the others; medians are over all reads, after a pass of each
that is not measured.
"""

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

import latxa_megatron.model  # noqa: F401 (makes megatron-core importable without CUDA)
from latxa_megatron import _core
from latxa_megatron.data.dataset import PackedDataset
from latxa_megatron.data.export import export
from latxa_megatron.data.mixture import Mix
from latxa_megatron.data.packing import pack
from latxa_megatron.data.store import FORMAT, MANIFEST, VERSION, manifest_fingerprint
from latxa_megatron.files import write_json

SEQ_LENGTH = 8192
VOCABULARY = 128256
END = 128001
LONG = 64
"""Documents of two samples' length, which IndexedDataset reads a sample of."""


def write_store(directory: Path, documents: int) -> None:
    """Documents, each trained whole, and as many conversations of three answers, in a shard for each of the two."""
    draws = np.random.default_rng(0)
    directory.mkdir()
    shards = []
    for number, source in enumerate(("corpus", "chat")):
        writer = _core.ShardWriter(str(directory / f"{number:05d}"), 4, True)
        lengths = np.maximum(np.round(draws.lognormal(np.log(600) - 0.5, 1.0, documents // 2)), 16).astype(int)
        lengths[:LONG] = 2 * SEQ_LENGTH
        for length in lengths.tolist():
            tokens = draws.integers(0, END, length, np.int32)
            tokens[-1] = END
            sixth = length // 6
            spans = [[0, length]] if source == "corpus" else [[i * sixth, (i + 1) * sixth] for i in (1, 3, 5)]
            writer.add(tokens, np.array(spans, np.int32))
        writer.finish()
        counts = {"documents": writer.documents, "tokens": writer.tokens, "trained_tokens": writer.trained_tokens}
        shards.append({"name": f"{number:05d}", "source": source, **counts, "sha256": {}})
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "tokenizer": {"fingerprint": "none", "vocab_size": VOCABULARY, "bos": None, "document_end": END, "template": None},
        "settings": {},
        "sources": {shard["source"]: {"hold_out": 0.0, "files": []} for shard in shards},
        "mask": "spans",
        "shards": shards,
    }
    manifest["fingerprint"] = manifest_fingerprint(manifest)
    write_json(directory / MANIFEST, manifest)


def gpt_dataset(prefix: Path, cache: Path, **options: bool):
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
    from megatron.core.datasets.indexed_dataset import IndexedDataset
    from megatron.core.datasets.utils import Split

    config = GPTDatasetConfig(
        random_seed=33,
        sequence_length=SEQ_LENGTH,
        blend=([str(prefix)], None),
        split="1,0,0",
        path_to_cache=str(cache),
        tokenizer=SimpleNamespace(eod=END, vocab_size=VOCABULARY, unique_identifiers={"class": "none"}, pad=0),
        create_attention_mask=False,
        **options,
    )
    indexed = IndexedDataset(str(prefix))
    return GPTDataset(indexed, str(prefix), np.arange(len(indexed), dtype=np.int32), None, Split.train, config)


def sides(root: Path) -> dict[str, tuple[int, Callable[[int], object]]]:
    """By name, how many samples there are and how one is read."""
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    plan, exported = PackedDataset(root / "plan"), PackedDataset(root / "export")
    prefix = root / "store" / "00000"
    plain = {"reset_position_ids": False, "reset_attention_mask": False, "eod_mask_loss": False}
    gpt = gpt_dataset(prefix, root / "cache", **plain)
    resetting = gpt_dataset(prefix, root / "cache", **{**plain, "reset_position_ids": True, "eod_mask_loss": True})
    indexed = IndexedDataset(str(prefix))
    return {
        "plan": (len(plan), lambda n: plan.batch([n])),
        "export": (len(exported), lambda n: exported.batch([n])),
        "GPTDataset": (len(gpt), gpt.__getitem__),
        "GPTDataset, reset": (len(resetting), resetting.__getitem__),
        "IndexedDataset": (LONG, lambda n: indexed.get(n, n, SEQ_LENGTH + 1)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=100_000)
    parser.add_argument("--reads", type=int, default=2000)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        write_store(root / "store", arguments.documents)
        pack(root / "plan", [Mix(root / "store", {})], seq_length=SEQ_LENGTH, seed=33)
        export(root / "export", root / "plan")
        found = sides(root)
        times: dict[str, list[float]] = {name: [] for name in found}
        draw = random.Random(33)
        for count, read in found.values():
            for n in range(count):
                read(n)
        while len(next(iter(times.values()))) < arguments.reads:
            for name, (count, read) in found.items():
                for _ in range(100):
                    n = draw.randrange(count)
                    began = time.perf_counter()
                    read(n)
                    times[name].append(time.perf_counter() - began)
        medians = {name: statistics.median(each) for name, each in times.items()}
        for name, median in medians.items():
            print(f"{name:<18} {median * 1e3:7.4f} ms   {median / medians['plan']:6.2f} x the plan's")


if __name__ == "__main__":
    main()
