"""What keeps two processes from one directory."""

import errno
import fcntl
import os
import time

import pytest

from latxa_megatron.errors import LatxaError
from latxa_megatron.files import InUse, locked, new_directory


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


def test_a_directory_that_is_filled_is_nobody_elses(tmp_path):
    """Left over contents are cleared; a lock on what had the name once is none."""
    out = tmp_path / "deep" / "out"
    (tmp_path / "deep" / "out.partial" / "left").mkdir(parents=True)
    (tmp_path / "deep" / "out.partial" / "over").symlink_to(tmp_path)
    with new_directory(out) as partial:
        assert list(partial.iterdir()) == []
        with pytest.raises(InUse, match="another process is writing it"), new_directory(out):
            pass
        (partial / "mine").touch()
    assert [path.name for path in (tmp_path / "deep").rglob("*")] == ["out", "mine"]
    with pytest.raises(LatxaError, match="exists already"), new_directory(out):
        pass


def test_a_directory_that_was_replaced_before_it_was_locked_is_not_filled(tmp_path, monkeypatch):
    out, lock = tmp_path / "out", fcntl.flock

    def late(descriptor: int, kind: int) -> None:
        lock(descriptor, kind)
        (tmp_path / "out.partial").rename(tmp_path / "gone")
        (tmp_path / "out.partial").mkdir()
        (tmp_path / "out.partial" / "of another").touch()

    monkeypatch.setattr(fcntl, "flock", late)
    with pytest.raises(InUse, match="has just removed it; start again"), new_directory(out):
        pass
    assert (tmp_path / "out.partial" / "of another").exists()


def test_a_disk_that_is_full_when_it_is_flushed_keeps_nothing(tmp_path, monkeypatch):
    """Some disks say so only then."""

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def fill() -> None:
        with new_directory(tmp_path / "out") as partial:
            (partial / "mine").touch()

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=f"No space left on device: '{tmp_path / 'out.partial'}'"):
        fill()
    assert list(tmp_path.iterdir()) == []
