"""Token stores: megatron-core reads what is written, and damaged files are refused or give only what is in bounds."""

import json
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latxa_megatron import _core
from latxa_megatron.data.store import MANIFEST, TokenStore
from latxa_megatron.errors import LatxaError
from tests.data.writers import write_shard, write_store

INT32, UINT16 = 4, 8


@st.composite
def documents(draw, largest: int = 2**31 - 1):
    """Up to 8 documents: token ids, and increasing disjoint spans inside them."""
    found = []
    for _ in range(draw(st.integers(1, 8))):
        ids = draw(st.lists(st.integers(0, largest), min_size=1, max_size=12))
        cuts = sorted(draw(st.sets(st.integers(0, len(ids)), max_size=6)))
        found.append((ids, list(zip(cuts[::2], cuts[1::2], strict=False))))
    return found


@settings(max_examples=60)
@given(data=st.data(), token_type=st.sampled_from([INT32, UINT16]), masked=st.booleans())
def test_megatron_and_we_read_what_was_written(data, token_type, masked, indexed_dataset):
    written = data.draw(documents(65535 if token_type == UINT16 else 2**31 - 1))
    with tempfile.TemporaryDirectory() as directory:
        prefix = Path(directory, "00000")
        writer = write_shard(prefix, written, token_type=token_type, masked=masked)
        assert sorted(path.suffix for path in Path(directory).iterdir()) == [".bin", ".idx"] + [".mask"] * masked
        dataset = indexed_dataset.IndexedDataset(str(prefix))
        assert [dataset[i].tolist() for i in range(len(dataset))] == [ids for ids, _ in written]
        assert dataset.index.dtype_size == (2 if token_type == UINT16 else 4)
        shard = _core.Shard(str(prefix), masked)
        assert [shard.tokens(i).tolist() for i in range(len(shard))] == [ids for ids, _ in written]
        assert shard.lengths.tolist() == [len(ids) for ids, _ in written]
        spans = [[list(span) for span in spans] if masked else [[0, len(ids)]] for ids, spans in written]
        assert [shard.spans(i).tolist() for i in range(len(shard))] == spans
        assert (writer.documents, writer.tokens) == (len(written), sum(len(ids) for ids, _ in written))
        assert writer.trained_tokens == sum(end - start for of_one in spans for start, end in of_one)


def test_we_read_what_megatron_writes_and_refuse_documents_of_several_sequences(indexed_dataset, tmp_path):
    import torch

    for name, sequences in (("single", [[[1, 2, 3]], [[4]], [[5, 6]]]), ("several", [[[1, 2], [3]], [[4]]])):
        builder = indexed_dataset.IndexedDatasetBuilder(str(tmp_path / f"{name}.bin"), dtype=np.uint16)
        for document in sequences:
            for sequence in document:
                builder.add_item(torch.tensor(sequence))
            builder.end_document()
        builder.finalize(str(tmp_path / f"{name}.idx"))
    shard = _core.Shard(str(tmp_path / "single"), False)
    assert [shard.tokens(i).tolist() for i in range(len(shard))] == [[1, 2, 3], [4], [5, 6]]
    write_shard(tmp_path / "ours", [([1, 2, 3], []), ([4], []), ([5, 6], [])], token_type=UINT16, masked=False)
    for suffix in ("bin", "idx"):
        assert (tmp_path / f"ours.{suffix}").read_bytes() == (tmp_path / f"single.{suffix}").read_bytes()
    with pytest.raises(_core.StoreError, match="several sequences to a document"):
        _core.Shard(str(tmp_path / "several"), False)


