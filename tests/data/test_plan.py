"""Pack plans: each token but a document's first is a label once in an epoch, and the same input gives the same bytes."""

import json
import shutil
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latxa_megatron.data.dataset import PackedDataset
from latxa_megatron.data.mixture import Mix
from latxa_megatron.data.packing import pack
from latxa_megatron.data.plan import MANIFEST, SLICE, PackPlan
from latxa_megatron.data.store import manifest_fingerprint
from latxa_megatron.errors import LatxaError
from tests.data.writers import numbered_documents, write_store

LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=10)
SHARDS = st.lists(st.tuples(st.sampled_from(["eu", "en"]), LENGTHS), min_size=1, max_size=4)


def numbered_stores(directory: Path, stores) -> list[list[tuple[str, list[list[int]]]]]:
    """Stores 0, 1, ... of unmasked shards whose tokens are numbered through, from 1 on; their shards' documents."""
    first = 1
    written = []
    for i, shards in enumerate(stores):
        of_store = []
        for source, lengths in shards:
            of_store.append((source, numbered_documents(lengths, first)))
            first += sum(lengths)
        write_store(directory / str(i), [(s, [(ids, []) for ids in docs]) for s, docs in of_store], masked=False)
        written.append(of_store)
    return written


def labels(plan: Path) -> Counter:
    """How often each token is a trained label in the samples of a plan."""
    dataset = PackedDataset(plan)
    found: Counter = Counter()
    for i in range(len(dataset)):
        batch = dataset.batch([i])
        found.update(batch.labels[batch.loss_mask == 1].tolist())
    return found


@settings(max_examples=60)
@given(stores=st.lists(SHARDS, min_size=1, max_size=2), seq_length=st.integers(1, 24), data=st.data())
def test_every_token_but_a_documents_first_is_a_label_once_per_epoch(stores, seq_length, data):
    with tempfile.TemporaryDirectory() as directory:
        written = numbered_stores(Path(directory), stores)
        mixture, expected = [], Counter()
        for i, shards in enumerate(written):
            epochs = {source: float(data.draw(st.integers(1, 3))) for source in sorted({s for s, _ in shards})}
            mixture.append(Mix(Path(directory, str(i)), epochs))
            for source, documents in shards:
                expected.update({token: int(epochs[source]) for ids in documents for token in ids[1:]})
        plan = Path(directory, "plan")
        if not expected:
            with pytest.raises(LatxaError, match="no document has two tokens"):
                pack(plan, mixture, seq_length=seq_length, seed=1)
            return
        packed = pack(plan, mixture, seq_length=seq_length, seed=data.draw(st.integers(0, 5)))
        assert labels(plan) == expected
        assert packed.efficiency() == pytest.approx(expected.total() / (len(packed) * seq_length))


@settings(max_examples=40)
@given(LENGTHS, st.sampled_from([0.1, 0.25, 0.5, 0.75, 1.5, 2.25]), st.integers(0, 5))
def test_a_fractional_epoch_takes_exactly_its_share_of_the_documents(lengths, epochs, seed):
    with tempfile.TemporaryDirectory() as directory:
        [[(_, documents)]] = numbered_stores(Path(directory), [[("eu", lengths)]])
        long = [ids for ids in documents if len(ids) > 1]
        whole, share = int(epochs), epochs % 1
        if round(share * len(long)) + whole * len(long) == 0:
            return
        plan = pack(Path(directory, "plan"), [Mix(Path(directory, "0"), {"eu": epochs})], seq_length=8, seed=seed)
        found = labels(plan.directory)
        times = [{found[token] for token in ids[1:]} for ids in long]
        assert all(len(of_one) == 1 for of_one in times)  # a document is taken whole or not at all
        assert Counter(n for [n] in times if n > whole) == Counter({whole + 1: round(share * len(long))} if share else {})
        assert all(n >= whole for [n] in times)
        last = plan.manifest["passes"][-1]
        first, end = plan.row_offsets[last["first_row"]], plan.row_offsets[last["first_row"] + last["rows"]]
        assert len(set(plan.slices["document"][first:end].tolist())) == (round(share * len(long)) or len(long))


