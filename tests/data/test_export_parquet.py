"""Parquet exports, read with pyarrow as Megatron-Bridge reads packed rows: the batches are those of the plan.

Bridge cannot be installed beside the tests, so what its dataset does with a row is done here as its code documents it: find the
files of a directory by their names, in order; of each document the last token is no input, the first no label, and loss_mask says
for each input whether its label is trained; what is left up to the sequence length is padding, and a document of its own.
"""

import json
from itertools import pairwise

import numpy as np
import pytest

from latxa_megatron.data import export as exporting
from latxa_megatron.data.dataset import PackedDataset
from latxa_megatron.data.export import export
from latxa_megatron.data.mixture import Mix
from latxa_megatron.data.packing import pack
from latxa_megatron.errors import LatxaError
from tests.data.test_verify import faults
from tests.data.writers import write_store

SEQ_LENGTH = 40


@pytest.fixture
def plan(tmp_path):
    """Documents and conversations, some longer than a sample."""
    draws = np.random.default_rng(3)
    texts = [(draws.integers(1, 500, n).tolist(), [(0, n)]) for n in draws.integers(2, 30, 200).tolist()]
    chats = [(draws.integers(1, 500, n).tolist(), [(1, n // 3), (n // 2, n)]) for n in draws.integers(6, 90, 100).tolist()]
    store = write_store(tmp_path / "store", [("eu", texts), ("chat", chats)])
    return pack(tmp_path / "plan", [Mix(store, {"eu": 2.0})], seq_length=SEQ_LENGTH, seed=1).directory


@pytest.fixture
def parquet():
    return pytest.importorskip("pyarrow.parquet")


@pytest.fixture
def made(plan, tmp_path, monkeypatch, parquet):
    monkeypatch.setattr(exporting, "FILE_POSITIONS", 50 * SEQ_LENGTH)
    return export(tmp_path / "export", plan, layout="parquet", workers=2).directory


def collate(row):
    """What Bridge's collate_fn makes of a row, padded to the sequence length."""
    ids, starts, trained = (row[name] for name in ("input_ids", "seq_start_id", "loss_mask"))
    assert starts[0] == 0
    assert len(trained) == len(ids)
    borders = [*starts, len(ids)]
    found = {"tokens": [], "labels": [], "loss_mask": [], "position_ids": []}
    cu_seqlens = [0]
    for start, end in pairwise(borders):
        found["tokens"] += ids[start : end - 1]
        found["labels"] += ids[start + 1 : end]
        found["loss_mask"] += trained[start : end - 1]
        found["position_ids"] += range(end - start - 1)
        assert trained[end - 1] == 0
        cu_seqlens.append(cu_seqlens[-1] + end - start - 1)
    if cu_seqlens[-1] < SEQ_LENGTH:
        cu_seqlens.append(SEQ_LENGTH)
    return found, cu_seqlens


def test_bridge_reads_the_samples_of_the_plan_in_their_order(made, plan, parquet):
    files = sorted(made.glob("*.parquet"))
    dataset = PackedDataset(plan)
    rows = [row for file in files for row in parquet.read_table(file).to_pylist()]
    assert len(files) > 2
    assert all(parquet.read_metadata(file).num_rows == 50 for file in files[:-1])
    assert len(rows) == len(dataset)
    padded = 0
    for number, row in enumerate(rows):
        batch = dataset.batch([number])
        found, cu_seqlens = collate(row)
        assert cu_seqlens == batch.cu_seqlens.tolist()
        for name, values in found.items():
            used = len(values)
            assert values == getattr(batch, name)[0, :used].tolist()
            assert name != "loss_mask" or batch.loss_mask[0, used:].sum() == 0
        padded += used < SEQ_LENGTH
    assert padded, "there should be padding"


def test_columns_and_row_groups_are_those_that_bridge_asks_for(made, parquet):
    for file in made.glob("*.parquet"):
        assert file.name.endswith(".idx.parquet")
        types = {field.name: str(field.type.value_type) for field in parquet.read_schema(file)}
        assert types == {"input_ids": "int32", "loss_mask": "int8", "seq_start_id": "int32"}
        groups = parquet.read_metadata(file)
        assert {groups.row_group(i).num_rows for i in range(groups.num_row_groups - 1)} <= {16}


def test_the_packing_metadata_is_that_of_the_plan(made, plan):
    [found] = json.loads((made / "packing_metadata.json").read_text())
    dataset = PackedDataset(plan)
    rows = [dataset.document_positions(n, n + 1).tolist() for n in range(len(dataset))]
    filled = [sum(row) for row in rows]
    assert found == {
        "dataset_max_seqlen": max(max(row) for row in rows),
        "max_samples_per_bin": max(map(len, rows)),
        "packing_factor": round(sum(map(len, rows)) / len(rows), 2),
        "packing_efficiency": round(100 * sum(filled) / len(rows) / SEQ_LENGTH, 2),
        "pack_size": SEQ_LENGTH,
        "min_packed_seqlen": min(filled),
    }


def test_verify_and_training_know_parquet_exports(made, monkeypatch):
    assert faults(made, workers=2) == []
    for name in ("00001.idx.parquet", "packing_metadata.json"):
        before = (made / name).read_bytes()
        (made / name).write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
        assert faults(made) == [f"{made / name}: is not the file that was written: its SHA-256 is not the manifest's"]
        (made / name).write_bytes(before)
    with pytest.raises(LatxaError, match="holds Parquet for Megatron-Bridge"):
        PackedDataset(made)


def test_without_pyarrow_the_extra_is_named(plan, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(LatxaError, match=r"pip install 'latxa-megatron\[parquet\]'"):
        export(tmp_path / "export", plan, layout="parquet")