@pytest.mark.parametrize(
    ("ids", "spans", "message"),
    [
        ([], [], "without tokens"),
        ([65536], [], "does not fit"),
        ([-1], [], "does not fit"),
        ([1, 2, 3], [(0, 4)], "leave the document"),
        ([1, 2, 3], [(-1, 2)], "leave the document"),
        ([1, 2, 3], [(1, 1)], "are empty"),
        ([1, 2, 3], [(2, 1)], "are empty"),
        ([1, 2, 3], [(1, 3), (0, 1)], "overlap"),
        ([1, 2, 3], [(0, 2), (1, 3)], "overlap"),
    ],
)
def test_what_cannot_be_stored_is_refused_and_leaves_nothing(ids, spans, message, tmp_path):
    writer = _core.ShardWriter(str(tmp_path / "00000"), UINT16, True)
    writer.add(np.array([1, 2], np.int32), np.array([[0, 2]], np.int32))
    with pytest.raises(_core.StoreError, match=message):
        writer.add(np.array(ids, np.int32), np.array(spans, np.int32).reshape(-1, 2))
    assert (writer.documents, writer.tokens) == (1, 2)
    del writer
    assert not list(tmp_path.iterdir())


def test_a_shard_appears_when_it_is_finished(tmp_path):
    writer = _core.ShardWriter(str(tmp_path / "00000"), INT32, True)
    writer.add(np.array([1, 2], np.int32), np.empty((0, 2), np.int32))
    assert not [path for path in tmp_path.iterdir() if path.suffix != ".tmp"]
    writer.finish()
    with pytest.raises(_core.StoreError, match="is finished"):
        writer.add(np.array([1], np.int32), np.empty((0, 2), np.int32))
    del writer
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000.bin", "00000.idx", "00000.mask"]


def test_a_directory_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(_core.StoreError, match=r"gone/00000\.bin\.tmp: cannot be written"):
        _core.ShardWriter(str(tmp_path / "gone" / "00000"), INT32, True)


def test_documents_past_the_end_are_an_index_error(tmp_path):
    write_shard(tmp_path / "00000", [([1, 2], [])])
    shard = _core.Shard(str(tmp_path / "00000"), True)
    for read in (shard.tokens, shard.spans):
        with pytest.raises(IndexError):
            read(1)


# A change to the bytes of a file: (kind, place, value); the place is taken modulo the file's size.
DAMAGE = st.tuples(
    st.sampled_from(["cut", "flip", "append", "number"]),
    st.integers(0, 1000),
    st.sampled_from([1, 2, 4, 0x80, 0xFF, 2**31 - 1, 2**31, 2**63 - 1, 2**63, 2**64 - 1]),
)


def damaged(content: bytes, damage: tuple[str, int, int]) -> bytes:
    kind, place, value = damage
    place %= len(content)
    if kind == "cut":
        return content[:place]
    if kind == "append":
        return content + bytes([value & 0xFF]) * (1 + place % 20)
    changed = bytearray(content)
    if kind == "flip":
        changed[place] ^= value & 0xFF or 1
    else:
        changed[place : place + 8] = value.to_bytes(8, "little")[: len(content) - place]
    return bytes(changed)


def read_shard(prefix: Path):
    """(tokens, spans) of every document, and what a gather of each whole document gives."""
    shard = _core.Shard(str(prefix), True)
    read = [(shard.tokens(i).tolist(), shard.spans(i).tolist()) for i in range(len(shard))]
    slices = np.zeros((len(shard), 4), "<u4")  # store and shard 0 in the first 4 bytes
    slices[:, 1], slices[:, 3] = np.arange(len(shard)), shard.lengths
    gatherer = _core.Gatherer([[(shard, 0)]], np.arange(len(shard) + 1), slices.view("u1").reshape(-1))
    batch = gatherer.batch(list(range(len(shard))), max(shard.lengths) - 1, 0)
    return read, {name: array.tolist() for name, array in batch.items()}


