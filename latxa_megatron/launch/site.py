"""What a cluster is like, as one YAML file: those in launch/sites/, or one of your own by its path."""

import re
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import Field, PositiveInt, ValidationError, field_validator

from latxa_megatron.errors import LatxaError
from latxa_megatron.plan.gpus import find_gpu
from latxa_megatron.sections import Section

_HERE = Path(__file__).parent / "sites"

Word = Annotated[str, Field(pattern=r"^[^\s#'\"]+$")]
"""One word of an #SBATCH line."""

_SECRET = re.compile(r"TOKEN|SECRET|PASSW|API_?KEY|CREDENTIAL", re.IGNORECASE)


class Site(Section):
    description: str = Field(description="the cluster in some words; stands at the top of each script")
    tasks_per_node: PositiveInt = Field(description="processes on a node: one for each GPU")
    cpus_per_task: PositiveInt = Field(description="cores of a process")
    gpu: Word | None = Field(None, description="kind of its GPUs, as h100-80g: `latxa plan`'s name; runs must fit them")
    partition: Word | None = Field(None, description="where --partition is not given; Slurm's default where neither is")
    time: Word | None = Field(None, description="where --time is not given")
    sbatch: list[str] = Field(default_factory=list, description="further options of sbatch, such as --gres=gpu:4")
    modules: list[Word] = Field(default_factory=list, description="environment modules that a job loads")
    setup: list[str] = Field(default_factory=list, description="lines of bash that a job runs first, as source VENV/bin/activate")
    environment: dict[str, str] = Field(default_factory=dict, description="variables of all processes, as NCCL's; no secrets")
    apptainer: Word = Field("apptainer", description="the command that runs a .sif image: apptainer or singularity")
    mounts: list[Path] = Field(default_factory=list, description="directories that a container sees, beside the run's own")
    stop_before: PositiveInt = Field(300, description="seconds before the time limit in which a run ends its step and saves")

    @field_validator("gpu")
    @classmethod
    def _known(cls, gpu: str | None) -> str | None:
        if gpu is not None:
            try:
                find_gpu(gpu)
            except LatxaError as error:
                raise ValueError(str(error).replace("--gpu", "gpu:", 1)) from None
        return gpu

    @field_validator("sbatch")
    @classmethod
    def _options(cls, options: list[str]) -> list[str]:
        for option in options:
            if not option.startswith("-") or "\n" in option:
                raise ValueError(f"sbatch: '{option}' is no option of sbatch, such as --gres=gpu:4")
        return options

    @field_validator("environment")
    @classmethod
    def _no_secrets(cls, environment: dict[str, str]) -> dict[str, str]:
        for name in environment:
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
                raise ValueError(f"environment: '{name}' is no name of a variable")
            if _SECRET.search(name):
                raise ValueError(f"environment: {name} is a secret by its name; export it in the shell that submits")
        return environment


def names() -> list[str]:
    """Names of the sites that ship, sorted."""
    return sorted(path.stem for path in _HERE.glob("*.yaml"))


def load_site(name_or_file: str) -> Site:
    """The site of that name, or of a YAML file: what has a suffix or a slash is a file.

    Raises LatxaError naming the file and the key.
    """
    is_file = Path(name_or_file).suffix in (".yaml", ".yml") or "/" in name_or_file
    if not is_file and name_or_file not in names():
        raise LatxaError(f"--site {name_or_file}: there is no such site; there are {', '.join(names())}, and files by their path")
    path = Path(name_or_file) if is_file else _HERE / f"{name_or_file}.yaml"
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise LatxaError(f"{path}: there is no such site file") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        mark = getattr(error, "problem_mark", None)
        raise LatxaError(f"{path}{f':{mark.line + 1}' if mark else ''}: cannot be read as YAML") from None
    if not isinstance(values, dict):
        raise LatxaError(f"{path}: a site file is a YAML mapping with keys such as tasks_per_node:")
    try:
        return Site.model_validate(values)
    except ValidationError as error:
        fault = error.errors()[0]
        key = ".".join(map(str, fault["loc"]))
        raise LatxaError(f"{path}: {_said(key, fault['type'], fault['msg'])}") from None


def _said(key: str, kind: str, message: str) -> str:
    if kind == "extra_forbidden":
        return f"there is no key '{key}'; there are {', '.join(Site.model_fields)}"
    if kind == "missing":
        return f"the key '{key}' is missing ({Site.model_fields[key].description})"
    return message.removeprefix("Value error, ") if kind == "value_error" else f"{key}: {message.lower()}"
