"""Speed of `latxa data export`, beside the same rows written to Parquet from Python lists, which is Megatron-Bridge's way.

    python benchmarks/exporting.py [--documents 100000] [--runs 3] [--directory DIR]

The store is that of benchmarks/reading.py. Each export is fsynced; a line has the median of so many runs, in positions for each
second and each second of CPU. The peer makes lists of 200 samples and hands them to pyarrow, in row groups of 500. The last
column is the median time of a random row from the Parquet files, a row group being read for each: the reason for their size.
"""

import argparse
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from reading import SEQ_LENGTH, write_store

from latxa_megatron.data import export as exporting
from latxa_megatron.data.dataset import PackedDataset
from latxa_megatron.data.export import export
from latxa_megatron.data.mixture import Mix
from latxa_megatron.data.packing import pack


def from_lists(plan: Path, out: Path, samples: int) -> None:
    """The first samples as Parquet, through Python lists."""
    dataset = PackedDataset(plan)
    assert not isinstance(dataset.plan, exporting.Export)
    shards = dataset.plan.stores[0].shards
    out.mkdir()
    rows: dict[str, list[list[int]]] = {"input_ids": [], "loss_mask": [], "seq_start_id": []}
    for row in dataset.plan.rows(0, samples).tolist():
        ids: list[int] = []
        trained: list[int] = []
        starts = []
        for slice_ in dataset.plan.slices[dataset.plan.row_offsets[row] : dataset.plan.row_offsets[row + 1]].tolist():
            _, shard, document, start, length = slice_
            mask = [0] * length
            for a, b in shards[shard].spans(document).tolist():
                for t in range(max(a, start + 1), min(b, start + length)):
                    mask[t - start - 1] = 1
            starts.append(len(ids))
            ids.extend(shards[shard].tokens(document)[start : start + length].tolist())
            trained.extend(mask)
        for name, values in zip(rows, (ids, trained, starts), strict=True):
            rows[name].append(values)
    table = pa.table({**rows, "loss_mask": pa.array(rows["loss_mask"], pa.list_(pa.int8()))})
    pq.write_table(table, out / "00000.idx.parquet", row_group_size=500)


def row_milliseconds(directory: Path) -> float:
    draw, times = random.Random(33), []
    files = [pq.ParquetFile(file) for file in sorted(directory.glob("*.parquet"))]
    for _ in range(20):
        file = draw.choice(files)
        began = time.perf_counter()
        table = file.read_row_group(draw.randrange(file.num_row_groups))
        row = draw.randrange(table.num_rows)
        for name in table.column_names:
            table.column(name)[row].as_py()
        times.append(time.perf_counter() - began)
    return statistics.median(times) * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=100_000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--directory", type=Path, help="where everything is written, and removed again")
    arguments = parser.parse_args()
    exporting.FILE_POSITIONS = 1 << 22  # or so small a plan would be one file, for one thread
    with tempfile.TemporaryDirectory(dir=arguments.directory) as directory:
        root = Path(directory)
        write_store(root / "store", arguments.documents)
        plan = pack(root / "plan", [Mix(root / "store", {})], seq_length=SEQ_LENGTH, seed=33)
        peer = min(200, len(plan))
        sides: dict[str, tuple[int, Callable[[], object]]] = {
            f"{layout}, {workers} thread{'s' * (workers > 1)}": (
                len(plan),
                lambda layout=layout, workers=workers: export(root / "out", root / "plan", layout=layout, workers=workers),
            )
            for layout in ("records", "parquet")
            for workers in (1, 2)
        }
        sides["Parquet from lists"] = (peer, lambda: from_lists(root / "plan", root / "out", peer))
        rates: dict[str, float] = {}
        for name, (samples, call) in sides.items():
            times = []
            for _ in range(arguments.runs):
                shutil.rmtree(root / "out", ignore_errors=True)
                began, cpu = time.perf_counter(), time.process_time()
                call()
                times.append((time.perf_counter() - began, time.process_time() - cpu))
            wall, cpu = (samples * SEQ_LENGTH / statistics.median(each) / 1e6 for each in zip(*times, strict=True))
            rates[name] = wall
            row = "" if "records" in name else f"  {row_milliseconds(root / 'out'):6.1f} ms a row"
            print(f"{name:<20} {wall:7.1f} Mtok/s  {cpu:7.1f} per CPU second{row}", flush=True)
        print(f"records, 1 thread / Parquet from lists: {rates['records, 1 thread'] / rates['Parquet from lists']:.0f}x")


if __name__ == "__main__":
    main()
