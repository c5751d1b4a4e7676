"""`latxa data verify` finds every flipped bit, and what is wrong although each hash is right."""

import json
import random
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from latxa_megatron.data.build import build_store
from latxa_megatron.data.mixture import Mix
from latxa_megatron.data.packing import pack
from latxa_megatron.data.plan import MANIFEST, SLICE
from latxa_megatron.data.plan import manifest_fingerprint as _manifest_fingerprint
from latxa_megatron.data.store import manifest_fingerprint
from latxa_megatron.data.verify import verify
from latxa_megatron.errors import LatxaError
from latxa_megatron.files import sha256, write_json
from tests.data.samples import chat, corpus, write_sources


@pytest.fixture(scope="module")
def whole(tmp_path_factory, byte_tokenizer):
    """A store of documents and conversations, masked, and a plan of it with two and a half epochs of the documents."""
    root = tmp_path_factory.mktemp("whole")
    files = write_sources(root / "files")
    build_store(root / "store", byte_tokenizer, [corpus(files), chat(files)])
    pack(root / "plan", [Mix(root / "store", {"corpus": 2.5})], seq_length=64, seed=1)
    return root


@pytest.fixture
def copy(whole, tmp_path):
    """A copy whose files may be changed; its plan names the copied store."""
    for name in ("store", "plan"):
        shutil.copytree(whole / name, tmp_path / name)
    manifest = json.loads((tmp_path / "plan" / MANIFEST).read_text())
    write_json(tmp_path / "plan" / MANIFEST, {**manifest, "store_paths": [str(tmp_path / "store")]})
    return tmp_path


def faults(path: Path, **options) -> list[str]:
    return [str(fault) for fault in verify(path, **options).faults]


def rewrite(directory: Path, change=lambda manifest: None) -> None:
    """Change a manifest, and make all hashes and fingerprints right again, as a faulty writer would have them."""
    manifest = json.loads((directory / MANIFEST).read_text())
    for info in manifest.get("shards", []):
        info["sha256"] = {suffix: sha256(directory / f"{info['name']}.{suffix}") for suffix in info["sha256"]}
    if "passes" in manifest:
        manifest["sha256"] = {name: sha256(directory / name) for name in manifest["sha256"]}
    change(manifest)
    manifest["fingerprint"] = (_manifest_fingerprint if "passes" in manifest else manifest_fingerprint)(manifest)
    write_json(directory / MANIFEST, manifest)


def edit(file: Path, dtype: str, offset: int, index: int, value: int) -> None:
    """Set one value of the array that begins at a byte offset."""
    content = bytearray(file.read_bytes())
    np.frombuffer(content, dtype, offset=offset)[index] = value
    file.write_bytes(content)


def test_what_was_written_has_no_fault(copy):
    for path, options in ((copy / "store", {}), (copy / "store", {"workers": 4}), (copy / "plan", {"with_stores": True})):
        report = verify(path, **options)
        assert report.faults == []
    files = [file for name in ("store", "plan") for file in (copy / name).iterdir()]
    assert (report.files, report.bytes) == (len(files), sum(file.stat().st_size for file in files))


