"""One YAML file is one run: read, merged over its bases and checked; a fault is refused by file, line and key."""

import difflib
import re
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from latxa_megatron import recipes
from latxa_megatron.errors import LatxaError
from latxa_megatron.sections import (
    CheckpointSection,
    DataSection,
    GuardSection,
    LoggingSection,
    ModelSection,
    OptimizerSection,
    ParallelSection,
    PrecisionSection,
    ScaleSection,
    Section,
    TrainSection,
    ValidationSection,
)


class RunConfig(Section):
    name: Annotated[str, Field(min_length=1, pattern="^[^/]*$", description="what the run is called, in one word")]
    out: Path = Field(description="directory of checkpoints and metrics; runs/NAME where it is not given")
    model: ModelSection
    data: DataSection
    parallel: ParallelSection = ParallelSection()
    precision: PrecisionSection = PrecisionSection()
    optimizer: OptimizerSection = OptimizerSection()
    train: TrainSection = TrainSection()
    checkpoint: CheckpointSection = CheckpointSection()
    guard: GuardSection = GuardSection()
    validation: ValidationSection = ValidationSection()
    scale: ScaleSection = ScaleSection()
    logging: LoggingSection = LoggingSection()

    @property
    def tokenizer(self) -> Path:
        return self.data.tokenizer or self.model.hf

    @property
    def checkpoints(self) -> Path:
        return self.out / "checkpoints"

    @model_validator(mode="before")
    @classmethod
    def _places(cls, values: Any) -> Any:
        """Directories that are not given, from the run's name."""
        if not isinstance(values, dict) or not isinstance(name := values.get("name"), str):
            return values
        values = {"out": f"runs/{name}", **values}
        if isinstance(values.get("data"), dict):
            values["data"] = {"store": f"data/{name}/store", "plan": f"data/{name}/plan", **values["data"]}
        return values

    @model_validator(mode="after")
    def _consistent(self) -> "RunConfig":
        if self.parallel.vp > 1 and self.parallel.pp == 1:
            raise ValueError("parallel.vp: virtual stages need parallel.pp of at least 2")
        if self.parallel.tp_overlap and self.parallel.tp == 1:
            raise ValueError("parallel.tp_overlap: there are no messages without parallel.tp of at least 2")
        self.precision.check()
        if self.parallel.tp_overlap and self.parallel.cp > 1:
            raise ValueError(
                "parallel.tp_overlap: its buffers have one length, and parallel.cp pads each plan to its own; set it to false"
            )
        if self.parallel.tp_overlap and (self.precision.fp8 in ("blockwise", "mxfp8") or self.precision.dtype == "fp32"):
            raise ValueError(
                "parallel.tp_overlap: goes with bf16, and with the FP8 recipes tensorwise and delayed; set it to false"
            )
        if self.train.cuda_graph and self.train.neftune_alpha:
            raise ValueError("train.cuda_graph: goes without NEFTune's noise, which the CPU draws; set it to false")
        if self.train.cuda_graph and self.precision.fp8 not in ("none", "tensorwise"):
            raise ValueError(f"train.cuda_graph: was not tried with precision.fp8 {self.precision.fp8}; set it to false")
        if self.train.global_batch % self.train.micro_batch:
            raise ValueError("train.global_batch: is not a multiple of train.micro_batch")
        return self


def load_run(path: Path, overrides: list[str] | None = None) -> RunConfig:
    """The run that a YAML file describes, on top of its `base:` recipe or recipes, with `section.key=value` overrides applied.

    Paths in it are relative to the working directory. Raises LatxaError naming file, line or override, and key.
    """
    values, lines = _read(path)
    origin: dict[str, str] = {}
    for override in overrides or []:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise LatxaError(f"'{override}': an override has the form section.key=value")
        try:
            value = yaml.load(text, _Loader)
        except (yaml.YAMLError, ValueError):
            raise LatxaError(f"'{override}': the value is not valid YAML") from None
        _merge(values, _nested(key.split("."), value))
        origin[key] = override
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        raise _explain(error, path, lines, origin) from None


