"""The disk that a run writes to: how fast it is, and whether the planned checkpoints fit."""

import errno
import mmap
import os
import shutil
import tempfile
import time
from pathlib import Path

from rich.filesize import decimal

from latxa_megatron.config import RunConfig
from latxa_megatron.doctor.finding import Finding
from latxa_megatron.errors import LatxaError

SIZE = 512 << 20
"""Bytes that are written and read: seconds on a disk that is too slow, and more than a controller's cache takes at once."""

_BLOCK = 16 << 20
_SLOW = 100e6
"""Bytes per second below which the checkpoint of an 8B (112 GB) takes 19 minutes and more."""


def nearest(path: Path) -> Path:
    """The path itself, or the directory above it that is there already: doctor makes none. Raises LatxaError for a file."""
    path = path.absolute()
    found = next(one for one in (path, *path.parents) if one.exists())
    if not found.is_dir():
        raise LatxaError(f"{found}: is a file, and a run's output needs a directory")
    return found


def look_at_speed(directory: Path, size: int) -> list[Finding]:
    """Write and read so many bytes past the system's cache, and remove them."""
    where = nearest(directory)
    with tempfile.NamedTemporaryFile(dir=where, prefix=".latxa-doctor-") as file:
        direct = _past_cache(file.name)
        written = _write(file.name, size, direct)
        read = _read(file.name, size, direct)
    how = "O_DIRECT" if direct else "fsync"
    found = f"{where}: writes {decimal(int(written))}/s, reads {decimal(int(read))}/s ({size >> 20} MiB, {how})"
    if min(written, read) < _SLOW:
        mend = "give the run an `out` on the cluster's parallel file system, or on a local disk"
        return [Finding("disk speed", "warn", found, mend, min(written, read))]
    return [Finding("disk speed", "ok", found, measure=min(written, read))]


def look_at_space(run: RunConfig) -> list[Finding]:
    """Whether the checkpoints that the run keeps, and the one that is being written beside them, fit on the disk of run.out."""
    from latxa_megatron.train.size import bytes_each

    check, where = "disk space", nearest(run.out)
    free = shutil.disk_usage(where).free
    parameters = parameters_of(run)
    if parameters is None:
        mend = "put the model there (model.hf), or state scale.parameters in the run file"
        return [Finding(check, "warn", f"{where}: {decimal(free)} free; the size of the model is not known", mend, free)]
    one = parameters * bytes_each(run)
    written = _on_disk(run.checkpoints)
    copies = run.checkpoint.keep + 1 if run.checkpoint.every is not None else 1
    missing = max(0, copies * one - written)
    found = f"{where}: {decimal(free)} free; {copies} checkpoints of {decimal(one)}"
    if written:
        found += f", {decimal(written)} of which are there"
    if run.checkpoint.keep_every:
        found += f", and one more each {run.checkpoint.keep_every:,} steps"
    if missing > free:
        mend = f"free {decimal(missing - free)}, set `out` to another disk, or lower checkpoint.keep"
        return [Finding(check, "fail", found, mend, free)]
    return [Finding(check, "ok", found, measure=free)]


def parameters_of(run: RunConfig) -> int | None:
    """All parameters of model.hf; where the model is not there, those that the run file states."""
    from latxa_megatron.model.llama import LlamaShape
    from latxa_megatron.train.size import parameters

    return parameters(LlamaShape.from_hf(run.model.hf)) if run.model.hf.is_dir() else run.scale.parameters


def _on_disk(directory: Path) -> int:
    return sum(file.stat().st_size for file in directory.rglob("*") if file.is_file()) if directory.is_dir() else 0


def _past_cache(path: str) -> bool:
    try:
        os.close(os.open(path, os.O_RDWR | os.O_DIRECT))
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return False
    return True


def _write(path: str, size: int, direct: bool) -> float:
    """Bytes per second. The block is random: some file systems compress, or store no zeros."""
    block = mmap.mmap(-1, _BLOCK)  # aligned to a page, as O_DIRECT wants it
    block[:] = os.urandom(_BLOCK)
    descriptor = os.open(path, os.O_WRONLY | (os.O_DIRECT if direct else 0))
    try:
        began = time.perf_counter()
        for _ in range(0, size, _BLOCK):
            if os.write(descriptor, block) != _BLOCK:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        os.fsync(descriptor)
        return size / (time.perf_counter() - began)
    finally:
        os.close(descriptor)


def _read(path: str, size: int, direct: bool) -> float:
    """Bytes per second; without O_DIRECT the system is asked to forget what it has of the file first."""
    block = mmap.mmap(-1, _BLOCK)
    descriptor = os.open(path, os.O_RDONLY | (os.O_DIRECT if direct else 0))
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        began = time.perf_counter()
        while os.readv(descriptor, [block]):
            pass
        return size / (time.perf_counter() - began)
    finally:
        os.close(descriptor)
