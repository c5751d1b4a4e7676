"""The GPUs that a run can be planned for."""

from dataclasses import dataclass
from pathlib import Path

import yaml

from latxa_megatron.errors import LatxaError

_FILE = Path(__file__).with_name("gpus.yaml")


@dataclass(frozen=True)
class Gpu:
    """memory in GiB, bandwidth in TB/s, link and network in GB/s each way, the rest in TFLOP/s; fp8 is None without FP8."""

    name: str
    memory: float
    bandwidth: float
    link: float
    network: float
    bf16: float
    attention: float
    fp8: float | None = None


def find_gpu(name: str) -> Gpu:
    """Raises LatxaError for a GPU that gpus.yaml does not have."""
    known = yaml.safe_load(_FILE.read_text())
    if name not in known:
        raise LatxaError(f"--gpu {name}: is not known; choose one of {', '.join(sorted(known))}")
    return Gpu(name=name, **known[name])
