"""The Hugging Face directory that a checkpoint's model comes from, for what an export needs beside the weights."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from latxa_megatron.convert.hf import check_map, companions, weight_map
from latxa_megatron.convert.megatron_args import check_same
from latxa_megatron.errors import LatxaError
from latxa_megatron.files import read_json
from latxa_megatron.model.llama import LlamaShape
from latxa_megatron.train import checkpoint

ORIGIN = "hf"
WEIGHT_MAP = "weight_map.json"


@dataclass(frozen=True)
class Origin:
    """model: the directory with config.json, and of whose tensors stood in which file; tokenizer: that with everything else."""

    model: Path
    tokenizer: Path
    shape: LlamaShape

    def files(self) -> dict[str, str]:
        """Tensor name -> file name."""
        kept = self.model / WEIGHT_MAP
        return check_map(kept, read_json(kept)) if kept.is_file() else weight_map(self.model)

    def companions(self) -> dict[str, Path]:
        """config.json and the tokenizer's files, by their names in a directory of the model."""
        names = [name for name in companions(self.tokenizer) if name != "config.json"]
        return {"config.json": self.model / "config.json", **{name: self.tokenizer / name for name in names}}


def find_origin(directory: Path, like: Path | None) -> Origin:
    """`like`, or else what the import kept, and the tokenizer that the run was trained with.

    Raises LatxaError where nothing is known, and where `like` is a model of other sizes than what is.
    """
    run: dict[str, Any] = checkpoint.read_facts(directory).get("run", {})
    known = _known(directory, run.get("model", {}))
    model = like or known
    if model is None:
        raise LatxaError(f"{directory}: its Hugging Face origin is not known; name a directory of the same model with --like")
    shape = LlamaShape.from_hf(model)
    check_same(directory, shape)
    if known is not None and known != model:
        before = replace(LlamaShape.from_hf(known), max_positions=shape.max_positions)
        for name, value in vars(shape).items():
            if value != vars(before)[name]:
                raise LatxaError(f"{model}: {name} is {value}; the checkpoint is of a model with {vars(before)[name]}")
    trained_with = run.get("data", {}).get("tokenizer")
    if like or trained_with is None or Path(trained_with).is_file():
        return Origin(model, model, shape)
    if not Path(trained_with).is_dir():
        raise LatxaError(
            f"{trained_with}: the tokenizer that the run was trained with is not there; name a directory with --like"
        )
    return Origin(model, Path(trained_with), shape)


def _known(directory: Path, section: dict[str, Any]) -> Path | None:
    """hf/ of the import that a checkpoint is, or was trained from, or else the directory that its run names."""
    start, hf = section.get("checkpoint"), section.get("hf")
    places = [directory.absolute().parent / ORIGIN, directory.resolve().parent / ORIGIN]  # it may be "." or a link
    if start:
        places += [Path(start) / ORIGIN, Path(start).parent / ORIGIN]
    if hf:
        places.append(Path(hf))
    return next((place for place in places if (place / "config.json").is_file()), None)
