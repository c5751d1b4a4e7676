"""megatron-core on a machine without CUDA."""

import os
import subprocess
import sys

TRAIN = """
import latxa_megatron.train.loop
from megatron.core.optimizer.clip_grads import multi_tensor_applier
print(multi_tensor_applier.__module__)
"""


def test_transformer_engine_is_left_alone_where_no_gpu_is(tmp_path):
    """As on a login node with a GPU container: it is there, and cannot be used."""
    package = tmp_path / "transformer_engine"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported without a GPU')")
    paths = os.pathsep.join([str(tmp_path), *sys.path])
    command = [sys.executable, "-c", TRAIN]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": paths}, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "megatron.core.utils"