@pytest.mark.parametrize("name", ["store", "plan"])
def test_every_flipped_bit_is_found(name, copy):
    chosen = random.Random(33)
    for file in sorted((copy / name).iterdir()):
        before = file.read_bytes()
        for _ in range(40):
            bit = chosen.randrange(8 * len(before))
            changed = bytearray(before)
            changed[bit // 8] ^= 1 << bit % 8
            file.write_bytes(changed)
            try:
                found = faults(copy / name)
            except LatxaError as error:  # the manifest no longer says that this is a store or a plan
                assert file.name == MANIFEST
                found = [str(error)]
            assert any(file.name in fault for fault in found) or (file.name == MANIFEST and found), (file, bit)
        file.write_bytes(before)
    assert faults(copy / name) == []


@pytest.mark.parametrize("name", ["store", "plan"])
@pytest.mark.parametrize("size", [0, 5, 18, 41])
def test_files_that_are_cut_gone_or_too_many_are_named(name, size, copy):
    for file in sorted((copy / name).iterdir()):
        if file.name == MANIFEST:
            continue
        before = file.read_bytes()
        file.write_bytes(before[:size])
        assert any(fault.startswith(f"{file}: ") for fault in faults(copy / name))
        file.unlink()
        assert f"{file}: is missing" in faults(copy / name)
        file.write_bytes(before)
    extra = copy / name / "00077.bin"
    extra.write_bytes(b"")
    assert faults(copy / name) == [f"{extra}: is not in the manifest"]


STORE_DAMAGE = {
    "id past the vocabulary": (
        lambda s: edit(s / "00000.bin", "<u2", 0, 7, 300),
        r"00000.bin: 1 token ids are not .*token 7$",
    ),
    "document table": (lambda s: edit(s / "00000.idx", "<i8", 34 + 12 * 50, 3, 4), r"00000.idx: entry 3 of its document table"),
    "bytes at the end": (
        lambda s: (s / "00001.idx").open("ab").write(b"\0"),
        r"00001.idx: has 843 bytes, .* need 842",
    ),
    "byte offset": (
        lambda s: edit(s / "00001.idx", "<i8", 34 + 4 * 40, 3, 1),
        r"00001.idx: document 3 has a wrong length",
    ),
    "length": (lambda s: edit(s / "00001.idx", "<i4", 34, 39, 1), r"00001.*"),
    "span outside": (lambda s: edit(s / "00002.mask", "<i4", 32 + 8 * 40, 1, 9999), r"00002.mask: document 0 has spans outside"),
    "span empty": (lambda s: edit(s / "00002.mask", "<i4", 32 + 8 * 40, 1, 0), r"00002.mask: document 0 has spans outside"),
    "span shorter": (lambda s: edit(s / "00000.mask", "<i4", 32 + 8 * 50, 0, 1), r"00000.mask: the shard has \d+ trained tokens"),
}


@pytest.mark.parametrize("damage", STORE_DAMAGE)
def test_what_a_faulty_writer_would_write_is_found_though_the_hashes_are_right(damage, copy):
    change, expected = STORE_DAMAGE[damage]
    change(copy / "store")
    rewrite(copy / "store")
    [found] = faults(copy / "store")
    assert re.match(expected, found.removeprefix(f"{copy / 'store'}/"))


MANIFEST_DAMAGE = {
    "documents": (lambda m: m["shards"][0].update(documents=49), "00000.idx: the shard has 50 documents, the manifest says 49"),
    "tokens": (lambda m: m["shards"][1].update(tokens=1), r"00001.idx: the shard has \d+ tokens, the manifest says 1"),
    "source": (lambda m: m["shards"][1].update(source="en"), "manifest.json: shard 00001 is of 'en', which is none of its"),
    "hashes": (lambda m: m["shards"][1]["sha256"].pop("mask"), "manifest.json: shard 00001 has hashes of"),
    "no shards": (lambda m: m.pop("shards"), "manifest.json: lacks a value"),
    "no vocabulary": (lambda m: m["tokenizer"].update(vocab_size="many"), "manifest.json: lacks a value"),
}


@pytest.mark.parametrize("damage", MANIFEST_DAMAGE)
def test_a_stores_manifest_that_is_not_its_files_is_found(damage, copy):
    change, expected = MANIFEST_DAMAGE[damage]
    rewrite(copy / "store", change)
    assert any(re.match(expected, fault.removeprefix(f"{copy / 'store'}/")) for fault in faults(copy / "store"))


def set_slice(field: str, value: int):
    def change(plan: Path) -> None:
        edit_slices = np.fromfile(plan / "slices.bin", SLICE)
        edit_slices[field][4] = value
        edit_slices.tofile(plan / "slices.bin")

    return change


PLAN_DAMAGE = {
    "store": (
        set_slice("store", 1),
        "slices.bin: 1 slices name a store, shard or document .* the first is number 4",
    ),
    "shard": (set_slice("shard", 3), "slices.bin: 1 slices name a store, shard or document"),
    "document": (set_slice("document", 50), "slices.bin: 1 slices name a store, shard or document"),
    "start": (set_slice("start", 10**6), "slices.bin: 1 slices name tokens past the end"),
    "length": (set_slice("length", 66), "slices.bin: 1 rows have more than 64 positions"),
    "length of one": (set_slice("length", 1), r"slices.bin: 1 slices have a length outside 2 \.\.\. 65"),
    "first row": (lambda p: edit(p / "rows.bin", "<i8", 0, 0, 1), "rows.bin: does not begin with 0"),
    "row order": (lambda p: edit(p / "rows.bin", "<i8", 0, 2, 0), r"rows.bin: row 1 has -\d+ slices"),
}


@pytest.mark.parametrize("damage", PLAN_DAMAGE)
def test_a_plan_that_its_stores_or_its_length_do_not_allow_is_found(damage, copy):
    change, expected = PLAN_DAMAGE[damage]
    change(copy / "plan")
    rewrite(copy / "plan")
    assert any(re.match(expected, fault.removeprefix(f"{copy / 'plan'}/")) for fault in faults(copy / "plan"))


def test_passes_that_leave_rows_out_or_share_a_part_of_them_are_found(copy):
    def shorten(number):
        return lambda manifest: manifest["passes"][number].update(rows=manifest["passes"][number]["rows"] - 1)

    before = (copy / "plan" / MANIFEST).read_bytes()
    rewrite(copy / "plan", shorten(1))  # which has the rows of pass 0 without the conversations
    assert any("manifest.json: pass" in fault for fault in faults(copy / "plan"))
    (copy / "plan" / MANIFEST).write_bytes(before)
    rewrite(copy / "plan", shorten(2))  # the last rows are then no pass's
    assert "rows.bin or slices.bin is missing or cut short" in faults(copy / "plan")[0]


def test_a_plans_stores_are_found_by_their_fingerprints_and_read_on_request(copy):
    edit(copy / "store" / "00000.bin", "<u2", 0, 0, 5)
    assert faults(copy / "plan") == []
    [found] = faults(copy / "plan", with_stores=True)
    assert found == f"{copy / 'store' / '00000.bin'}: is not the file that was written: its SHA-256 is not the manifest's"
    rewrite(copy / "store")
    assert faults(copy / "plan") == [f"{copy / 'store'}: is not the store that {copy / 'plan'} was packed from"]
    shutil.rmtree(copy / "store")
    assert "is not a token store" in faults(copy / "plan")[0]


def test_what_is_neither_is_refused(copy):
    with pytest.raises(LatxaError, match="neither a token store nor a pack plan"):
        verify(copy)
    (copy / MANIFEST).write_text('{"format": "another"}')
    with pytest.raises(LatxaError, match="says format 'another'"):
        verify(copy)
