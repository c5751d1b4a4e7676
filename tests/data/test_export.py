"""Exports: the plan's samples bit for bit, the same bytes for any number of workers and after any kill."""

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latxa_megatron.data import export as exporting
from latxa_megatron.data.dataset import PackedDataset, open_samples
from latxa_megatron.data.export import export
from latxa_megatron.data.exported import MANIFEST, Export
from latxa_megatron.data.inspect import inspect
from latxa_megatron.data.mixture import Mix
from latxa_megatron.data.packing import pack
from latxa_megatron.data.verify import verify
from latxa_megatron.errors import LatxaError
from latxa_megatron.files import sha256, write_json
from tests.data.samples import contents
from tests.data.test_store import DAMAGE, damaged
from tests.data.test_store import documents as drawn_documents
from tests.data.test_verify import edit, faults, rewrite
from tests.data.writers import write_store


@pytest.fixture
def small_files(monkeypatch):
    """Files of 100 positions, which several threads write, in blocks of 40; not flushed, which is milliseconds each."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    monkeypatch.setattr(exporting, "FILE_POSITIONS", 100)
    monkeypatch.setattr(exporting, "_BLOCK_POSITIONS", 40)


def batch_of(dataset: PackedDataset, samples: list[int]) -> dict[str, tuple[str, list]]:
    batch = dataset.batch(samples)
    tensors = {name: getattr(batch, name) for name in batch.__dataclass_fields__ if name != "samples"}
    return {name: (str(tensor.dtype), tensor.tolist()) for name, tensor in tensors.items()}


@settings(max_examples=25, deadline=None)
@given(data=st.data(), seq_length=st.integers(1, 24), masked=st.booleans(), file_positions=st.sampled_from([50, 10**6]))
def test_an_export_has_the_samples_of_its_plan(data, seq_length, masked, file_positions):
    shards = [(name, data.draw(drawn_documents((1 << 20) - 1))) for name in ("eu", "en", "eu")]
    shards[1][1].append(([7, 8], [(0, 1)]))
    with tempfile.TemporaryDirectory() as directory, pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)  # milliseconds each
        patch.setattr(exporting, "FILE_POSITIONS", file_positions)
        patch.setattr(exporting, "_BLOCK_POSITIONS", data.draw(st.sampled_from([30, 10**6])))
        store = write_store(Path(directory, "store"), shards, masked=masked)
        plan = pack(Path(directory, "plan"), [Mix(store, {"eu": 2.5})], seq_length=seq_length, seed=1)
        export(Path(directory, "export"), plan.directory, workers=2)
        shutil.rmtree(store)  # an export needs no store
        there = PackedDataset(Path(directory, "export"))
        assert (len(there), there.seq_length, there.sources) == (len(plan), seq_length, ["eu", "en"])
        assert there.plan.fingerprint == plan.fingerprint
        assert faults(Path(directory, "export")) == []
        write_store(store, shards, masked=masked)
        here = PackedDataset(plan.directory)
        samples = data.draw(st.lists(st.integers(0, len(plan) - 1), min_size=1, max_size=4))
        assert batch_of(there, samples) == batch_of(here, samples)
        assert batch_of(there, list(range(len(plan)))) == batch_of(here, list(range(len(plan))))
        first = data.draw(st.integers(0, len(plan)))
        last = data.draw(st.integers(first, len(plan)))
        assert there.document_positions(first, last).tolist() == here.document_positions(first, last).tolist()
        assert there.longest_padded(4) == here.longest_padded(4)


@pytest.mark.parametrize("token_type", [4, 8])
def test_the_bytes_are_as_documented(tmp_path, token_type):
    """Two documents and a piece of padding, each number of the format written by hand."""
    documents = [([5, 6, 7], [(0, 3)]), ([8, 9], [(0, 1)]), ([10, 11, 12, 13], [(1, 2), (3, 4)])]
    store = write_store(tmp_path / "store", [("eu", documents[:1]), ("chat", documents[1:])], token_type=token_type)
    plan = pack(tmp_path / "plan", [Mix(store, {})], seq_length=8, seed=1)
    found = export(tmp_path / "export", plan.directory)
    assert [list(s) for s in plan.slices.tolist()] == [[0, 0, 0, 0, 3], [0, 1, 0, 0, 2], [0, 1, 1, 0, 4]]
    # three documents of 3, 2 and 4 tokens, of sources 0, 1 and 1; labels 6 7 | 9 | 11 12 13, trained: 6 7, 11 and 13
    head = np.array([3, 3, 3, 0, 2, 1, 4, 1, 0, 2, 3, 4, 5, 6], "<u4").tobytes()
    tokens = np.array([5, 6, 7, 8, 9, 10, 11, 12, 13], "<i4" if token_type == 4 else "<u2").tobytes()
    record = head + tokens
    record += bytes(-len(record) % 8)
    index = b"LATXREC\0" + np.array([1, token_type, 1, 3, 0, len(record), 0, 3], "<u8").tobytes()
    assert (tmp_path / "export" / "00000.records").read_bytes() == record
    assert (tmp_path / "export" / "00000.index").read_bytes() == index + np.array([3, 2, 4], "<u4").tobytes()
    [entry] = found.manifest["files"]
    assert (entry["samples"], entry["documents"], entry["positions"], entry["trained_positions"]) == (1, 3, 6, 4)


@pytest.fixture
def plan(tmp_path):
    """Of two stores; masked conversations in one of them."""
    draws = np.random.default_rng(3)
    lengths = draws.integers(2, 60, 120).tolist()
    texts = [(draws.integers(1, 500, n).tolist(), [(0, n)]) for n in lengths]
    chats = [(draws.integers(1, 500, n).tolist(), [(n // 3, n // 2), (n // 2, n)]) for n in lengths if n > 6]
    stores = [write_store(tmp_path / "text", [("eu", texts)], masked=False), write_store(tmp_path / "chat", [("chat", chats)])]
    return pack(tmp_path / "plan", [Mix(store, {}) for store in stores], seq_length=20, seed=1).directory


@pytest.mark.parametrize("layout", ["records", "parquet"])
def test_the_bytes_do_not_depend_on_the_workers(layout, plan, tmp_path, small_files):
    if layout == "parquet":
        pytest.importorskip("pyarrow")
    one, three = (export(tmp_path / f"{n}", plan, layout=layout, workers=n) for n in (1, 3))
    assert len(one.manifest["files"]) > 20
    assert contents(one.directory) == contents(three.directory)
    again = export(tmp_path / "1", plan, layout=layout)
    assert again.manifest == one.manifest
    for name, options in (("1", {"layout": {"records": "parquet", "parquet": "records"}[layout]}), ("plan", {})):
        with pytest.raises(LatxaError, match=r"holds an export of another|exists and is no export"):
            export(tmp_path / name, plan, **options)
    with pytest.raises(LatxaError, match="exists and is no export"):
        export(tmp_path, plan)


KILLED = """
import sys
from pathlib import Path
from latxa_megatron.data import export
export.FILE_POSITIONS = 100
export.export(Path(sys.argv[1]), Path(sys.argv[2]), workers=2)
"""


def test_a_killed_export_goes_on_and_ends_with_the_same_bytes(plan, tmp_path, small_files):
    whole = contents(export(tmp_path / "whole", plan).directory)
    partial = tmp_path / "out.partial"
    for files in (3, 13):
        process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path / "out"), str(plan)])
        while process.poll() is None and len(list(partial.glob("*.json"))) < files:
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.wait()
        if (tmp_path / "out").exists():
            shutil.rmtree(tmp_path / "out")  # it was faster than the kill
    kept = {path: path.stat().st_mtime_ns for path in partial.glob("*.records") if path.with_suffix(".json").exists()}
    found = export(tmp_path / "out", plan, workers=2)
    assert contents(found.directory) == whole
    assert {path: (found.directory / path.name).stat().st_mtime_ns for path in kept} == kept


def test_what_another_plan_left_is_not_taken(plan, tmp_path, small_files, monkeypatch):
    write = exporting._write_records
    other = pack(tmp_path / "other", [Mix(tmp_path / "text", {})], seq_length=20, seed=2).directory

    def full(prefix, job, samples):
        if prefix.name == "00004":
            raise OSError(errno.ENOSPC, "No space left on device", str(prefix))
        return write(prefix, job, samples)

    monkeypatch.setattr(exporting, "_write_records", full)
    with pytest.raises(LatxaError, match=r"00004: the disk is full; mend that and run the same command"):
        export(tmp_path / "out", other)
    assert (tmp_path / "out.partial" / "00003.json").exists()
    monkeypatch.setattr(exporting, "_write_records", write)
    assert contents(export(tmp_path / "out", plan).directory) == contents(export(tmp_path / "whole", plan).directory)


def test_a_disk_that_is_too_small_is_refused_before_the_work(plan, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 0, 100))
    with pytest.raises(LatxaError, match=r"the export needs .* GB, and the disk has"):
        export(tmp_path / "out", plan)


def test_a_damaged_store_leaves_nothing_behind(plan, tmp_path):
    manifest = json.loads((plan / MANIFEST).read_text())
    slices = bytearray((plan / "slices.bin").read_bytes())
    slices[4:8] = b"\xff" * 4
    (plan / "slices.bin").write_bytes(slices)
    write_json(plan / MANIFEST, manifest)
    with pytest.raises(LatxaError, match=r"plan: a slice of the plan names tokens .* pack again"):
        export(tmp_path / "out", plan)
    assert not list(tmp_path.glob("out*"))


@pytest.fixture
def made(plan, tmp_path, small_files):
    return export(tmp_path / "export", plan).directory


def test_every_flipped_bit_of_an_export_is_found(made):
    draws = np.random.default_rng(33)
    for file in [*sorted(made.iterdir())[3::15], made / MANIFEST]:
        before = file.read_bytes()
        for bit in draws.integers(0, 8 * len(before), 6).tolist():
            changed = bytearray(before)
            changed[bit // 8] ^= 1 << bit % 8
            file.write_bytes(changed)
            try:
                found = faults(made, workers=2)
            except LatxaError as error:  # the manifest no longer says that this is an export
                found = [str(error)]
            assert any(file.name in fault for fault in found) or (file.name == MANIFEST and found), (file, bit)
        file.write_bytes(before)
    report = verify(made)
    assert report.faults == []
    assert (report.files, report.bytes) == (len(list(made.iterdir())), sum(file.stat().st_size for file in made.iterdir()))


def test_files_of_an_export_that_are_gone_cut_or_too_many_are_named(made):
    extra = made / "99999.records"
    extra.write_bytes(b"")
    assert faults(made) == [f"{extra}: is not in the manifest"]
    extra.unlink()
    for file in (made / "00002.records", made / "00003.index"):
        before = file.read_bytes()
        file.write_bytes(before[:-3])
        assert any(fault.startswith(f"{file}: ") for fault in faults(made))
        sample = int(file.stem) * 5
        with pytest.raises(LatxaError, match=r"0000\d\.\w+: .*; export again"):
            PackedDataset(made).batch([sample])
        file.unlink()
        assert f"{file}: is missing" in faults(made)
        with pytest.raises(LatxaError, match=r"cannot be opened: .*; export again"):
            PackedDataset(made).batch([sample])
        file.write_bytes(before)


def change_hashes(made: Path) -> None:
    def change(manifest):
        for entry in manifest["files"]:
            entry["sha256"] = {suffix: sha256(made / f"{entry['name']}.{suffix}") for suffix in entry["sha256"]}

    rewrite(made, change)


RECORD_DAMAGE = {
    "id past the vocabulary": (("records", "<i4", 0, -2, 1 << 20), r"00000.records: sample 4 has token ids"),
    "negative id": (("records", "<i4", 0, -2, -1), r"00000.records: sample 4 has token ids"),
    "documents": (("records", "<u4", 0, 0, 90), r"00000.records: record 0 has more documents or spans"),
    "fewer documents": (("records", "<u4", 0, 0, 0), r"00000.records: record 0 has more tokens than its documents"),
    "source": (("records", "<u4", 0, 3, 2), r"00000.records: record 0 has a document of another length or source"),
    "length": (("records", "<u4", 0, 2, 1), r"00000.records: record 0 has a document of another length or source"),
    "index length": (("index", "<u4", 0, -1, 3), r"00000.index: has other documents than the records"),
    "index offset": (("index", "<u4", 40, 3, 1), r"00000.index: has offsets that do not ascend"),
}


@pytest.mark.parametrize("damage", RECORD_DAMAGE)
def test_what_a_faulty_exporter_would_write_is_found_though_the_hashes_are_right(damage, made):
    (suffix, *where), expected = RECORD_DAMAGE[damage]
    edit(made / f"00000.{suffix}", *where)
    change_hashes(made)
    [found] = faults(made)
    assert re.match(expected, found.removeprefix(f"{made}/"))


def test_an_exports_manifest_that_is_not_its_files_is_found(made):
    for change, expected in (
        (lambda m: m["files"][1].update(trained_positions=1), r"00001.records: has \d+ trained positions, the manifest says 1"),
        (lambda m: m["files"][1].update(samples=4), "do not hold"),
        (lambda m: m["files"].reverse(), "not numbered through"),
        (lambda m: m["files"][1]["sha256"].pop("index"), "has hashes of"),
        (lambda m: m.pop("files"), "lacks a value"),
    ):
        before = (made / MANIFEST).read_bytes()
        rewrite(made, change)
        assert any(re.search(expected, fault) for fault in faults(made))
        (made / MANIFEST).write_bytes(before)


@settings(max_examples=100, deadline=None)
@given(suffix=st.sampled_from(["records", "index"]), damage=DAMAGE)
def test_a_damaged_export_is_refused_or_read_as_records(suffix, damage):
    with tempfile.TemporaryDirectory() as directory:
        documents = [(list(range(first, first + 20)), [(3, 20)]) for first in range(1, 200, 20)]
        store = write_store(Path(directory, "store"), [("eu", documents)])
        plan = pack(Path(directory, "plan"), [Mix(store, {})], seq_length=12, seed=1).directory
        made = export(Path(directory, "export"), plan).directory
        file = made / f"00000.{suffix}"
        file.write_bytes(damaged(file.read_bytes(), damage))
        dataset = PackedDataset(made)
        try:
            batches = [dataset.batch([i]) for i in range(len(dataset))]
        except LatxaError:
            return
        for batch in batches:
            assert batch.cu_seqlens[-1] == 12
            assert (batch.cu_seqlens.diff() > 0).all()
            assert batch.loss_mask.unique().tolist() in ([0.0], [1.0], [0.0, 1.0])


def test_what_is_no_export_is_refused(made, tmp_path):
    dataset = PackedDataset(made)
    for sample in (-1, len(dataset)):
        with pytest.raises(IndexError, match=f"sample {sample} of a plan with {len(dataset)}"):
            dataset.batch([sample])
    with pytest.raises(LatxaError, match="is not an export"):
        Export(tmp_path)
    with pytest.raises(LatxaError, match="is an export; inspect the plan"):
        inspect(made)
    with pytest.raises(LatxaError, match="is not a pack plan"):
        open_samples(tmp_path)
    manifest = json.loads((made / MANIFEST).read_text())
    write_json(made / MANIFEST, {**manifest, "seq_length": 21})
    with pytest.raises(LatxaError, match="was changed since it was written"):
        open_samples(made)
    write_json(made / MANIFEST, {**manifest, "version": 2})
    with pytest.raises(LatxaError, match="is not an export of version 1"):
        open_samples(made)


def test_more_files_than_stay_open_are_read(made, monkeypatch):
    monkeypatch.setattr("latxa_megatron.data.exported._OPEN_FILES", 3)
    dataset = PackedDataset(made)
    wanted = [batch_of(PackedDataset(made), [i]) for i in range(len(dataset))]
    before = len(list(Path("/proc/self/fd").iterdir()))
    order = np.random.default_rng(0).permutation(len(dataset)).tolist()
    assert all(batch_of(dataset, [i]) == wanted[i] for i in order)
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 3
