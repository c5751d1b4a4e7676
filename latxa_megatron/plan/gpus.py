"""The GPUs that a run can be planned for."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from latxa_megatron.errors import LatxaError
from latxa_megatron.sections import ScaleSection

_FILE = Path(__file__).with_name("gpus.yaml")
REACHED = 0.8
"""The share of `link` and `network` that messages are taken to reach."""


@dataclass(frozen=True)
class Gpu:
    """memory in GiB, bandwidth in TB/s, link and network in GB/s each way, watts of the board at most, the rest in TFLOP/s.

    fp8 is None without FP8. node: GPUs of a node, which have the link.
    """

    name: str
    memory: float
    bandwidth: float
    link: float
    network: float
    watts: float
    bf16: float
    attention: float
    fp8: float | None = None
    node: int = 8


def find_gpu(name: str) -> Gpu:
    """Raises LatxaError for a GPU that gpus.yaml does not have."""
    known = yaml.safe_load(_FILE.read_text())
    if name not in known:
        raise LatxaError(f"--gpu {name}: is not known; choose one of {', '.join(sorted(known))}")
    return Gpu(name=name, **known[name])


def check_fp8(fp8: str, gpu: Gpu) -> None:
    """Raises LatxaError for a run in FP8 on GPUs without it. fp8: precision.fp8 of the run."""
    if fp8 != "none" and gpu.fp8 is None:
        raise LatxaError(f"precision.fp8: {gpu.name} has no FP8; set it to none")


def planned_for(scale: ScaleSection, name: str | None, count: int | None) -> tuple[Gpu, int]:
    """The GPUs of a plan: those named, else what the run file states. Raises LatxaError where neither says it."""
    name, count = name or scale.gpu, count or scale.gpus
    if name is None or count is None:
        raise LatxaError("--gpu, --gpus: which GPUs, and how many? The run file states none (scale.gpu, scale.gpus)")
    return find_gpu(name), count


def with_links(gpu: Gpu, measured: dict[str, Any]) -> Gpu:
    """The GPU with the links that `latxa doctor --gpus --json` measured (its `bandwidth`), so that plans go by what was reached.

    link: the bus bandwidth of the largest all-gather, where all ranks are on one node; network: the slowest pair on two nodes.
    What was not measured stays.
    """
    nodes = measured["nodes"]
    found: dict[str, float] = {}
    gathers = [timed for timed in measured["collectives"] if timed["operation"] == "all_gather"]
    if gathers and len(nodes) > 1 and len(set(nodes)) == 1:
        found["link"] = max(gathers, key=lambda timed: timed["bytes"])["busbw_gb_s"]
    between = [link["gb_s"] for link in measured["links"] if nodes[link["ranks"][0]] != nodes[link["ranks"][1]]]
    if between:
        found["network"] = min(between)
    plan = {name: float(f"{speed / REACHED:.3g}") for name, speed in found.items()}
    return replace(gpu, link=plan.get("link", gpu.link), network=plan.get("network", gpu.network))


def as_yaml(gpu: Gpu) -> str:
    """Its line of gpus.yaml."""
    values = {name: value for name, value in asdict(gpu).items() if name != "name" and value is not None}
    return f"{gpu.name}: {{{', '.join(f'{name}: {value:g}' for name, value in values.items())}}}"
