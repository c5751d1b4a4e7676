"""Versions of what training stands on, against those that were tested together and those that the package allows."""

import platform
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml
from packaging.requirements import Requirement
from packaging.version import Version

from latxa_megatron.doctor.finding import Finding

_REQUIRED = ("torch", "megatron-core")


@cache
def tested(component: str) -> list[str]:
    """The versions of a component in tested.yaml, oldest first."""
    rows: list[dict[str, Any]] = yaml.safe_load(Path(__file__).with_name("tested.yaml").read_text(encoding="utf-8"))
    return sorted({row[component] for row in rows if component in row}, key=Version)


def look_at_versions(gpu: bool) -> list[Finding]:
    """Python, torch, megatron-core; with a GPU Transformer Engine, apex and NCCL, too."""
    findings = [_compared("Python", "python", platform.python_version(), "take Python {newest}")]
    findings += [_package(name) for name in _REQUIRED]
    return findings + (_for_gpus() if gpu else [])


def look_at_core() -> list[Finding]:
    """Whether the C++ core loads, and its order of a thousand samples has each of them once."""
    mend = "install the package anew, with a C++17 compiler: pip install --force-reinstall --no-deps . in its source"
    try:
        from latxa_megatron import _core
    except ImportError as error:
        return [Finding("C++ core", "fail", str(error), mend)]
    if sorted(_core.Permutation(1000, 33).images(0, 1000)) != list(range(1000)):
        return [Finding("C++ core", "fail", f"{_core.__file__}: computes a wrong order of samples", mend)]
    return [Finding("C++ core", "ok", Path(_core.__file__).name)]


def look_at_driver(driver: str, cuda: str) -> list[Finding]:
    """The NVIDIA driver, and whether torch's CUDA runs on it and sees the GPUs. cuda: the newest that the driver knows."""
    import torch

    built = torch.version.cuda
    found = f"{driver}, CUDA up to {cuda}; torch {'has CUDA ' + built if built else 'is a build without CUDA'}"
    if built is None:
        return [Finding("CUDA driver", "fail", found, "install a torch with CUDA: pip install --force-reinstall torch")]
    if Version(built).major > Version(cuda).major:
        return [Finding("CUDA driver", "fail", found, f"ask for a driver with CUDA {built}, or install a torch for CUDA {cuda}")]
    if not torch.cuda.is_available():
        return [
            Finding(
                "CUDA driver", "fail", f"{found}; torch sees no GPU", "look at CUDA_VISIBLE_DEVICES and the container's --gpus"
            )
        ]
    return [Finding("CUDA driver", "ok", found)]


def _package(name: str) -> Finding:
    mend, version, allowed = f"pip install '{name}=={{newest}}'", _version(name), _allowed(name)
    if version is None:
        return Finding(name, "fail", "is not installed", mend.format(newest=tested(name)[-1]))
    if allowed and not allowed.specifier.contains(Version(version).base_version, prereleases=True):
        return Finding(name, "fail", f"{version}; this package needs {allowed.specifier}", mend.format(newest=tested(name)[-1]))
    return _compared(name, name, version, mend)


def _for_gpus() -> list[Finding]:
    import torch

    check, version = "Transformer Engine", _version("transformer-engine")
    if version:
        te = _compared(check, "transformer-engine", version, "pip install 'transformer-engine[pytorch]=={newest}'")
    else:
        mend = "pip install 'latxa-megatron[gpu]', or use the container; FP8 needs it, and its layers are faster"
        te = Finding(check, "warn", "is not installed", mend)
    apex = Finding("apex", "ok", _version("apex") or "is not installed; it is not needed")
    nccl = torch.cuda.nccl.version() if torch.cuda.is_available() else ()
    return [te, apex, *([Finding("NCCL", "ok", ".".join(map(str, nccl)))] if nccl else [])]


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _compared(check: str, component: str, version: str, mend: str) -> Finding:
    """As tested where the release is; a builder's suffix, as in 2.11.0a0+nv26.03, does not count."""
    known = tested(component)
    release = Version(version).base_version
    if any(release == one or release.startswith(one + ".") for one in known):
        return Finding(check, "ok", version)
    return Finding(check, "warn", f"{version}; tested: {', '.join(known)}", mend.format(newest=known[-1]))


def _allowed(name: str) -> Requirement | None:
    """What the installed package declares of a dependency; None where it runs from its source and is not installed."""
    try:
        declared = map(Requirement, metadata.requires("latxa-megatron") or [])
    except metadata.PackageNotFoundError:
        return None
    return next((one for one in declared if one.name == name and one.marker is None), None)
