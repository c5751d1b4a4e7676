"""Megatron-Bridge's packed Parquet: one row for each sample, of the columns that its GPTSFTPackedParquetDataset asks for.

input_ids has all tokens of a sample's documents end to end, the last one of each too; seq_start_id has where each document
begins; loss_mask has for each token whether the one after it is trained, 0 for a document's last. Bridge takes inputs, labels and
borders from these.
"""

import importlib.util
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from latxa_megatron.errors import LatxaError

METADATA = "packing_metadata.json"
"""What Bridge wants to know of all rows where it pads cu_seqlens (PackedSequenceSpecs.packed_metadata_path)."""

ROWS_PER_GROUP = 16
"""Bridge shuffles rows and reads a whole row group for each: benchmarks/exporting.py has the time of a read at other sizes."""

_Flat = tuple[npt.NDArray[np.int32], npt.NDArray[np.int8], npt.NDArray[np.int64], npt.NDArray[np.int32]]
"""Gatherer.flat: tokens, loss mask, documents of each row, tokens of each document."""


def check_pyarrow() -> None:
    if importlib.util.find_spec("pyarrow") is None:
        raise LatxaError("--format parquet: needs pyarrow; pip install 'latxa-megatron[parquet]'")


def write(file: Path, blocks: Iterable[_Flat]) -> dict[str, Any]:
    """Write blocks of rows as one Parquet file; the manifest's counts of it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema(
        [("input_ids", pa.list_(pa.int32())), ("loss_mask", pa.list_(pa.int8())), ("seq_start_id", pa.list_(pa.int32()))]
    )
    documents = tokens = trained = 0
    longest = most = 0
    shortest = 2**31
    with (
        file.open("wb") as raw,
        pq.ParquetWriter(raw, schema, compression="snappy", use_dictionary=["loss_mask.list.element"]) as writer,
    ):
        for ids, loss_mask, counts, lengths in blocks:
            rows = _offsets(counts)
            starts = _offsets(lengths)
            row_starts = starts[rows]
            within = starts[:-1] - np.repeat(row_starts[:-1], counts)
            columns = [
                pa.ListArray.from_arrays(pa.array(row_starts, pa.int32()), pa.array(ids)),
                pa.ListArray.from_arrays(pa.array(row_starts, pa.int32()), pa.array(loss_mask)),
                pa.ListArray.from_arrays(pa.array(rows, pa.int32()), pa.array(within, pa.int32())),
            ]
            writer.write_table(pa.table(columns, schema=schema), row_group_size=ROWS_PER_GROUP)
            documents += len(lengths)
            tokens += len(ids)
            trained += int(loss_mask.sum(dtype=np.int64))
            longest, most = max(longest, int(lengths.max()) - 1), max(most, int(counts.max()))
            shortest = min(shortest, int((np.diff(row_starts) - counts).min()))
        writer.close()
        raw.flush()
        os.fsync(raw.fileno())
    return {
        "documents": documents,
        "positions": tokens - documents,
        "trained_positions": trained,
        "longest_document": longest,
        "most_documents": most,
        "fewest_positions": shortest,
    }


def _offsets(counts: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])


def metadata(files: list[dict[str, Any]], seq_length: int) -> list[dict[str, Any]]:
    """Bridge's own keys, over all files."""
    samples, documents, positions = (sum(file[key] for file in files) for key in ("samples", "documents", "positions"))
    return [
        {
            "dataset_max_seqlen": max(file["longest_document"] for file in files),
            "max_samples_per_bin": max(file["most_documents"] for file in files),
            "packing_factor": round(documents / samples, 2),
            "packing_efficiency": round(100 * positions / (samples * seq_length), 2),
            "pack_size": seq_length,
            "min_packed_seqlen": min(file["fewest_positions"] for file in files),
        }
    ]
