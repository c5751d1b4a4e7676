"""What a run with its weights in FP8 trained is exported without FP8's rounding."""

import os
import subprocess
import sys

import pytest
import torch

from tests.gpu.conftest import trained

pytestmark = pytest.mark.gpu


def test_weights_that_hardly_moved_are_those_of_the_import(run_file):
    from safetensors.torch import load_file

    still = ["optimizer.lr=1e-30", "optimizer.weight_decay=0", "train.steps=2", "checkpoint.every=2"]
    trained(run_file, "still", ["precision.fp8=tensorwise", "precision.fp8_params=true", "precision.fp8_head=true", *still])
    root, out = run_file.parent, run_file.parent / "exported"
    latxa = [sys.executable, "-m", "latxa_megatron", "convert"]
    for command in (
        ["export", "--checkpoint", root / "still" / "checkpoints", "--out", out],
        ["verify", "--hf", out, "--checkpoint", root / "still" / "checkpoints"],
    ):
        subprocess.run([*latxa, *command], check=True, env=os.environ)
    expected, found = (load_file(directory / "model.safetensors") for directory in (root / "hf", out))
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():  # a weight of 0 moves by the learning rate all the same
        torch.testing.assert_close(found[name], tensor.bfloat16(), rtol=0, atol=1e-20)
