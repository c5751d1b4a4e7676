"""Fixtures that every room's tests may use. The tests run on the CPU, also where there is a GPU, but for tests/gpu."""

import os
import sys

if "gpu" not in sys.argv:  # python -m pytest -m gpu tests/gpu
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before torch is imported

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.data.writers import write_tokenizer

settings.register_profile("house", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("house")


@pytest.fixture(scope="session")
def byte_tokenizer(tmp_path_factory) -> Path:
    """Directory of a tokenizer whose id of byte b is 3 + b, with ChatML as its chat template; see writers.py."""
    return write_tokenizer(tmp_path_factory.mktemp("byte-tokenizer"))
