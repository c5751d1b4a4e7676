"""Time and efficiency of the C++ best-fit decreasing packing, beside what other frameworks pack with, on the same lengths.

    python benchmarks/packing.py [--documents 1000000]

Document lengths are log-normal (mean 600, sigma 1). Peers run where they are installed, each in the way that its own training
takes, and on fewer documents where it is slow: TRL's pack_dataset (bfd), axolotl's multipack (groups of 100,000, one process) and
Megatron-Bridge's packing strategy; and Python's first-fit decreasing, the textbook loop. What they need:

    pip install --no-deps --target peers trl axolotl numba llvmlite megatron-bridge
    PYTHONPATH=peers python benchmarks/packing.py

Prints seconds (ours: the median of five), the share of positions filled, and the time per document as a multiple of ours.
"""

import argparse
import runpy
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from latxa_megatron import _core

CAPACITY = 8192
GROUP = 100_000


def lengths(n: int) -> np.ndarray:
    """Mean 600, sigma 1, cut to 16..8192."""
    draws = np.random.default_rng(0).lognormal(np.log(600) - 0.5, 1.0, n)
    return np.clip(np.round(draws), 16, CAPACITY).astype(np.uint32)


def ours(sizes: np.ndarray) -> Callable[[], int]:
    return lambda: len(_core.best_fit_decreasing(sizes, CAPACITY)[0]) - 1


def textbook(sizes: np.ndarray) -> Callable[[], int]:
    def pack() -> int:
        rooms: list[int] = []
        for size in sorted(sizes.tolist(), reverse=True):
            for i, room in enumerate(rooms):
                if room >= size:
                    rooms[i] -= size
                    break
            else:
                rooms.append(CAPACITY - size)
        return len(rooms)

    return pack


def trl(sizes: np.ndarray) -> Callable[[], int]:
    """Packs the documents themselves, so it gets some."""
    import datasets
    import pyarrow as pa

    pack_dataset = names_in("trl/data_utils.py")["pack_dataset"]
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    ids = pa.LargeListArray.from_arrays(offsets, np.zeros(offsets[-1], np.int32))
    dataset = datasets.Dataset(pa.table({"input_ids": ids}))
    datasets.disable_progress_bars()
    return lambda: len(pack_dataset(dataset, CAPACITY, "bfd"))


def axolotl(sizes: np.ndarray) -> Callable[[], int]:
    from axolotl.utils.samplers.multipack import pack_parallel

    def pack(some: np.ndarray) -> int:
        return len(pack_parallel(some, CAPACITY, GROUP, CAPACITY, num_processes=1, safe_mode=False))

    pack(sizes[:100].astype(np.int64))  # compiles it
    return lambda: pack(sizes.astype(np.int64))


def bridge(sizes: np.ndarray) -> Callable[[], int]:
    pack = names_in("megatron/bridge/data/datasets/packing_utils.py")["create_packing_strategy"]
    histogram = np.bincount(sizes, minlength=CAPACITY + 1).tolist()
    return lambda: len(pack(histogram, CAPACITY, "first_fit_decreasing")[0])


def names_in(file: str) -> dict[str, Any]:
    """What a file of an installed package defines, without the imports of the package."""
    paths = (path for place in sys.path if (path := Path(place, file)).is_file())
    if (path := next(paths, None)) is None:
        raise ModuleNotFoundError(name=file)
    return runpy.run_path(str(path))


WAYS = {  # what it packs with, and on what part of the documents
    "Python first fit decreasing": (textbook, 0.01),
    "TRL pack_dataset, bfd": (trl, 0.1),
    "axolotl multipack": (axolotl, 1.0),
    "Megatron-Bridge packing strategy": (bridge, 0.02),
}


def seconds(call: Callable[[], int], runs: int) -> tuple[float, int]:
    """Median of so many runs, and the rows."""
    times, rows = [], 0
    for _ in range(runs):
        began = time.perf_counter()
        rows = call()
        times.append(time.perf_counter() - began)
    return statistics.median(times), rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=1_000_000)
    n = parser.parse_args().documents
    sizes = lengths(n)
    taken, rows = seconds(ours(sizes), 5)
    print("| what | documents | seconds | filled | time per document |")
    print("| --- | --- | --- | --- | --- |")
    print(f"| C++ best fit decreasing | {n:,} | {taken:.4f} | {sizes.sum() / rows / CAPACITY:.4%} | 1 |", flush=True)
    for name, (way, part) in WAYS.items():
        few = sizes[: max(round(n * part), 1)]
        try:
            call = way(few)
        except ImportError as error:
            print(f"| {name} | - | {error.name or error} is not installed | | |")
            continue
        theirs, rows = seconds(call, 1)
        ratio = theirs / len(few) / (taken / n)
        print(f"| {name} | {len(few):,} | {theirs:.3f} | {few.sum() / rows / CAPACITY:.4%} | {ratio:,.0f} |", flush=True)


if __name__ == "__main__":
    main()
