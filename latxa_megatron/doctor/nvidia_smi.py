"""What the driver's own tool says of the GPUs. Its XML names each thing and leaves out what a GPU or a driver does not have."""

import re
import shutil
import subprocess
import xml.etree.ElementTree as xml
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from latxa_megatron.errors import LatxaError

_DEVICE = Path("/dev/nvidiactl")

Run = Callable[..., str]
"""What runs nvidia-smi with some arguments and returns its output: nvidia_smi(), or a test's stand-in."""


@dataclass(frozen=True)
class Machine:
    """The driver, the newest CUDA that it knows, and an XML element for each GPU."""

    driver: str
    cuda: str
    gpus: list[xml.Element]


def nvidia_smi(*arguments: str) -> str:
    """Its output. Raises LatxaError with what it said where it failed."""
    ran = subprocess.run(["nvidia-smi", *arguments], capture_output=True, text=True, timeout=120)
    if ran.returncode:
        said = " ".join((ran.stdout + ran.stderr).split())
        raise LatxaError(f"nvidia-smi ended with status {ran.returncode}: {said[:200]}")
    return ran.stdout


def machine(run: Run = nvidia_smi) -> Machine | None:
    """The GPUs of this machine; None where it has none, and no driver. Raises LatxaError for a driver that does not answer."""
    if run is nvidia_smi and shutil.which("nvidia-smi") is None:
        if _DEVICE.exists():
            raise LatxaError(
                "there is a GPU driver, but no nvidia-smi; give the container NVIDIA_DRIVER_CAPABILITIES=compute,utility"
            )
        return None
    log = xml.fromstring(run("-q", "-x"))
    return Machine(said(log, "driver_version"), said(log, "cuda_version"), log.findall("gpu"))


def said(element: xml.Element, path: str) -> str:
    """The text at a path; empty where there is none, or nvidia-smi says N/A."""
    text = (element.findtext(path) or "").strip()
    return "" if text == "N/A" or text.startswith("[") else text


def number(element: xml.Element, path: str) -> float | None:
    """The number at a path, without its unit."""
    match = re.match(r"-?\d+(\.\d+)?", said(element, path))
    return float(match[0]) if match else None