def _read(path: Path) -> tuple[dict[str, Any], dict[str, int]]:
    """The values of a run file merged over its base recipes, and the line of each dotted key of the file itself."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise LatxaError(f"{path}: there is no such run file; `latxa recipes list` shows those that ship") from None
    except (OSError, UnicodeDecodeError) as error:
        raise LatxaError(f"{path}: cannot be read as text ({error})") from None
    try:
        values = yaml.load(text, _Loader)
        lines = _key_lines(yaml.compose(text, yaml.SafeLoader), path)
    except (yaml.YAMLError, ValueError) as error:  # a constructor raises ValueError, as for the date 2024-13-45
        mark = getattr(error, "problem_mark", None)
        place = f"{path}:{mark.line + 1}" if mark else str(path)
        raise LatxaError(f"{place}: is not valid YAML: {getattr(error, 'problem', error)}") from None
    if not isinstance(values, dict):
        raise LatxaError(f"{path}: a run file is a YAML mapping with sections such as model: and data:")
    bases = values.pop("base", None) or []
    merged: dict[str, Any] = {}
    for base in bases if isinstance(bases, list) else [bases]:
        if base not in recipes.names():
            raise LatxaError(
                f"{path}:{lines.get('base', 1)}: base: there is no recipe '{base}'{_closest(str(base), recipes.names())}"
            )
        _merge(merged, _read(recipes.path(base))[0])
    _merge(merged, values)
    return merged, lines


class _Loader(yaml.SafeLoader):
    """YAML 1.2's floats: 1e-5 is a number (PyYAML's YAML 1.1 reads it as text)."""


_Loader.yaml_implicit_resolvers = {k: list(v) for k, v in yaml.SafeLoader.yaml_implicit_resolvers.items()}
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789"))


def _key_lines(node: yaml.Node | None, path: Path, prefix: str = "") -> dict[str, int]:
    """The line of each dotted key. Raises LatxaError for a key that stands twice, of which YAML would take the last."""
    lines: dict[str, int] = {}
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            dotted = f"{prefix}{key.value}"
            line = key.start_mark.line + 1
            if dotted in lines:
                raise LatxaError(f"{path}:{line}: the key '{dotted}' stands in line {lines[dotted]} already")
            lines[dotted] = line
            lines.update(_key_lines(value, path, dotted + "."))
    return lines


def _nested(keys: list[str], value: Any) -> dict[str, Any]:
    for key in reversed(keys):
        value = {key: value}
    return value


def _merge(into: dict[str, Any], values: dict[str, Any]) -> None:
    for key, value in values.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = value


def _explain(error: ValidationError, path: Path, lines: dict[str, int], overrides: dict[str, str]) -> LatxaError:
    """The first fault that pydantic found, as one sentence with its place."""
    fault = error.errors()[0]
    location = [str(part) for part in fault["loc"] if not re.match(r"constrained-|literal\[", str(part))]  # parts of a union
    if len(location) < len(fault["loc"]):
        fault["msg"] = " or ".join(each["msg"] for each in error.errors() if [*each["loc"]][: len(location)] == location)
    key = ".".join(location)
    override = next((k for k in reversed(overrides) if f"{key}.".startswith(f"{k}.") or f"{k}.".startswith(f"{key}.")), None)
    if override:
        place = f"'{overrides[override]}'"
    else:
        known = next((k for n in range(len(location), 0, -1) if (k := ".".join(location[:n])) in lines), None)
        place = f"{path}:{lines[known]}" if known else str(path)
    if fault["type"] == "extra_forbidden":
        return LatxaError(f"{place}: there is no key '{key}'{_closest(location[-1], _fields(location[:-1]))}")
    if fault["type"] == "missing":
        return LatxaError(f"{place}: the key '{key}' is missing{_describe(location)}")
    if fault["type"] == "value_error":
        return LatxaError(f"{place}: {fault['msg'].removeprefix('Value error, ')}")
    return LatxaError(f"{place}: {key}: {fault['msg'].lower()}, got {fault['input']!r}")


def _section_at(location: list[str]) -> type[BaseModel] | None:
    """The section class at a dotted place, or None where there is none."""
    kind: Any = RunConfig
    for part in location:
        if get_origin(kind) is dict:
            kind = get_args(kind)[1]
        elif isinstance(kind, type) and issubclass(kind, BaseModel) and part in kind.model_fields:
            kind = kind.model_fields[part].annotation
        else:
            return None
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _fields(location: list[str]) -> list[str]:
    section = _section_at(location)
    return list(section.model_fields) if section else []


def _describe(location: list[str]) -> str:
    section = _section_at(location[:-1])
    field = section.model_fields.get(location[-1]) if section else None
    return f" ({field.description})" if field and field.description else ""


def _closest(word: str, known: list[str]) -> str:
    match = difflib.get_close_matches(word, known, n=1)
    if match:
        return f"; did you mean '{match[0]}'?"
    return f"; there are {', '.join(known)}" if known else ""
