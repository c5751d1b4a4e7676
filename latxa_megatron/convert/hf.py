"""Hugging Face directories: the tensors of their safetensors files, read one at a time, and the files that go with them."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

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
    """The tensors of a directory by name; each is read from its file when it is asked for."""

    def __init__(self, files: dict[str, Any]) -> None:
        self._files = files

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def names(self) -> list[str]:
        return list(self._files)

    def __getitem__(self, name: str) -> Tensor:
        return self._files[name].get_tensor(name)


@contextmanager
def open_tensors(directory: Path) -> Iterator[HfTensors]:
    """The tensors of a Hugging Face directory. Raises LatxaError for a file that is missing or damaged."""
    layout = weight_map(directory)
    with ExitStack() as stack:
        opened: dict[str, Any] = {}
        for file in sorted(set(layout.values())):
            opened[file] = stack.enter_context(_open(directory / file))
        for name, file in layout.items():
            if name not in opened[file].keys():  # noqa: SIM118 (a safetensors file is no dict)
                raise LatxaError(f"{directory / file}: has no tensor {name}, which {INDEX} says it has")
        yield HfTensors({name: opened[file] for name, file in layout.items()})


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
