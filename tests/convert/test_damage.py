"""What is not a whole model is refused by name, before anything is written; no header, however wrong, does anything else."""

import json
import os
import pickle
import random
import resource
import shutil
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from latxa_megatron.convert import exporter, importer
from latxa_megatron.convert.exporter import export_hf
from latxa_megatron.convert.hf import HfTensors
from latxa_megatron.convert.importer import import_hf
from latxa_megatron.convert.megatron import resolve
from latxa_megatron.convert.torch_dist_writer import Piece, Stored, TorchDistWriter
from latxa_megatron.convert.verify import verify
from latxa_megatron.errors import LatxaError
from tests.tiny import write_llama


def _edit_config(directory: Path, **values) -> None:
    file = directory / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def _edit_tensors(directory: Path, edit) -> None:
    tensors = load_file(directory / "model.safetensors")
    edit(tensors)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


def _edit_header(directory: Path, edit) -> None:
    file = directory / "model.safetensors"
    content = file.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + size])
    edit(header)
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + size :])


def _cut(directory: Path) -> None:
    file = directory / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def _shards(directory: Path, edit) -> None:
    """Spread the tensors over two files, and edit the index of them."""
    tensors = load_file(directory / "model.safetensors")
    names = sorted(tensors)
    files = {"a.safetensors": names[:9], "b.safetensors": names[9:]}
    for file, some in files.items():
        save_file({name: tensors[name] for name in some}, directory / file, metadata={"format": "pt"})
    (directory / "model.safetensors").unlink()
    index = {"weight_map": {name: file for file, some in files.items() for name in some}}
    edit(directory, index)
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


GATE = "model.layers.1.mlp.gate_proj.weight"