def test_a_fractional_epoch_takes_its_share_of_a_source_of_many_shards(tmp_path):
    numbered_stores(tmp_path, [[("eu", [3] * 4)] * 10])
    plan = pack(tmp_path / "plan", [Mix(tmp_path / "0", {"eu": 1.1})], seq_length=8, seed=1)
    assert labels(plan.directory).total() == 2 * (40 + 4)


def test_which_documents_a_fraction_takes_is_the_seeds_choice(tmp_path):
    numbered_stores(tmp_path, [[("eu", [3] * 40)]])
    chosen = []
    for seed in range(4):
        plan = pack(tmp_path / f"plan{seed}", [Mix(tmp_path / "0", {"eu": 0.5})], seq_length=8, seed=seed)
        chosen.append(frozenset(labels(plan.directory)))
    assert len(set(chosen)) == 4


def test_rows_are_read_once_in_each_pass_and_in_another_order(tmp_path):
    numbered_stores(tmp_path, [[("eu", [5, 9, 2, 8, 7, 3] * 20)]])
    plan = pack(tmp_path / "plan", [Mix(tmp_path / "0", {"eu": 3.0})], seq_length=10, seed=1)
    rows = len(plan) // 3
    orders = [[plan.row(i) for i in range(start, start + rows)] for start in (0, rows, 2 * rows)]
    assert all(sorted(order) == list(range(rows)) for order in orders)  # whole passes share their rows
    assert len({tuple(order) for order in orders}) == 3
    assert list(range(rows)) not in orders
    assert [plan.row(i) for i in (rows + 3, 1, 2 * rows)] == [orders[1][3], orders[0][1], orders[2][0]]
    for first, last in ((0, 3 * rows), (3, rows - 1), (rows - 2, 2 * rows + 1), (rows, rows), (3 * rows, 3 * rows)):
        assert plan.rows(first, last).tolist() == [plan.row(i) for i in range(first, last)]
    for first, last in ((-1, 2), (2, 1), (0, 3 * rows + 1)):
        with pytest.raises(IndexError):
            plan.rows(first, last)


def test_a_hand_worked_plan(tmp_path):
    """Documents of 10, 4, 1 and 6 tokens in rows of 4: [4], [4], [1 + 3], [4], [1]; the single token is in no row."""
    numbered_stores(tmp_path, [[("eu", [10, 4, 1, 6])]])
    plan = pack(tmp_path / "plan", [Mix(tmp_path / "0", {})], seq_length=4, seed=1)
    rows = []
    for a, b in zip(plan.row_offsets[:-1], plan.row_offsets[1:], strict=True):
        slices = plan.slices[a:b]
        rows.append([(int(s["document"]), int(s["start"]), int(s["length"])) for s in slices])
    assert rows == [[(0, 0, 5)], [(0, 4, 5)], [(3, 0, 5)], [(0, 8, 2), (1, 0, 4)], [(3, 4, 2)]]
    assert plan.efficiency() == (4 + 4 + 4 + 4 + 1) / 20


def test_the_files_are_as_documented(tmp_path):
    numbered_stores(tmp_path, [[("eu", [5, 3])]])
    plan = pack(tmp_path / "plan", [Mix(tmp_path / "0", {})], seq_length=8, seed=1)
    assert SLICE.itemsize == 16
    assert (plan.directory / "rows.bin").read_bytes() == np.array([0, 2], "<i8").tobytes()
    # store and shard 0 in the first four bytes; document, start, length
    expected = np.array([0, 0, 0, 5, 0, 1, 0, 3], "<u4").tobytes()
    assert (plan.directory / "slices.bin").read_bytes() == expected


def plan_bytes(plan: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in plan.iterdir()}


@settings(max_examples=15)
@given(shards=SHARDS, seq_length=st.integers(1, 24), epochs=st.sampled_from([1.0, 1.5, 3.0]))
def test_the_same_input_gives_the_same_bytes(shards, seq_length, epochs):
    shards = [("eu", [2]), *shards]
    with tempfile.TemporaryDirectory() as directory:
        numbered_stores(Path(directory), [shards])
        mixture = [Mix(Path(directory, "0"), {"eu": epochs})]
        first, second = (pack(Path(directory, n), mixture, seq_length=seq_length, seed=7) for n in ("a", "b"))
        assert plan_bytes(first.directory) == plan_bytes(second.directory)


