"""The picture of a search: each layout a dot, by the memory that it needs and the time that a step takes, as one SVG file."""

import math
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from latxa_megatron.errors import LatxaError
from latxa_megatron.files import write_atomically
from latxa_megatron.plan.search import Found, Option

WIDTH, HEIGHT = 720.0, 400.0
"""Of the plot, in its own units."""
_MEMORY = 1.5
"""Times the GPU's memory that the picture shows; what needs more stands at its edge."""
_TIME = 4.0
"""Times the fastest step that it shows; what takes longer stands at its edge."""


@dataclass(frozen=True)
class Dot:
    """kind: best, fits or large. says: its tooltip."""

    x: float
    y: float
    kind: str
    says: str


def write_picture(path: Path, found: Found, title: str, best: int = 10) -> None:
    """Raises LatxaError for a file that is no .svg."""
    import jinja2

    check_name(path)
    options = [*found.rest, *reversed(found.fitting)]  # the best are drawn last, over the others
    memory = options[0].estimate.gpu.memory
    fastest = min(option.estimate.seconds.step for option in options)
    first = {id(option) for option in found.fitting[:best]}
    dots = [_dot(option, memory, fastest, id(option) in first) for option in options]
    text = (files("latxa_megatron.plan") / "picture.svg.jinja").read_text(encoding="utf-8")
    template = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True).from_string(
        text
    )
    drawn = template.render(
        title=title,
        width=WIDTH,
        height=HEIGHT,
        dots=dots,
        limit=_x(memory, memory),
        memory=f"{memory:.1f} GiB",
        label=f"fastest: {found.fitting[0].describe()}" if found.fitting else "none fits",
        across=[(_x(gib, memory), gib) for gib in range(0, int(_MEMORY * memory) + 1, _step(memory))],
        up=[(_y(fastest * times, fastest), f"{fastest * times:.3g}") for times in (1, 1.25, 1.5, 2, 3, 4)],
    )
    write_atomically(path, drawn)


def check_name(path: Path) -> None:
    """Raises LatxaError for a picture of another format, or in a directory that is not there."""
    if path.suffix != ".svg":
        raise LatxaError(f"--picture {path}: pictures are SVG; give it a name that ends in .svg")
    if not path.parent.is_dir():
        raise LatxaError(f"--picture {path}: there is no directory {path.parent}; make it first")


def _dot(option: Option, memory: float, fastest: float, best: bool) -> Dot:
    found = option.estimate
    needed, seconds = found.worst.needed, found.seconds.step
    kind = "large" if not found.fits else "best" if best else "fits"
    says = f"{option.describe()}, DP{found.dp}: {needed:.1f} GiB, {seconds:.2f} s a step, most of it {found.seconds.largest()}"
    return Dot(_x(needed, memory), _y(seconds, fastest), kind, says)


def _x(gib: float, memory: float) -> float:
    return min(1.0, gib / (_MEMORY * memory)) * WIDTH


def _y(seconds: float, fastest: float) -> float:
    """Logarithmic, from the fastest at the bottom."""
    return HEIGHT * (1 - min(1.0, math.log(seconds / fastest) / math.log(_TIME)))


def _step(memory: float) -> int:
    return 20 if memory > 60 else 10