DAMAGE = {
    "a tensor is missing": (
        lambda d: _edit_tensors(d, lambda t: t.pop("model.layers.2.mlp.up_proj.weight")),
        "has no tensor model.layers.2.mlp.up_proj.weight, which its config.json asks for",
    ),
    "a tensor too many": (
        lambda d: _edit_tensors(d, lambda t: t.update({"model.layers.0.mlp.gate_proj.bias": torch.zeros(96)})),
        "has the tensor model.layers.0.mlp.gate_proj.bias, which a model of its config.json does not",
    ),
    "two types in one": (
        lambda d: _edit_tensors(d, lambda t: t.update({GATE: t[GATE].half()})),
        "gate_proj.weight is torch.float16 and model.layers.0.mlp.gate_proj.weight torch.float32",
    ),
    "a type that is not known": (
        lambda d: _edit_tensors(d, lambda t: t.update({GATE: t[GATE].to(torch.float8_e4m3fn)})),
        "gate_proj.weight has the type F8_E4M3; known are F32, F16, BF16",
    ),
    "a truncated file": (_cut, "model.safetensors: is not a whole safetensors file"),
    "a pointer of git-lfs": (
        lambda d: (d / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"),
        "model.safetensors: is what git-lfs leaves in place of the weights; run git lfs pull there",
    ),
    "offsets that overlap": (
        lambda d: _edit_header(d, lambda h: h[GATE].update(data_offsets=[0, h[GATE]["data_offsets"][1]])),
        "model.safetensors: is not a whole safetensors file",
    ),
    "a shape larger than its bytes": (
        lambda d: _edit_header(d, lambda h: h[GATE].update(shape=[960, 64])),
        "model.safetensors: is not a whole safetensors file",
    ),
    "no weights": (lambda d: (d / "model.safetensors").unlink(), "only safetensors weights are read"),
    "weights in a pickle": (
        lambda d: (d / "model.safetensors").rename(d / "pytorch_model.bin"),
        "pytorch_model.bin is a pickle, which can run any program; only safetensors weights are read",
    ),
    "a missing file": (
        lambda d: _shards(d, lambda d, index: (d / "b.safetensors").unlink()),
        "b.safetensors: is missing; download the model again",
    ),
    "an index of absent tensors": (
        lambda d: _shards(d, lambda d, index: index["weight_map"].update({"model.layers.9.x": "a.safetensors"})),
        "a.safetensors: has no tensor model.layers.9.x, which model.safetensors.index.json says it has",
    ),
    "one file beside an index of others": (
        lambda d: _shards(d, lambda d, index: shutil.copyfile(d / "a.safetensors", d / "model.safetensors")),
        "model.safetensors: is beside model.safetensors.index.json, which does not name it",
    ),
    "an index without a map": (lambda d: _shards(d, lambda d, index: index.update(weight_map=[])), "has no weight_map"),
    "an index that leads elsewhere": (
        lambda d: _shards(d, lambda d, index: index["weight_map"].update({GATE: "../b.safetensors"})),
        "'../b.safetensors' is not the name of a safetensors file beside it",
    ),
    "sizes of another model": (lambda d: _edit_config(d, intermediate_size=95), "gate_proj.weight has the shape"),
    "fewer layers": (lambda d: _edit_config(d, num_hidden_layers=3), "has the tensor model.layers.3."),
    "a family that is not known": (
        lambda d: _edit_config(d, model_type="gpt2"),
        "model_type is 'gpt2'; supported are llama, mistral, qwen2, qwen3",
    ),
    "another activation": (lambda d: _edit_config(d, hidden_act="gelu"), "hidden_act is 'gelu'; only silu is supported"),
    "biases": (lambda d: _edit_config(d, attention_bias=True), "attention_bias is set"),
    "another RoPE": (lambda d: _edit_config(d, rope_parameters={"rope_type": "yarn", "factor": 4.0}), "RoPE scaling"),
    "a size that is a word": (lambda d: _edit_config(d, num_attention_heads="many"), "is not a number|no model"),
    "heads that do not divide": (lambda d: _edit_config(d, num_key_value_heads=3), "are those of no model"),
    "a configuration that is a list": (lambda d: (d / "config.json").write_text("[]"), "is not the configuration of a model"),
    "no configuration": (lambda d: (d / "config.json").unlink(), "config.json: there is no such file"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_source_is_refused_and_nothing_is_written(name, tmp_path):
    damage, message = DAMAGE[name]
    source = write_llama(tmp_path / "hf")
    damage(source)
    with pytest.raises(LatxaError, match=message.replace("(", r"\(")):
        import_hf(source, tmp_path / "ckpt")
    assert not (tmp_path / "ckpt").exists()


def test_headers_that_are_wrong_anywhere_are_refused_or_read_as_they_are(tmp_path):
    """3000 files, each with one to four bytes of its header, or its length, changed: nothing but LatxaError comes of it."""
    content = bytearray((write_llama(tmp_path / "hf") / "model.safetensors").read_bytes())
    (size,) = struct.unpack("<Q", content[:8])
    file = tmp_path / "model.safetensors"
    refused, chance = 0, random.Random(5)
    for _ in range(3000):
        changed = bytearray(content)
        for _ in range(chance.randint(1, 4)):
            changed[chance.randrange(8 + size)] = chance.choice([chance.randrange(256), *b'0123456789"[]{},:-'])
        file.write_bytes(changed)
        try:
            tensors = HfTensors(tmp_path) if (tmp_path / "config.json").exists() else _weights(tmp_path)
        except LatxaError:
            refused += 1
            continue
        for name in tensors.names():
            assert tensors.read(name).shape == tensors.place(name).shape
    assert 2000 < refused < 3000


def _weights(directory: Path) -> HfTensors:
    (directory / "config.json").write_text("{}")
    return HfTensors(directory)


@pytest.fixture
def no_large_files():
    """No file can grow over 30 kB; Python ignores the signal, and a write fails with EFBIG."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_write_that_fails_leaves_nothing(workers, no_large_files, tmp_path):
    source = write_llama(tmp_path / "hf", max_shard_size="100KB")
    import_hf(source, tmp_path / "whole")
    no_large_files()
    with pytest.raises(LatxaError, match=r"iter_0000000.partial: could not be written .*File too large"):
        import_hf(source, tmp_path / "ckpt", workers=workers)
    assert not list((tmp_path / "ckpt").iterdir())
    with pytest.raises(OSError, match="File too large"):
        export_hf(tmp_path / "whole", tmp_path / "back", workers=workers)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ckpt", "hf", "whole"]


def test_a_write_that_fails_anywhere_in_an_archive_is_the_disks_error(no_large_files, tmp_path):
    """Torch raises RuntimeError, of an archive that it cannot end, for some."""
    no_large_files()
    tensor = Stored("x", (1000,), torch.float32)
    for size in range(1300, 1500, 30):
        pieces = [Piece(tensor, (0,), (size,), lambda size=size: torch.zeros(size)) for _ in range(60)]
        with pytest.raises(OSError, match="File too large"):
            TorchDistWriter(tmp_path).write_file(0, pieces)


def test_a_disk_that_is_too_small_is_refused_before_anything_is_written(monkeypatch, tmp_path):
    source = write_llama(tmp_path / "hf")
    import_hf(source, tmp_path / "whole")
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 100_000}))
    with pytest.raises(LatxaError, match=r"are to be written, and 100.0 kB are free"):
        import_hf(source, tmp_path / "ckpt")
    with pytest.raises(LatxaError, match=r"are to be written, and 100.0 kB are free"):
        export_hf(tmp_path / "whole", tmp_path / "back")
    assert not list((tmp_path / "ckpt").iterdir())
    assert not list(tmp_path.glob("back*"))


def test_a_source_that_shrinks_while_it_is_read(monkeypatch, tmp_path):
    source = write_llama(tmp_path / "hf")
    monkeypatch.setattr(importer, "require_space", lambda *_: _cut(source))
    with pytest.raises(LatxaError, match=r"model.safetensors: has become shorter"):
        import_hf(source, tmp_path / "ckpt")
    assert not list((tmp_path / "ckpt").iterdir())


def test_what_is_no_checkpoint_is_refused(tmp_path):
    (tmp_path / "old" / "iter_0000010" / "mp_rank_00").mkdir(parents=True)
    (tmp_path / "empty").mkdir()
    with pytest.raises(LatxaError, match="is a checkpoint for one layout; have Megatron-LM save it"):
        resolve(tmp_path / "old" / "iter_0000010")
    with pytest.raises(LatxaError, match="holds no Megatron checkpoint"):
        resolve(tmp_path / "empty")
    with pytest.raises(LatxaError, match="absent: there is no such checkpoint directory"):
        resolve(tmp_path / "absent")


@pytest.mark.parametrize("kind", ["short", "absent", "a part is not in the list"])
def test_a_checkpoint_that_lacks_numbers_is_refused_before_any_is_written(kind, monkeypatch, tmp_path):
    """Named itself, as those of other programs are, it is not compared with a run.json."""
    directory = import_hf(write_llama(tmp_path / "hf"), tmp_path / "ckpt")
    file = directory / "__0_0.distcp"
    if kind == "short":
        os.truncate(file, file.stat().st_size - 1)
    elif kind == "absent":
        file.unlink()
    else:
        metadata = pickle.loads((directory / ".metadata").read_bytes())
        metadata.state_dict_metadata["decoder.layers.mlp.linear_fc2.weight"].chunks.pop()
        (directory / ".metadata").write_bytes(pickle.dumps(metadata))
        (directory / "run.json").unlink()  # which has its hash
    monkeypatch.setattr(exporter, "write_safetensors", None)
    for use in (lambda: export_hf(directory, tmp_path / "out"), lambda: verify(tmp_path / "hf", directory)):
        with pytest.raises(LatxaError, match=r"is missing from __0_0.distcp; copy or|fc2.weight is not whole; copy or"):
            use()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ckpt", "hf"]


def test_an_import_that_has_lost_a_file_is_not_done(tmp_path):
    source = write_llama(tmp_path / "hf")
    (import_hf(source, tmp_path / "ckpt") / "__0_1.distcp").unlink()
    with pytest.raises(LatxaError, match=r"iter_0000000: is not whole by its run.json, a file is missing"):
        import_hf(source, tmp_path / "ckpt")


def test_a_damaged_checkpoint_is_not_passed_over_in_silence(tmp_path):
    """An export of the one before would look like that of the newest."""
    root = tmp_path / "ckpt"
    before = import_hf(write_llama(tmp_path / "hf"), root)
    newest = root / "iter_0000007"
    shutil.copytree(before, newest)
    assert resolve(root) == newest
    with (newest / "common.pt").open("ab") as file:
        file.write(b"more")
    with pytest.raises(LatxaError, match=f"iter_0000007: is not whole by its run.json, .*; name {before} to take the last one"):
        resolve(root)
    (newest / "run.json").unlink()
    with pytest.raises(LatxaError, match=r"iter_0000007: has no run.json; if another program wrote it, name it itself"):
        resolve(root)
    shutil.rmtree(newest)
    (before / "common.pt").unlink()
    with pytest.raises(LatxaError, match=r"iter_0000000: is not whole by its run.json, .*; none there is whole"):
        resolve(root)


def test_a_checkpoint_without_checksums_is_exported(tmp_path):
    """torch.save can be told to write none, and writes 0 in their place."""
    source = write_llama(tmp_path / "hf")
    torch.serialization.set_crc32_options(False)
    try:
        directory = import_hf(source, tmp_path / "ckpt")
    finally:
        torch.serialization.set_crc32_options(True)
    export_hf(directory, tmp_path / "out")
    expected, found = (load_file(path / "model.safetensors") for path in (source, tmp_path / "out"))
    assert expected.keys() == found.keys()
    assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())


@pytest.mark.parametrize("cut", [False, True])
def test_a_flipped_bit_is_not_exported(cut, monkeypatch, tmp_path):
    """Anywhere in the numbers: torch.save wrote a checksum of each part."""
    if cut:
        monkeypatch.setattr(importer, "PIECE_BYTES", 1000)
        monkeypatch.setattr(exporter, "PIECE_BYTES", 300)
    source = write_llama(tmp_path / "hf")
    directory = import_hf(source, tmp_path / "ckpt")
    file = directory / "__0_0.distcp"
    content = file.read_bytes()
    chance = random.Random(2)
    for tensor in list(load_file(source / "model.safetensors").values())[::5]:
        row = tensor.view(-1, tensor.shape[-1])[:1].numpy().tobytes()
        changed = bytearray(content)
        changed[content.index(row) + chance.randrange(len(row))] ^= 1 << chance.randrange(8)
        file.write_bytes(changed)
        with pytest.raises(LatxaError, match=r"__0_0.distcp: a part of .* is damaged \(its checksum is another .*; copy"):
            export_hf(directory, tmp_path / "out")
        assert not list(tmp_path.glob("out*"))
    file.write_bytes(content)
    export_hf(directory, tmp_path / "out")


def test_another_list_of_tensors_than_was_written_is_refused(tmp_path):
    directory = import_hf(write_llama(tmp_path / "hf"), tmp_path / "ckpt")
    file = directory / ".metadata"
    file.write_bytes(file.read_bytes() + b" ")  # as pickles go, the same
    with pytest.raises(LatxaError, match=r"\.metadata: is not the one that run.json has the hash of; copy or make"):
        export_hf(directory, tmp_path / "out")
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize("value", ["../model.safetensors", "/tmp/model.safetensors", 7])
def test_a_checkpoint_cannot_name_files_elsewhere(value, tmp_path):
    """A checkpoint may come from anywhere; what its import kept of names would be written to."""
    directory = import_hf(write_llama(tmp_path / "hf"), tmp_path / "ckpt")
    kept = tmp_path / "ckpt" / "hf" / "weight_map.json"
    kept.write_text(json.dumps({**json.loads(kept.read_text()), "model.norm.weight": value}))
    with pytest.raises(LatxaError, match=f"weight_map.json: {value!r} is not the name of a safetensors file beside it"):
        export_hf(directory, tmp_path / "out")
    kept.write_text("[]")
    with pytest.raises(LatxaError, match=r"weight_map.json: has no weight_map"):
        export_hf(directory, tmp_path / "out")


def test_a_run_file_that_is_none(tmp_path):
    directory = import_hf(write_llama(tmp_path / "hf"), tmp_path / "ckpt")
    (directory / "run.json").write_text("[]")
    with pytest.raises(LatxaError, match=r"iter_0000000: is not whole by its run.json"):
        export_hf(tmp_path / "ckpt", tmp_path / "out")
    with pytest.raises(LatxaError, match=r"run.json: is not what a run or an import writes; copy or make"):
        export_hf(directory, tmp_path / "out")


NORM = "decoder.final_layernorm.weight"

WRONG_LISTS = {
    "nothing": lambda m: vars(m).pop("state_dict_metadata"),
    "a name that is a number": lambda m: m.state_dict_metadata.update({7: m.state_dict_metadata[NORM]}),
    "a type that is a word": lambda m: setattr(m.state_dict_metadata[NORM].properties, "dtype", "float32"),
    "a part without sizes": lambda m: vars(m.state_dict_metadata[NORM].chunks[0]).pop("sizes"),
    "a part of other dimensions": lambda m: setattr(m.state_dict_metadata[NORM].chunks[0], "offsets", torch.Size([0, 0])),
    "a place that is none": lambda m: m.storage_data.update(dict.fromkeys(m.storage_data)),
    "a file that is a number": lambda m: [setattr(info, "relative_path", 7) for info in m.storage_data.values()],
}


@pytest.mark.parametrize("name", WRONG_LISTS)
def test_a_list_of_tensors_that_is_wrong_is_refused(name, tmp_path):
    """Beside no run.json, as other programs' are, that has its hash."""
    hf = write_llama(tmp_path / "hf")
    directory = import_hf(hf, tmp_path / "ckpt")
    (directory / "run.json").unlink()
    metadata = pickle.loads((directory / ".metadata").read_bytes())
    WRONG_LISTS[name](metadata)
    (directory / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(LatxaError, match=r"\.metadata: is no whole list of tensors \(.*\); copy or make"):
        export_hf(directory, tmp_path / "out", like=hf)
