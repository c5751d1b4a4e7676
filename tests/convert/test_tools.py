"""The scripts under tools/, with the flags that users of Megatron-LM and Megatron-Bridge know."""

import runpy
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.tiny import write_llama

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.fixture
def call(monkeypatch, capsys):
    """Exit status and standard error of a script that is called with arguments."""

    def run(script: str, *arguments: object) -> tuple[int, str]:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        try:
            runpy.run_path(str(TOOLS / script), run_name="__main__")
        except SystemExit as end:
            return int(end.code or 0), capsys.readouterr().err
        return 0, capsys.readouterr().err

    return run


def test_there_and_back(call, tmp_path):
    hf = write_llama(tmp_path / "hf")
    megatron_lm = ("--model-type", "GPT", "--loader", "llama_mistral", "--saver", "core", "--target-tensor-parallel-size", 2)
    assert call("convert_hf_to_megatron.py", "--load-dir", hf, "--save-dir", tmp_path / "ckpt", *megatron_lm) == (0, "")
    bridge = ("--hf-model", hf, "--megatron-path", tmp_path / "ckpt", "--hf-path", tmp_path / "back")
    assert call("convert_megatron_to_hf.py", *bridge) == (0, "")
    before, after = (load_file(path / "model.safetensors") for path in (hf, tmp_path / "back"))
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_the_commands_of_other_programs(call, tmp_path):
    """Megatron-LM's converter is told where Megatron-LM is by --megatron-path, which is Bridge's name for the checkpoint."""
    hf = write_llama(tmp_path / "hf")
    megatron_lm = "--model-type GPT --loader llama_mistral --model-size llama3 --checkpoint-type hf --saver core --bf16"
    more = "--target-tensor-parallel-size 8 --target-pipeline-parallel-size 2 --saver-transformer-impl transformer_engine"
    places = ("--load-dir", hf, "--save-dir", tmp_path / "ckpt", "--tokenizer-model", hf, "--megatron-path", tmp_path / "lm")
    assert call("convert_hf_to_megatron.py", *megatron_lm.split(), *more.split(), *places) == (0, "")
    assert (tmp_path / "ckpt" / "iter_0000000").is_dir()
    bridge = ("--hf-model", hf, "--megatron-path", tmp_path / "bridge", "--torch-dtype", "bfloat16", "--device-map", "auto")
    assert call("convert_hf_to_megatron.py", *bridge) == (0, "")
    assert (tmp_path / "bridge" / "iter_0000000").is_dir()
    back = ("--load-dir", tmp_path / "ckpt", "--megatron-path", tmp_path / "lm", "--save-dir", tmp_path / "back")
    assert call("convert_megatron_to_hf.py", *back) == (0, "")
    assert not (tmp_path / "lm").exists()
    for script in ("convert_hf_to_megatron.py", "convert_megatron_to_hf.py"):
        status, message = call(script, "--hf-model", hf, "--out" if "to_hf" in script else "--workers", 1)
        assert (status, "the following arguments are required" in message) == (2, True)


def test_what_goes_wrong_is_one_sentence(call, tmp_path):
    hf = write_llama(tmp_path / "hf")
    (tmp_path / "file").write_text("")
    status, message = call("convert_hf_to_megatron.py", "--hf", hf, "--out", tmp_path / "file" / "ckpt")
    assert (status, message) == (2, f"error: [Errno 20] Not a directory: '{tmp_path / 'file' / 'ckpt'}'\n")
    status, message = call("convert_hf_to_megatron.py", "--hf", hf, "--out", tmp_path / "ckpt", "--workers", 0)
    assert (status, message.splitlines()[-1]) == (2, "convert_hf_to_megatron.py: error: argument --workers: 0 is less than 1")
    assert call("convert_hf_to_megatron.py", "--hf", hf, "--out", tmp_path / "ckpt")[0] == 0
    status, message = call("convert_megatron_to_hf.py", "--checkpoint", tmp_path / "ckpt", "--out", tmp_path / "file" / "back")
    assert (status, message[:12]) == (2, "error: [Errn")
