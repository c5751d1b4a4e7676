"""What the system lets a process have: shared memory, open files, locked memory."""

import resource
import shutil
from pathlib import Path

from rich.filesize import decimal

from latxa_megatron.doctor.finding import Finding
from latxa_megatron.doctor.links import INFINIBAND

_SHARED = Path("/dev/shm")
_SHARED_ENOUGH = 1 << 30
"""NCCL keeps some 10 MB for each pair of GPUs there, and a container without further words gives 64 MiB in all."""

_FILES_ENOUGH = 4096
"""A store of a thousand shards is three thousand files, each mapped once."""


def look_at_shared_memory(path: Path = _SHARED) -> list[Finding]:
    check, mend = "shared memory", "docker run --ipc=host, or --shm-size=16g"
    if not path.is_dir():
        return [Finding(check, "fail", f"there is no {path}", mend)]
    usage = shutil.disk_usage(path)
    found = f"{path}: {decimal(usage.free)} of {decimal(usage.total)} free"
    if usage.total < _SHARED_ENOUGH:
        return [Finding(check, "warn", found, mend, usage.free)]
    if usage.free < _SHARED_ENOUGH:
        mend = f"see what fills it: ls -lS {path}; what ended jobs left there can go"
        return [Finding(check, "warn", found, mend, usage.free)]
    return [Finding(check, "ok", found, measure=usage.free)]


def look_at_limits(infiniband: Path = INFINIBAND) -> list[Finding]:
    """ulimit -n and ulimit -l of this process, and so of the training that is started in its place."""
    (files, most), unlimited = resource.getrlimit(resource.RLIMIT_NOFILE), resource.RLIM_INFINITY
    found = "unlimited" if files == unlimited else f"{files:,}"
    if files == unlimited or files >= _FILES_ENOUGH:
        findings = [Finding("open files", "ok", found)]
    elif most == unlimited or most >= _FILES_ENOUGH:
        findings = [Finding("open files", "warn", found, f"ulimit -n {_FILES_ENOUGH} in the job script, or more")]
    else:
        mend = "an administrator has to allow more: LimitNOFILE of slurmd, or docker run --ulimit nofile=65536"
        findings = [Finding("open files", "warn", found, mend)]
    locked, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    wanted = infiniband.is_dir() and any(infiniband.iterdir())
    if wanted and locked != unlimited:
        mend = "InfiniBand needs it unlimited: LimitMEMLOCK of slurmd, or docker run --ulimit memlock=-1"
        return [*findings, Finding("locked memory", "fail", decimal(locked), mend)]
    found = "unlimited" if locked == unlimited else f"{decimal(locked)}; no InfiniBand that needs more"
    return [*findings, Finding("locked memory", "ok", found)]
