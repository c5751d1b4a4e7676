"""A model of the Hugging Face hub by its name: what was downloaded before is found without a network."""

import os
import shutil
import subprocess
import sys

import pytest

from latxa_megatron.convert.hf import local_directory
from tests.tiny import write_llama

COMMAND = """
import sys
from latxa_megatron.convert.hf import local_directory
from latxa_megatron.errors import LatxaError
try:
    print(local_directory(sys.argv[1]))
except LatxaError as error:
    print(error)
"""


@pytest.fixture
def ask(tmp_path):
    def run(name: str) -> str:
        environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, "-c", COMMAND, name]
        return subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()

    return run


def test_a_model_that_was_downloaded_before(ask, tmp_path):
    kept = tmp_path / "cache" / "models--HiTZ--latxa"
    snapshot = kept / "snapshots" / "0123456789012345678901234567890123456789"
    shutil.copytree(write_llama(tmp_path / "hf"), snapshot)
    (kept / "refs").mkdir()
    (kept / "refs" / "main").write_text(snapshot.name)
    assert ask("HiTZ/latxa") == str(snapshot)
    assert ask("HiTZ/other") == "HiTZ/other: is no directory, and the Hugging Face hub cannot be reached"


def test_a_path_is_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner" / "name").mkdir(parents=True)
    for name in ("owner/name", "./owner/other", "/owner/other", "a/b/c"):
        assert str(local_directory(name)) in (name, name.removeprefix("./"))


def test_a_name_that_is_none(ask):
    for name in ("owner/a--b", "owner/a..b", "owner/-b"):
        assert ask(name) == f"{name}: is no directory, and no name of a model of the Hugging Face hub"


def test_the_same_weights_are_downloaded_once(monkeypatch):
    """What a repository may hold, and what the hub's own filter lets through of it."""
    import huggingface_hub
    from huggingface_hub.utils import filter_repo_objects

    there = ["config.json", "model-00001-of-00002.safetensors", "model.safetensors.index.json", "tokenizer.json"]
    there.append("additional_chat_templates/rag.jinja")
    more = ["consolidated.safetensors", "consolidated-00001-of-00002.safetensors", "original/model.safetensors", "a.bin"]
    more += ["original/config.json", "onnx/tokenizer.json"]
    asked = []

    def download(name, **patterns):
        asked.extend(filter_repo_objects([*there, *more], **patterns))
        return "somewhere"

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert str(local_directory("owner/name")) == "somewhere"
    assert asked == there
