"""What keeps two processes from one directory."""

import os
import time

import pytest

from latxa_megatron.errors import LatxaError
from latxa_megatron.files import locked


def test_a_lock_is_waited_for_as_long_as_said(tmp_path):
    """A forked child keeps its parent's lock until it ends, as the writer of a killed run's checkpoint does."""
    with locked(tmp_path, "at work"):
        child = os.fork()
        if child == 0:
            time.sleep(1)
            (tmp_path / "ended").touch()
            os._exit(0)
    with pytest.raises(LatxaError, match="another process is at work"), locked(tmp_path, "at work"):
        pass
    with locked(tmp_path, "at work", seconds=60):
        assert (tmp_path / "ended").exists()
    os.waitpid(child, 0)
