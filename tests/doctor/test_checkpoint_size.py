"""What a checkpoint takes, against one that training wrote."""

import pytest
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from latxa_megatron.config import load_run
from latxa_megatron.doctor.disk import parameters_of
from latxa_megatron.train.size import bytes_each
from tests.train.conftest import TinyRun


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return TinyRun(tmp_path_factory.mktemp("tiny"))


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_bytes_of_a_checkpoint_that_was_written(tiny, dtype):
    """The tensors that torch finds in it; beside them stand their names and places, some 8 kB each whatever their size."""
    tiny.train_here(dtype, ["train.steps=1", "checkpoint.every=1", f"precision.dtype={dtype}"])
    (written,) = tiny.out(dtype).glob("checkpoints/iter_*")
    entries = FileSystemReader(written).read_metadata().state_dict_metadata.values()
    tensors = [entry for entry in entries if isinstance(entry, TensorStorageMetadata)]
    held = sum(entry.size.numel() * entry.properties.dtype.itemsize for entry in tensors)
    run = load_run(tiny.file, [f"precision.dtype={dtype}"])
    assert parameters_of(run) * bytes_each(run) == pytest.approx(held, rel=1e-3)
    assert 0 < sum(file.stat().st_size for file in written.rglob("*") if file.is_file()) - held < 10_000 * len(tensors)
