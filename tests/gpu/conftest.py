"""Tests of what only a GPU can run: python -m pytest -m gpu tests/gpu, on a machine with Transformer Engine."""

import pytest


@pytest.fixture(scope="session", autouse=True)
def one_process():
    import torch

    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    from latxa_megatron.model.layout import Layout
    from latxa_megatron.train.distributed import connected, spread

    with connected():
        spread(Layout(), seed=1)
        yield