@settings(max_examples=400)
@given(
    data=st.data(),
    suffix=st.sampled_from(["idx", "mask", "bin"]),
    token_type=st.sampled_from([INT32, UINT16]),
    damage=DAMAGE,
)
def test_a_damaged_file_is_refused_or_changes_no_more_than_its_own_bytes(data, suffix, token_type, damage):
    long = [(ids * 2, spans) for ids, spans in data.draw(documents(65535))]  # two tokens at least
    with tempfile.TemporaryDirectory() as directory:
        prefix = Path(directory, "00000")
        write_shard(prefix, long, token_type=token_type)
        whole, batch = read_shard(prefix)
        file = prefix.with_suffix(f".{suffix}")
        before = file.read_bytes()
        file.write_bytes(damaged(before, damage))
        try:
            found, found_batch = read_shard(prefix)
        except _core.StoreError:
            return
        if suffix == "idx" or file.read_bytes() == before:
            assert (found, found_batch) == (whole, batch)
        elif suffix == "bin":
            width = 2 if token_type == UINT16 else 4
            pairs = zip(file.read_bytes(), before, strict=True)
            touched = {i // width for i, (a, b) in enumerate(pairs) if a != b}
            ids = [token for tokens, _ in found for token in tokens]
            expected = [token for tokens, _ in whole for token in tokens]
            assert len(ids) == len(expected)
            assert {i for i, pair in enumerate(zip(ids, expected, strict=True)) if pair[0] != pair[1]} == touched
            assert [spans for _, spans in found] == [spans for _, spans in whole]
        else:
            assert [tokens for tokens, _ in found] == [tokens for tokens, _ in whole]
            for tokens, spans in found:
                borders = [border for span in spans for border in span]
                assert borders == sorted(borders)
                assert not borders or (borders[0] >= 0 and borders[-1] <= len(tokens))


@pytest.mark.parametrize("suffix", ["bin", "idx", "mask"])
def test_files_that_are_gone_or_empty_are_refused_by_name(suffix, tmp_path):
    store = write_store(tmp_path / "store", [("a", [([1, 2, 3], [(0, 3)])])])
    file = store / f"00000.{suffix}"
    file.write_bytes(b"")
    with pytest.raises(LatxaError, match=rf"00000\.{suffix}.*build the store again"):
        _ = TokenStore(store).shards
    file.unlink()
    with pytest.raises(LatxaError, match=rf"00000\.{suffix}: cannot be opened"):
        _ = TokenStore(store).shards


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
def test_what_is_no_regular_file_is_refused_and_not_waited_for(make, tmp_path):
    write_shard(tmp_path / "00000", [([1, 2], [])])
    (tmp_path / "00000.mask").unlink()
    make(tmp_path / "00000.mask")
    with pytest.raises(_core.StoreError, match=r"00000\.mask: is not a regular file"):
        _core.Shard(str(tmp_path / "00000"), True)


def test_documents_and_totals_by_source(tmp_path):
    a, b = [([1, 2, 3], [(0, 3)]), ([4], [])], [([5, 6], [(1, 2)])]
    store = TokenStore(write_store(tmp_path / "store", [("eu", a), ("en", b), ("eu", a[:1])]))
    assert list(store.documents()) == [
        ("eu", [1, 2, 3], [(0, 3)]),
        ("eu", [4], []),
        ("en", [5, 6], [(1, 2)]),
        ("eu", [1, 2, 3], [(0, 3)]),
    ]
    totals = store.totals()
    assert (totals["eu"].documents, totals["eu"].tokens, totals["eu"].trained_tokens) == (3, 7, 6)
    assert (totals["en"].documents, totals["en"].tokens, totals["en"].trained_tokens) == (1, 2, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda manifest: manifest.update(mask="all"), "was changed since it was written"),
        (lambda manifest: manifest["shards"][0].update(tokens=5), "was changed since it was written"),
        (lambda manifest: manifest.update(version=2), "not a token store of version 1"),
        (lambda manifest: manifest.update(format="latxa-pack-plan"), "not a token store of version 1"),
    ],
)
def test_a_manifest_changed_by_hand_is_refused(change, message, tmp_path):
    store = write_store(tmp_path / "store", [("a", [([1, 2, 3], [(0, 3)])])])
    manifest = json.loads((store / MANIFEST).read_text())
    change(manifest)
    (store / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(LatxaError, match=message) as error:
        TokenStore(store)
    assert str(error.value).startswith(str(store / MANIFEST))


def test_what_is_no_store_is_refused(tmp_path):
    with pytest.raises(LatxaError, match="is not a token store"):
        TokenStore(tmp_path)
    (tmp_path / MANIFEST).write_text("{")
    with pytest.raises(LatxaError, match="is not valid JSON"):
        TokenStore(tmp_path)
