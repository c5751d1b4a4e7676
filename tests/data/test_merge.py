"""`latxa data merge`: the result holds what the stores hold, one after the other, as megatron-core reads it."""

import json

import pytest

from latxa_megatron.data import merge as merging
from latxa_megatron.data.build import build_store
from latxa_megatron.data.merge import merge
from latxa_megatron.data.mixture import Mix
from latxa_megatron.data.packing import pack
from latxa_megatron.data.sources import find
from latxa_megatron.data.store import MANIFEST, TokenStore, manifest_fingerprint
from latxa_megatron.data.verify import verify
from latxa_megatron.errors import LatxaError
from latxa_megatron.files import write_json
from tests.data.samples import CONVERSATIONS, DOCUMENTS, contents
from tests.data.writers import write_jsonl, write_store


@pytest.fixture
def built(tmp_path, byte_tokenizer, chunk_bytes):
    """Three stores with masks: documents of eu and conversations; more of eu; en and conversations."""
    chunk_bytes(1000)
    for name, records in (
        ("a", DOCUMENTS[:30]),
        ("b", DOCUMENTS[30:60]),
        ("c", DOCUMENTS[60:]),
        ("chat", CONVERSATIONS[:20]),
        ("chat2", CONVERSATIONS[20:30]),
        ("chat3", CONVERSATIONS[30:]),
    ):
        write_jsonl(tmp_path / f"{name}.jsonl", records)

    def store(out, **sources):
        found = [find(name, [str(tmp_path / file)]) for name, file in sources.items()]
        return build_store(tmp_path / out, byte_tokenizer, found).directory

    return [
        store("one", eu="a.jsonl", chat="chat.jsonl"),
        store("two", eu="b.jsonl", chat="chat2.jsonl"),
        store("three", en="c.jsonl", chat="chat3.jsonl"),
    ]


def megatron_documents(store, indexed_dataset):
    """Token ids of all documents, in the order of the manifest's shards, read by megatron-core."""
    found = []
    for shard in json.loads((store / MANIFEST).read_text())["shards"]:
        dataset = indexed_dataset.IndexedDataset(str(store / shard["name"]))
        found += [dataset[i].tolist() for i in range(len(dataset))]
    return found


def test_the_merged_store_is_the_stores_one_after_the_other(built, indexed_dataset, tmp_path):
    merged = merge(tmp_path / "all", built)
    parts = [megatron_documents(directory, indexed_dataset) for directory in built]
    assert megatron_documents(tmp_path / "all", indexed_dataset) == [ids for part in parts for ids in part]
    assert list(merged.documents()) == [document for directory in built for document in TokenStore(directory).documents()]
    assert verify(tmp_path / "all").faults == []
    assert [info.name for info in merged.shard_infos] == [f"{i:05d}" for i in range(len(merged.shard_infos))]
    for name, totals in merged.totals().items():
        each = [TokenStore(directory).totals().get(name) for directory in built]
        assert totals.documents == sum(t.documents for t in each if t)
        assert totals.trained_tokens == sum(t.trained_tokens for t in each if t)
    assert merged.manifest["settings"]["order"] == ["eu", "chat", "en"]
    files = [file["path"].rpartition("/")[2] for file in merged.manifest["sources"]["chat"]["files"]]
    assert files == ["chat.jsonl", "chat2.jsonl", "chat3.jsonl"]
    plan = pack(tmp_path / "plan", [Mix(tmp_path / "all", {"eu": 2.0})], seq_length=64, seed=1)
    assert verify(plan.directory, with_stores=True).faults == []


def test_files_are_linked_or_copied_and_are_the_same_bytes(built, tmp_path, monkeypatch):
    merge(tmp_path / "linked", built)
    assert (tmp_path / "linked" / "00000.bin").samefile(built[0] / "00000.bin")

    def refuse(*_):
        raise OSError("links do not cross file systems")

    monkeypatch.setattr(merging.os, "link", refuse)
    merge(tmp_path / "copied", built)
    assert not (tmp_path / "copied" / "00000.bin").samefile(built[0] / "00000.bin")
    assert contents(tmp_path / "linked") == contents(tmp_path / "copied")


