"""Batches, against a slow gather in plain Python."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latxa_megatron import _core
from latxa_megatron.data.dataset import PackedDataset
from latxa_megatron.data.mixture import Mix
from latxa_megatron.data.packing import pack
from latxa_megatron.data.plan import SLICE
from latxa_megatron.errors import LatxaError
from tests.data.test_store import DAMAGE, damaged
from tests.data.test_store import documents as drawn_documents
from tests.data.writers import write_shard, write_store


def slow_gather(rows, positions: int, pad: int) -> dict[str, list]:
    """rows[r] is a list of (document's ids, its trained spans, start, length, number of its source)."""
    out: dict[str, list] = {name: [] for name in ("tokens", "labels", "loss_mask", "position_ids", "sources")}
    ends = [0]
    for row in rows:
        tokens, labels, mask, places, sources = [], [], [], [], []
        for ids, spans, start, length, source in row:
            trained = {t for a, b in spans for t in range(a, b)}
            for t in range(start, start + length - 1):
                tokens.append(ids[t])
                labels.append(ids[t + 1])
                mask.append(1.0 if t + 1 in trained else 0.0)
                places.append(t - start)
                sources.append(source)
            ends.append(ends[-1] + length - 1)
        left = positions - len(tokens)
        if left:
            ends.append(ends[-1] + left)
        out["tokens"].append(tokens + [pad] * left)
        out["labels"].append(labels + [pad] * left)
        out["loss_mask"].append(mask + [0.0] * left)
        out["position_ids"].append(places + list(range(left)))
        out["sources"].append(sources + [0] * left)
    return {**out, "cu_seqlens": ends}


@settings(max_examples=60)
@given(data=st.data(), seq_length=st.integers(1, 16), masked=st.booleans())
def test_batches_of_a_plan_are_those_of_the_slow_gather(data, seq_length, masked):
    en = [([7, 8], [(0, 1)]), *data.draw(drawn_documents())]
    shards = [("eu", data.draw(drawn_documents())), ("en", en), ("eu", data.draw(drawn_documents()))]
    with tempfile.TemporaryDirectory() as directory:
        store = write_store(Path(directory, "store"), shards, masked=masked)
        plan = pack(Path(directory, "plan"), [Mix(store, {"eu": 2.0})], seq_length=seq_length, seed=1)
        dataset = PackedDataset(plan.directory)
        offsets = np.fromfile(plan.directory / "rows.bin", "<i8")
        slices = np.fromfile(plan.directory / "slices.bin", SLICE)
        samples = data.draw(st.lists(st.integers(0, len(dataset) - 1), min_size=1, max_size=4))
        assert dataset.sources == ["eu", "en"]
        rows = []
        for row in map(plan.row, samples):
            rows.append([])
            for s in slices[offsets[row] : offsets[row + 1]]:
                ids, spans = shards[s["shard"]][1][s["document"]]
                source = [0, 1, 0][s["shard"]]
                rows[-1].append((ids, spans if masked else [(0, len(ids))], int(s["start"]), int(s["length"]), source))
        batch = dataset.batch(samples)
        found = {name: getattr(batch, name).tolist() for name in batch.__dataclass_fields__ if name != "samples"}
        assert found == slow_gather(rows, seq_length, 0)
        assert found["cu_seqlens"][-1] == len(samples) * seq_length


def gatherer(shards, rows) -> _core.Gatherer:
    """rows are lists of slices (store, shard, document, start, length). Shard h of store s has source 10 s + h."""
    numbered = [[(shard, 10 * s + h) for h, shard in enumerate(store)] for s, store in enumerate(shards)]
    offsets = np.cumsum([0, *(len(row) for row in rows)])
    slices = np.array([s for row in rows for s in row], SLICE)
    return _core.Gatherer(numbered, offsets, slices.view("u1"))


@settings(max_examples=60)
@given(data=st.data(), positions=st.integers(24, 60), pad=st.integers(-100, 100))
def test_any_rows_of_any_slices(data, positions, pad):
    """Slices that no packing would make: repeated, overlapping, of several stores and token types."""
    written = [[drawn for _ in range(2) for drawn in [data.draw(drawn_documents(65535))]] for _ in range(2)]
    written = [[[(ids * 2, spans) for ids, spans in shard] for shard in store] for store in written]
    with tempfile.TemporaryDirectory() as directory:
        stores = []
        for s, store in enumerate(written):
            for h, shard in enumerate(store):
                write_shard(Path(directory, f"{s}-{h}"), shard, token_type=(4, 8)[h], masked=s == 0)
            stores.append([_core.Shard(str(Path(directory, f"{s}-{h}")), s == 0) for h in range(len(store))])
        rows, expected = [], []
        for _ in range(data.draw(st.integers(1, 3))):
            rows.append([])
            expected.append([])
            room = positions
            for _ in range(data.draw(st.integers(0, 4))):
                s, h = data.draw(st.integers(0, 1)), data.draw(st.integers(0, 1))
                d = data.draw(st.integers(0, len(written[s][h]) - 1))
                ids, spans = written[s][h][d]
                start = data.draw(st.integers(0, len(ids) - 2))
                length = data.draw(st.integers(2, len(ids) - start))
                if length - 1 > room:
                    break
                room -= length - 1
                rows[-1].append((s, h, d, start, length))
                expected[-1].append((ids, spans if s == 0 else [(0, len(ids))], start, length, 10 * s + h))
        found = gatherer(stores, rows).batch(list(range(len(rows))), positions, pad)
        assert {name: array.tolist() for name, array in found.items()} == slow_gather(expected, positions, pad)
        assert {name: str(array.dtype) for name, array in found.items()} == {
            "tokens": "int64",
            "labels": "int64",
            "loss_mask": "float32",
            "position_ids": "int64",
            "cu_seqlens": "int32",
            "sources": "int64",
        }


@pytest.fixture
def shard(tmp_path):
    write_shard(tmp_path / "00000", [([1, 2, 3, 4, 5], [(0, 5)]), ([6, 7], [(0, 2)])])
    return _core.Shard(str(tmp_path / "00000"), True)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([(1, 0, 0, 0, 2)], "names a shard"),
        ([(0, 1, 0, 0, 2)], "names a shard"),
        ([(0, 0, 2, 0, 2)], "names tokens"),
        ([(0, 0, 2**32 - 1, 0, 2)], "names tokens"),
        ([(0, 0, 0, 4, 2)], "names tokens"),
        ([(0, 0, 0, 0, 6)], "names tokens"),
        ([(0, 0, 0, 2**32 - 1, 2)], "names tokens"),
        ([(0, 0, 0, 2, 2**32 - 1)], "names tokens"),
        ([(0, 0, 0, 0, 1)], "names tokens"),
        ([(0, 0, 0, 0, 0)], "names tokens"),
        ([(0, 0, 0, 0, 5), (0, 0, 1, 0, 2)], "longer than its sequence length"),
    ],
)
def test_a_slice_that_names_no_tokens_is_refused(row, message, shard):
    with pytest.raises(_core.StoreError, match=message):
        gatherer([[shard]], [row]).batch([0], 4, 0)


