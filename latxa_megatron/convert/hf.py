"""Hugging Face directories: the tensors of their safetensors files, read one at a time, and the files that go with them."""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from latxa_megatron.convert.safetensors_writer import DTYPES
from latxa_megatron.errors import LatxaError
from latxa_megatron.files import read_json

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"

COMPANIONS = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)
"""Files beside the weights that a model needs to be loaded and talked to."""


class HfTensors:
    """The tensors of a directory by name, read by rows.

    A file is opened anew for each read: the pages of a file that stays mapped would count as this process's memory.
    Raises LatxaError for a file that is missing or damaged.
    """

    def __init__(self, directory: Path) -> None:
        self._files = {name: directory / file for name, file in weight_map(directory).items()}
        self._found: dict[str, tuple[tuple[int, ...], torch.dtype]] = {}
        for path in sorted(set(self._files.values())):
            with _open(path) as file:
                there = set(file.keys())
                for name in [name for name, where in self._files.items() if where == path]:
                    if name not in there:
                        raise LatxaError(f"{path}: has no tensor {name}, which {INDEX} says it has")
                    part = file.get_slice(name)
                    if part.get_dtype() not in DTYPES:
                        raise LatxaError(f"{path}: {name} has the type {part.get_dtype()}; known are {', '.join(DTYPES)}")
                    self._found[name] = tuple(part.get_shape()), DTYPES[part.get_dtype()]

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def names(self) -> list[str]:
        return list(self._files)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._found[name][0]

    def dtype(self, name: str) -> torch.dtype:
        return self._found[name][1]

    def read_into(self, target: Tensor, name: str, start: int) -> None:
        """Fill a tensor with as many rows as it has, from row `start` on."""
        with _open(self._files[name]) as file:
            target.copy_(file.get_slice(name)[start : start + len(target)])


def weight_map(directory: Path) -> dict[str, str]:
    """Tensor name -> file name, in the order of the index (or of the one file)."""
    if (directory / INDEX).is_file():
        return dict(read_json(directory / INDEX)["weight_map"])
    if not (directory / SINGLE).is_file():
        raise LatxaError(f"{directory}: has neither {SINGLE} nor {INDEX}; only safetensors weights are read")
    with _open(directory / SINGLE) as file:
        return dict.fromkeys(file.keys(), SINGLE)


def _open(path: Path) -> Any:
    try:
        return safe_open(str(path), framework="pt")
    except FileNotFoundError:
        raise LatxaError(f"{path}: is missing; download the model again") from None
    except (OSError, SafetensorError) as error:
        raise LatxaError(f"{path}: is not a whole safetensors file ({error})") from None