def test_merged_stores_can_be_merged_and_a_second_merge_returns_the_first(built, indexed_dataset, tmp_path):
    merge(tmp_path / "12", built[:2])
    merged = merge(tmp_path / "all", [tmp_path / "12", built[2]])
    assert merged.fingerprint == merge(tmp_path / "all", [tmp_path / "12", built[2]]).fingerprint
    assert list(merged.documents()) == [document for directory in built for document in TokenStore(directory).documents()]
    with pytest.raises(LatxaError, match="all: holds a store of other inputs"):
        merge(tmp_path / "all", built)
    with pytest.raises(LatxaError, match=r"'chat' has .*chat\.jsonl, whose content is in .*12 too"):
        merge(tmp_path / "twice", [tmp_path / "12", built[0]])


def test_what_a_killed_merge_left_is_cleared(built, tmp_path):
    merge(tmp_path / "all", built)
    (tmp_path / "again.partial").mkdir()
    (tmp_path / "again.partial" / "00000.bin").write_bytes(b"half")
    merge(tmp_path / "again", built)
    assert contents(tmp_path / "again") == contents(tmp_path / "all")
    assert not (tmp_path / "again.partial").exists()


def change_manifest(store, change):
    manifest = json.loads((store / MANIFEST).read_text())
    change(manifest)
    manifest["fingerprint"] = manifest_fingerprint(manifest)
    write_json(store / MANIFEST, manifest)


REFUSED = {
    "different tokenizers": lambda m: m["tokenizer"].update(fingerprint="another"),
    "different chat templates": lambda m: m["tokenizer"].update(template="another"),
    "differ in the tokenizer's document_end": lambda m: m["tokenizer"].update(document_end=7),
    "trains every token and has no masks": lambda m: m.update(mask="all"),
    "its 'eu' has another hold_out": lambda m: m["sources"]["eu"].update(hold_out=0.5),
}


@pytest.mark.parametrize("message", REFUSED)
def test_stores_that_do_not_belong_together_are_refused_and_nothing_is_left(message, built, tmp_path):
    change_manifest(built[1], REFUSED[message])
    with pytest.raises(LatxaError, match=message):
        merge(tmp_path / "all", built)
    assert not list(tmp_path.glob("all*"))


def test_damaged_stores_one_alone_and_the_same_twice_are_refused(built, tmp_path):
    with pytest.raises(LatxaError, match="two stores or more"):
        merge(tmp_path / "all", built[:1])
    with pytest.raises(LatxaError, match="is the same store as"):
        merge(tmp_path / "all", [built[0], built[1], built[0]])
    (built[1] / "00000.bin").write_bytes(b"short")
    with pytest.raises(LatxaError, match=r"two/00000\.bin: has 5 bytes"):
        merge(tmp_path / "all", built)
    assert not list(tmp_path.glob("all*"))
    (tmp_path / "taken").mkdir()
    with pytest.raises(LatxaError, match="exists and is no token store"):
        merge(tmp_path / "taken", built[::2])


def test_stores_of_plain_text_are_merged_without_masks(tmp_path):
    stores = [write_store(tmp_path / str(i), [("eu", [([1, 2, i], [])])], masked=False) for i in range(2)]
    for store in stores:  # the writer of the tests has no hashes of files
        change_manifest(store, lambda m: m["shards"][0].update(sha256={"bin": "", "idx": ""}))
    change_manifest(stores[1], lambda m: m["settings"].update(number=1))
    merged = merge(tmp_path / "all", stores)
    assert [ids for _, ids, _ in merged.documents()] == [[1, 2, 0], [1, 2, 1]]
    assert not list((tmp_path / "all").glob("*.mask"))