@pytest.mark.parametrize("offsets", [[0, 3], [1, 0], [-1, 1], [0, 2**63 - 1], [2, 2**62]])
def test_row_offsets_outside_the_slices_are_refused(offsets, shard):
    slices = np.array([(0, 0, 0, 0, 3), (0, 0, 1, 0, 2)], SLICE).view("u1")
    with pytest.raises(_core.StoreError, match="row offsets are damaged"):
        _core.Gatherer([[(shard, 0)]], np.array(offsets), slices).batch([0], 4, 0)


def test_plans_cut_short_are_refused(shard):
    slices = np.array([(0, 0, 0, 0, 3)], SLICE).view("u1")
    for offsets, damaged_slices in (([], slices), ([0, 1], slices[:-1])):
        with pytest.raises(_core.StoreError, match="cut short"):
            _core.Gatherer([[(shard, 0)]], np.array(offsets, np.int64), damaged_slices)
    for row in (1, -1, 2**40):
        with pytest.raises(IndexError):
            _core.Gatherer([[(shard, 0)]], np.array([0, 1]), slices).batch([row], 4, 0)


@pytest.fixture
def plan(tmp_path):
    store = write_store(tmp_path / "store", [("eu", [(list(range(1, n)), [(0, n - 1)]) for n in (9, 5, 30, 3, 17)])])
    return pack(tmp_path / "plan", [Mix(store, {})], seq_length=12, seed=1)


def test_samples_past_the_end_are_an_index_error(plan):
    dataset = PackedDataset(plan.directory)
    assert (len(dataset), dataset.seq_length) == (len(plan), 12)
    for sample in (-1, len(plan)):
        with pytest.raises(IndexError, match=f"sample {sample} of a plan with {len(plan)}"):
            dataset.batch([0, sample])


@settings(max_examples=150)
@given(file=st.sampled_from(["rows.bin", "slices.bin"]), damage=DAMAGE)
def test_a_damaged_plan_is_refused_or_stays_inside_the_store(file, damage):
    with tempfile.TemporaryDirectory() as directory:
        documents = [(list(range(first, first + 20)), [(0, 20)]) for first in range(1, 200, 20)]
        store = write_store(Path(directory, "store"), [("eu", documents)])
        plan = pack(Path(directory, "plan"), [Mix(store, {})], seq_length=12, seed=1).directory
        (plan / file).write_bytes(damaged((plan / file).read_bytes(), damage))
        try:
            dataset = PackedDataset(plan)
            batches = [dataset.batch([i]) for i in range(len(dataset))]
        except (LatxaError, IndexError, ValueError):
            return  # that it is a LatxaError: the next test
        for batch in batches:
            real = batch.loss_mask[0] == 1
            assert (batch.labels[0][real] == batch.tokens[0][real] + 1).all()
            assert ((batch.tokens[0][real] > 0) & (batch.labels[0][real] <= 200)).all()


@pytest.mark.parametrize(("file", "left"), [("rows.bin", 0), ("rows.bin", 8), ("rows.bin", 13), ("slices.bin", 23)])
def test_a_plan_cut_short_is_a_latxa_error(file, left, plan):
    content = (plan.directory / file).read_bytes()
    (plan.directory / file).write_bytes(content[:left])
    with pytest.raises(LatxaError, match="pack again"):
        [PackedDataset(plan.directory).batch([i]) for i in range(len(plan))]