@pytest.fixture
def packed(tmp_path):
    """A store and a plan of it."""
    numbered_stores(tmp_path, [[("eu", [5, 9, 2])]])
    return pack(tmp_path / "plan", [Mix(tmp_path / "0", {"eu": 2.0})], seq_length=8, seed=1)


def test_a_plan_of_the_same_inputs_is_returned_and_of_others_refused(packed, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in packed.directory.iterdir()}
    again = pack(packed.directory, [Mix(tmp_path / "0", {"eu": 2.0})], seq_length=8, seed=1)
    assert again.fingerprint == packed.fingerprint
    for epochs, seq_length, seed in ((2.0, 8, 2), (2.0, 9, 1), (1.0, 8, 1)):
        with pytest.raises(LatxaError, match="holds a plan of other inputs"):
            pack(packed.directory, [Mix(tmp_path / "0", {"eu": epochs})], seq_length=seq_length, seed=seed)
    assert {path: path.stat().st_mtime_ns for path in packed.directory.iterdir()} == before


def test_what_a_killed_pack_left_is_cleared(packed, tmp_path):
    partial = tmp_path / "other.partial"
    partial.mkdir()
    (partial / "rows.bin").write_bytes(b"half")
    plan = pack(tmp_path / "other", [Mix(tmp_path / "0", {"eu": 2.0})], seq_length=8, seed=1)
    assert plan_bytes(plan.directory) == plan_bytes(packed.directory)
    assert not partial.exists()


def test_a_store_that_changed_or_is_gone_is_refused(packed, tmp_path):
    shutil.rmtree(tmp_path / "0")
    with pytest.raises(LatxaError, match="0: is not a token store"):
        PackPlan(packed.directory)
    write_store(tmp_path / "0", [("eu", [([1, 2, 4], [])])], masked=False)
    with pytest.raises(LatxaError, match=r"is not the store that .*plan was packed from"):
        PackPlan(packed.directory)
    with pytest.raises(LatxaError, match=r"is not the store that .*plan was packed from"):
        PackedDataset(packed.directory)
    with pytest.raises(LatxaError, match="holds a plan of other inputs"):
        pack(packed.directory, [Mix(tmp_path / "0", {"eu": 2.0})], seq_length=8, seed=1)


def test_what_cannot_be_packed_is_refused_and_nothing_is_left(tmp_path):
    numbered_stores(tmp_path, [[("eu", [1, 1])], [("eu", [5])]])
    other = json.loads((tmp_path / "1" / MANIFEST).read_text())
    out = tmp_path / "plan"
    with pytest.raises(LatxaError, match="no document has two tokens"):
        pack(out, [Mix(tmp_path / "0", {})], seq_length=8, seed=1)
    with pytest.raises(LatxaError, match="has no source 'en'; there are eu"):
        pack(out, [Mix(tmp_path / "0", {"en": 1.0})], seq_length=8, seed=1)
    with pytest.raises(LatxaError, match="is not a token store"):
        pack(out, [Mix(tmp_path / "2", {})], seq_length=8, seed=1)
    other["tokenizer"]["fingerprint"] = "another"
    other["fingerprint"] = manifest_fingerprint(other)
    (tmp_path / "1" / MANIFEST).write_text(json.dumps(other))
    with pytest.raises(LatxaError, match="different tokenizers"):
        pack(out, [Mix(tmp_path / "0", {}), Mix(tmp_path / "1", {})], seq_length=8, seed=1)
    assert not list(tmp_path.glob("plan*"))


def test_what_is_no_plan_is_refused(packed, tmp_path):
    with pytest.raises(LatxaError, match="is not a pack plan"):
        PackPlan(tmp_path)
    with pytest.raises(LatxaError, match="is not a pack plan of version"):
        PackPlan(tmp_path / "0")  # a token store


def test_a_plans_manifest_changed_by_hand_is_refused(packed):
    file = packed.directory / MANIFEST
    file.write_text(json.dumps({**json.loads(file.read_text()), "seq_length": 20}))
    with pytest.raises(LatxaError, match="was changed since it was written"):
        PackPlan(packed.directory)
