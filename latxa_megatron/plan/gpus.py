"""The GPUs that a run can be planned for."""

from dataclasses import MISSING, asdict, dataclass, fields, replace
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
    """The GPU of that name in gpus.yaml, or the one that a file such as my_gpu.yaml has in a line of that kind.

    Raises LatxaError for a name that gpus.yaml does not have, and for a file that is none such.
    """
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        return _of_file(path)
    known = yaml.safe_load(_FILE.read_text())
    if name not in known:
        raise LatxaError(
            f"--gpu {name}: is not known; choose one of {', '.join(sorted(known))}, or a file with a line of your own"
        )
    return Gpu(name=name, **known[name])


def _of_file(path: Path) -> Gpu:
    try:
        read = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise LatxaError(f"--gpu {path}: cannot be read ({' '.join(str(error).split())[:100]})") from None
    if not isinstance(read, dict) or len(read) != 1 or not isinstance(next(iter(read.values())), dict):
        raise LatxaError(f"--gpu {path}: has one line, as {as_yaml(find_gpu('h100-80g'))}")
    ((name, values),) = read.items()
    known = {each.name: each.default is MISSING for each in fields(Gpu) if each.name != "name"}
    if odd := sorted(set(values) - set(known)):
        raise LatxaError(f"--gpu {path}: there is no key '{odd[0]}'; there are {', '.join(known)}")
    for key, needed in known.items():
        value = values.get(key)
        if key not in values and not needed:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            raise LatxaError(f"--gpu {path}: {key} is {'missing' if value is None else repr(value)}; it is a number above 0")
    return Gpu(name=str(name), **values)


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
