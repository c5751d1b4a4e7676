"""Time and efficiency of the C++ best-fit decreasing packing, on log-normal document lengths.

    python benchmarks/packing.py [--documents 1000000]

Prints the seconds of the median of five runs, the share of positions filled, and the same for Python's first-fit decreasing
(the textbook loop, on a hundredth of the documents) as a ratio per document.
"""

import argparse
import statistics
import time

import numpy as np

from latxa_megatron import _core

CAPACITY = 8192


def lengths(n: int) -> np.ndarray:
    """Mean 600, sigma 1, cut to 16..8192."""
    draws = np.random.default_rng(0).lognormal(np.log(600) - 0.5, 1.0, n)
    return np.clip(np.round(draws), 16, CAPACITY).astype(np.uint32)


def first_fit_decreasing(sizes: list[int]) -> int:
    rooms: list[int] = []
    for size in sorted(sizes, reverse=True):
        for i, room in enumerate(rooms):
            if room >= size:
                rooms[i] -= size
                break
        else:
            rooms.append(CAPACITY - size)
    return len(rooms)


def seconds(call) -> float:
    times = []
    for _ in range(5):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=1_000_000)
    n = parser.parse_args().documents
    sizes = lengths(n)
    ours = seconds(lambda: _core.best_fit_decreasing(sizes, CAPACITY))
    rows = len(_core.best_fit_decreasing(sizes, CAPACITY)[0]) - 1
    print(f"C++ best fit:       {n:>9,} documents  {ours:8.4f} s  {sizes.sum() / rows / CAPACITY:.4%} filled")
    few = sizes[: max(n // 100, 1)]
    began = time.perf_counter()
    bins = first_fit_decreasing(few.tolist())
    python = time.perf_counter() - began
    print(f"Python first fit:   {len(few):>9,} documents  {python:8.4f} s  {few.sum() / bins / CAPACITY:.4%} filled")
    print(f"per document: {(python / len(few)) / (ours / n):,.0f}x")


if __name__ == "__main__":
    main()
