"""Checkpoints written beside the training that goes on are those written while it waits."""

import json
import shutil

import pytest
import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing import ShardedTensor
from megatron.core.dist_checkpointing.strategies import filesystem_async

from latxa_megatron.errors import LatxaError
from latxa_megatron.files import sha256
from latxa_megatron.sections import CheckpointSection
from latxa_megatron.train import checkpoint
from latxa_megatron.train.distributed import connected
from latxa_megatron.train.save import Saver
from tests.train.conftest import SHORT
from tests.train.test_resume import state

KEPT = ["checkpoint.every=3", "checkpoint.keep=1", "checkpoint.keep_every=6"]


def names(run, name: str) -> list[str]:
    return sorted(path.name for path in (run.out(name) / "checkpoints").glob("iter_*"))


def test_training_goes_on_and_the_checkpoint_does_not_change(finished):
    """The step after a save begins while the checkpoint is written."""
    for name, written in {"beside": "true", "at once": "false"}.items():
        finished.train_here(name, [*SHORT, *KEPT, f"checkpoint.async_save={written}"])
    assert names(finished, "beside") == names(finished, "at once") == ["iter_0000006", "iter_0000009"]
    for name in names(finished, "at once"):
        expected, found = (state(finished.out(which) / "checkpoints" / name) for which in ("at once", "beside"))
        assert expected.keys() == found.keys()
        assert any("exp_avg" in key for key in expected)
        for key, tensor in expected.items():
            assert torch.equal(tensor, found[key]), (name, key)


def test_megatron_core_saves_as_before_once_a_saver_has(tmp_path):
    """In the same process, by itself."""
    (tmp_path / "stock").mkdir()
    with connected():
        saver = Saver(tmp_path, CheckpointSection())
        saver.save(1, {"ours": ShardedTensor.from_rank_offsets("ours", torch.arange(8.0))}, {})
        saver.finish()
        dist_checkpointing.save({"stock": ShardedTensor.from_rank_offsets("stock", torch.arange(9.0))}, str(tmp_path / "stock"))
    assert torch.equal(state(tmp_path / "iter_0000001")["ours"], torch.arange(8.0))
    assert torch.equal(state(tmp_path / "stock")["stock"], torch.arange(9.0))


def test_run_json_has_the_hash_of_every_file(finished):
    """Two ranks hash a share each."""
    directory = checkpoint.latest(finished.out("killed dp2") / "checkpoints")
    facts = json.loads((directory / "run.json").read_text())
    files = {str(p.relative_to(directory)): p for p in directory.rglob("*") if p.is_file() and p.name != "run.json"}
    assert len(files) > 3
    assert facts["sha256"] == {name: sha256(file) for name, file in files.items()}
    assert facts["bytes"] == {name: file.stat().st_size for name, file in files.items()}


def test_a_damaged_later_checkpoint_does_not_count_as_kept(finished, capsys):
    """Nor does what a killed save left."""
    shutil.copytree(finished.out("short"), finished.out("kept"))
    root = finished.out("kept") / "checkpoints"
    (root / "iter_0000009" / "run.json").write_text("{")
    (root / "iter_0000008.partial").mkdir()
    finished.train_here("kept", ["train.steps=7", "checkpoint.every=7", "checkpoint.keep=1"])
    assert [path.name for path in root.iterdir() if path.name != checkpoint.TRACKER] == ["iter_0000007"]
    assert checkpoint.latest(root) == root / "iter_0000007"
    assert (root / checkpoint.TRACKER).read_text() == "7\n"
    assert "iter_0000009: is damaged, and passed over" in capsys.readouterr().err


@pytest.mark.parametrize("written", ["true", "false"])
def test_a_disk_that_takes_no_more_ends_the_run_with_one_sentence(written, finished, monkeypatch):
    def full(transforms, stream, data, write_item, storage_key, serialization_format=None):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(filesystem_async, "_write_item", full)
    name = f"full disk {written}"
    with pytest.raises(LatxaError, match=r"iter_0000003\.partial: could not be written .*(No space left on device|OSError)"):
        finished.train_here(name, [*SHORT, f"checkpoint.async_save={written}"])
    assert checkpoint.latest(finished.out(name) / "checkpoints") is None
