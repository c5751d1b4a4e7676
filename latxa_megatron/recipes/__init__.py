"""Run files that ship with the package. A run file says `base: NAME` to start from one; `_NAME.yaml` are bases only."""

from pathlib import Path

from latxa_megatron.errors import LatxaError

_HERE = Path(__file__).parent


def names(*, bases: bool = True) -> list[str]:
    """Names of the recipes, sorted; with bases=False only those that can be trained."""
    return sorted(p.stem for p in _HERE.glob("*.yaml") if bases or not p.stem.startswith("_"))


def path(name: str) -> Path:
    """The YAML file of a recipe; LatxaError if there is none of that name."""
    if name not in names():
        raise LatxaError(f"there is no recipe '{name}'; `latxa recipes list` shows them")
    return _HERE / f"{name}.yaml"
