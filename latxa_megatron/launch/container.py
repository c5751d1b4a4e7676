"""Running a command of a job inside of an image: pyxis for .sqsh, Apptainer or Singularity for .sif.

A container sees the run's own files and the site's `mounts`, under the paths that they have outside.
"""

from pathlib import Path

from latxa_megatron.config import RunConfig
from latxa_megatron.errors import LatxaError
from latxa_megatron.launch.site import Site


def in_container(image: Path, run: RunConfig, run_file: Path, site: Site, command: list[str]) -> tuple[list[str], list[str]]:
    """(options of srun, the command that srun starts). Raises LatxaError for what is no image."""
    if image.suffix not in (".sqsh", ".sif"):
        raise LatxaError(f"--container {image}: is neither a .sqsh image (pyxis) nor a .sif image (Apptainer)")
    if not image.is_file():
        raise LatxaError(f"--container {image}: there is no such file")
    places = mounts(run, run_file, site.mounts)
    here, inside = str(Path.cwd()), str(image.absolute())
    if image.suffix == ".sqsh":
        binds = ",".join(f"{place}:{place}" for place in places)
        return [f"--container-image={inside}", f"--container-mounts={binds}", f"--container-workdir={here}"], command
    start = [site.apptainer, "exec", "--nv", "--bind", ",".join(places), "--pwd", here]
    return [], [*start, inside, *command]


def mounts(run: RunConfig, run_file: Path, more: list[Path]) -> list[str]:
    """Directories that hold what the run reads and writes, and what symbolic links among them point to; none inside another."""
    used = [run.out, run.model.hf, run.model.checkpoint, run.tokenizer, run.data.store, run.data.plan, run_file]
    used += [*run.validation.plans.values(), *_stores(run), *more]
    places = {Path.cwd(), *(each for path in used if path is not None for each in _directories(path))}
    for place in places:
        if any(c in str(place) for c in ",:\n"):
            raise LatxaError(f"--container: {place} has a comma or colon in its name, and cannot be mounted")
    return sorted(str(place) for place in places if not places & set(place.parents))


def _stores(run: RunConfig) -> list[Path]:
    from latxa_megatron.data.dataset import open_samples
    from latxa_megatron.data.plan import PackPlan

    plans = [open_samples(path) for path in (run.data.plan, *run.validation.plans.values())]
    return [store.directory for plan in plans if isinstance(plan, PackPlan) for store in plan.stores]


def _directories(path: Path) -> set[Path]:
    """The directory of a path, as it is named and as it is: itself, or what holds a file or what is yet to be made."""
    return {_existing(path.absolute()), _existing(path.resolve())}


def _existing(path: Path) -> Path:
    while not path.is_dir():
        path = path.parent
    return path
