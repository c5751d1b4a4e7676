"""What can be wrong inside an export whose files have the right hashes: its manifest's numbers, its indexes and its records."""

from itertools import pairwise
from typing import Any

import numpy as np

from latxa_megatron import _core
from latxa_megatron.data import export_parquet
from latxa_megatron.data.exported import SUFFIXES, Export, ExportReader
from latxa_megatron.errors import LatxaError
from latxa_megatron.files import as_json

_POSITIONS = 1 << 20
"""Positions read at once."""


def file_list_faults(export: Export) -> list[str]:
    """What the manifest says of its files that cannot be."""
    files, step = export.manifest["files"], int(export.manifest["samples_per_file"])
    faults = []
    if [entry["name"] for entry in files] != [f"{i:05d}" for i in range(len(files))]:
        faults.append("its files are not numbered through")
    if [entry["samples"] for entry in files] != [min(step, len(export) - first) for first in range(0, len(export), step)]:
        faults.append(f"its files do not hold {len(export)} samples, {step} in each")
    for entry in files:
        if set(entry["sha256"]) != set(SUFFIXES[export.layout]):
            faults.append(
                f"file {entry['name']} has hashes of {sorted(entry['sha256'])}, not of {sorted(SUFFIXES[export.layout])}"
            )
    return faults


def side_files(export: Export) -> dict[str, bytes]:
    """Files that follow from the manifest, and what they hold."""
    if export.layout == "records":
        return {}
    return {export_parquet.METADATA: as_json(export_parquet.metadata(export.manifest["files"], export.seq_length)).encode()}


def unreadable(export: Export, entry: dict[str, Any]) -> list[tuple[str, str]]:
    """(file, what) for records that training could not read, or that are not what the index and the manifest say."""
    reader = ExportReader(export)  # one for each file: threads share none
    records = f"{entry['name']}.records"
    found = {"documents": 0, "positions": 0, "trained_positions": 0}
    first = int(entry["name"]) * int(export.manifest["samples_per_file"])
    step = max(_POSITIONS // export.seq_length, 1)
    try:
        if (there := len(reader.file(int(entry["name"])))) != entry["samples"]:
            return [(f"{entry['name']}.index", f"has {there} records, the manifest says {entry['samples']}")]
        for begin in range(first, first + entry["samples"], step):
            samples = list(range(begin, min(begin + step, first + entry["samples"])))
            arrays = reader.batch(samples)
            [(lengths, first_documents)] = reader.documents(begin, samples[-1] + 1)
            if not np.array_equal(_borders(lengths, first_documents, export.seq_length), arrays["cu_seqlens"]):
                return [(f"{entry['name']}.index", f"has other documents than the records from sample {begin} on")]
            ids = np.stack([arrays["tokens"], arrays["labels"]]).view(np.uint64)  # a negative id is then the largest of all
            if ids.max() >= export.vocab_size:
                sample = samples[int((ids >= export.vocab_size).any((0, 2)).argmax())]
                return [(records, f"sample {sample} has token ids that are not below the vocabulary's {export.vocab_size}")]
            found["documents"] += len(lengths)
            found["positions"] += int(lengths.sum())
            found["trained_positions"] += int(arrays["loss_mask"].sum(dtype=np.float64))
    except (LatxaError, _core.StoreError) as error:
        text = str(error).removesuffix("; export again")
        name = next((f"{entry['name']}.{s}" for s in SUFFIXES["records"] if f"{entry['name']}.{s}: " in text), records)
        return [(name, text.partition(f"{name}: ")[2] or text)]
    return [
        (records, f"has {count} {name.replace('_', ' ')}, the manifest says {entry[name]}")
        for name, count in found.items()
        if count != entry[name]
    ]


def _borders(lengths: Any, first_documents: Any, seq_length: int) -> Any:
    """cu_seqlens of samples with these documents: each sample's, and what they leave of it, end to end."""
    pieces = [np.zeros(1, np.int64)]
    for first, last in pairwise(first_documents.tolist()):
        left = seq_length - int(lengths[first:last].sum())
        pieces += [lengths[first:last], np.full(int(left != 0), left)]
    return np.cumsum(np.concatenate(pieces))
