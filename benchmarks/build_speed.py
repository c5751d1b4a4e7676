"""Speed and memory of `latxa data build` on one core, beside tokenizers + megatron-core's own writer on the same text.

    python benchmarks/build_speed.py --tokenizer models/Llama-3.1-8B --corpus 'corpus/*.jsonl'

Each run is a process with one thread, on a quarter of the text and on all of it, five times in turn. What counts are the CPU
seconds (user and system) from when the tokenizer is ready, and proved, to the end, with the hashing of the sources, which comes
before and is timed again; the least of the five, for what other processes do to the caches only adds. The rate is of the
further three quarters: what the first meeting with a word costs is in the quarter. Memory is what the process took at most,
with libraries and tokenizer, and how much of it came after that start. The peer is the loop of Megatron-LM's
preprocess_data.py: parse a line, encode it, add it to an IndexedDatasetBuilder; it gets the first 4 MB, for it is slow. "zstd":
compressed at level 3.
"""

import argparse
import glob
import json
import os
import resource
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ONE_THREAD = {"RAYON_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
REPEATS = 5


@dataclass
class Used:
    """CPU seconds and MB at most of this process, so far."""

    cpu: float
    peak_mb: float


def used() -> Used:
    now = resource.getrusage(resource.RUSAGE_SELF)
    return Used(now.ru_utime + now.ru_stime, now.ru_maxrss / 1e3)


def build(tokenizer: Path, files: list[str], out: Path) -> tuple[int, Used]:
    """Tokens of a store of the files, and what was used when its tokenizer was ready; hashes the files again."""
    from latxa_megatron.data.build import build_store
    from latxa_megatron.data.sources import find
    from latxa_megatron.files import sha256

    starts = []
    store = build_store(out, tokenizer, [find("corpus", files)], workers=1, say=lambda line: starts.append(used()))
    for file in files:  # as was done before the start: what counts is all after it, and so once
        sha256(Path(file))
    return sum(totals.tokens for totals in store.totals().values()), starts[0]


def build_with_megatron_core(tokenizer: Path, files: list[str], out: Path) -> tuple[int, Used]:
    import numpy
    import torch
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder
    from tokenizers import Tokenizer

    import latxa_megatron.model  # noqa: F401  (makes megatron-core importable without CUDA)

    encode = Tokenizer.from_file(str(tokenizer / "tokenizer.json")).encode
    start = used()
    builder = IndexedDatasetBuilder(f"{out}.bin", dtype=numpy.int32)
    tokens = 0
    for file in files:
        with Path(file).open(encoding="utf-8") as lines:
            for line in lines:
                ids = encode(json.loads(line)["text"]).ids
                builder.add_document(torch.tensor(ids), [len(ids)])
                tokens += len(ids)
    builder.finalize(f"{out}.idx")
    return tokens, start


WAYS = {"latxa": build, "megatron-core": build_with_megatron_core}


def measured(way: str, tokenizer: Path, files: list[str], directory: Path) -> dict[str, float]:
    """tokens, cpu and start (CPU seconds), peak_mb, above_mb of a way in a process of its own."""
    command = [sys.executable, __file__, "--way", way, "--tokenizer", str(tokenizer), "--corpus", *files, "--out", str(directory)]
    done = subprocess.run(command, env={**os.environ, **ONE_THREAD}, text=True, capture_output=True, check=False)
    if done.returncode:
        sys.exit(done.stderr[-4000:])
    return json.loads(done.stdout.splitlines()[-1])


def run_way(way: str, tokenizer: Path, files: list[str], directory: Path) -> None:
    with tempfile.TemporaryDirectory(dir=directory) as place:
        tokens, start = WAYS[way](tokenizer, files, Path(place) / "store")
        end = used()
    facts = {"tokens": tokens, "cpu": end.cpu - start.cpu, "start": start.cpu}
    print(json.dumps({**facts, "peak_mb": end.peak_mb, "above_mb": end.peak_mb - start.peak_mb}))


def first_lines(files: list[str], size: int, out: Path) -> Path:
    with out.open("wb") as beginning:
        for file in files:
            with Path(file).open("rb") as lines:
                for line in lines:
                    if beginning.tell() >= size:
                        return out
                    beginning.write(line)
    return out


def compress(file: Path) -> Path:
    import zstandard

    out = file.with_name(f"{file.name}.zst")
    with file.open("rb") as plain, out.open("wb") as target:
        zstandard.ZstdCompressor(level=3).copy_stream(plain, target)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--corpus", nargs="+", required=True, help="JSONL files or globs with 'text'")
    parser.add_argument("--out", type=Path, default=Path(tempfile.gettempdir()), help="where stores are written and removed")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    files = [file for pattern in arguments.corpus for file in sorted(glob.glob(pattern))]  # noqa: PTH207
    if arguments.way:
        run_way(arguments.way, arguments.tokenizer, files, arguments.out)
        return
    with tempfile.TemporaryDirectory(dir=arguments.out) as place:
        total = sum(Path(file).stat().st_size for file in files)
        texts = {size: first_lines(files, size, Path(place) / f"{size}.jsonl") for size in (1 << 20, 4 << 20, total // 4, total)}
        small, medium, quarter, whole = texts.values()
        runs = {
            "latxa data build, JSONL": ("latxa", (quarter, whole)),
            "latxa data build, zstd": ("latxa", (compress(quarter), compress(whole))),
            "tokenizers + megatron-core's IndexedDatasetBuilder": ("megatron-core", (small, medium)),
        }
        found: dict[str, list[list[dict[str, float]]]] = {name: [] for name in runs}
        for _ in range(REPEATS):
            for name, (way, pair) in runs.items():
                found[name].append([measured(way, arguments.tokenizer, [str(file)], Path(place)) for file in pair])
    rates = {}
    for name, results in found.items():
        less, more = ({key: min(pair[i][key] for pair in results) for key in results[0][i]} for i in (0, 1))
        rate = (more["tokens"] - less["tokens"]) / (more["cpu"] - less["cpu"]) / 1e6
        rates[name] = (rate, more["start"], more["peak_mb"], more["above_mb"], more["tokens"])
    peer = list(rates.values())[-1][0]
    columns = (
        "what",
        "tokens",
        "million tokens per CPU second",
        "times the peer",
        "start, CPU seconds",
        "MB at most",
        "after the start",
    )
    print(f"| {' | '.join(columns)} |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name, (rate, start, peak, above, tokens) in rates.items():
        print(f"| {name} | {tokens:,.0f} | {rate:.2f} | {rate / peer:.1f} | {start:.1f} | {peak:,.0f} | {above:,.0f} |")


if __name__ == "__main__":
    main()
