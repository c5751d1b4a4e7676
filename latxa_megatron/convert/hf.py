"""Hugging Face directories: the tensors of their safetensors files, read by rows, and the files that go with them."""

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from latxa_megatron.convert.safetensors_writer import DTYPES
from latxa_megatron.errors import LatxaError
from latxa_megatron.files import fingerprint, read_json

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"

_COMPANIONS = (
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

_TEMPLATES = "additional_chat_templates/*.jinja"
"""Where transformers finds a tokenizer's chat templates by name."""

_WANTED = ["*.safetensors", INDEX, *_COMPANIONS, _TEMPLATES]
_NOT_WANTED = ["*/*.safetensors", "consolidated*"]
"""The same weights in other layouts, as Meta and Mistral have them beside those that transformers reads."""

_POINTER = b"version https://git-lfs"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def local_directory(name: str) -> Path:
    """The directory that a path names, or that a model of the Hugging Face hub is downloaded to, or was before.

    Raises LatxaError where there is neither.
    """
    if Path(name).is_dir() or not _HUB_ID.fullmatch(name):
        return Path(name)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=_WANTED, ignore_patterns=_NOT_WANTED))
    except HFValidationError:
        raise LatxaError(f"{name}: is no directory, and no name of a model of the Hugging Face hub") from None
    except LocalEntryNotFoundError:
        raise LatxaError(f"{name}: is no directory, and the Hugging Face hub cannot be reached") from None
    except HfHubHTTPError as error:
        reason = str(error).strip().splitlines()[0]
        raise LatxaError(f"{name}: is no directory, and the Hugging Face hub does not give it ({reason[:200]})") from None


def companions(directory: Path) -> list[str]:
    """Names, relative to a directory, of the files in it that go with the weights."""
    templates = sorted(str(path.relative_to(directory)) for path in directory.glob(_TEMPLATES))
    return [name for name in (*_COMPANIONS, *templates) if (directory / name).is_file()]


class Place(NamedTuple):
    """Where a tensor's bytes begin, and what they are."""

    path: Path
    offset: int
    shape: tuple[int, ...]
    dtype: torch.dtype


class Tensors:
    """Tensors in safetensors files by name, read by rows.

    Files are not mapped: the pages of a file that stays mapped would count as this process's memory.
    """

    def __init__(self, places: dict[str, Place]) -> None:
        self._places = places

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def names(self) -> list[str]:
        return list(self._places)

    def files(self) -> list[Path]:
        return sorted({place.path for place in self._places.values()})

    def place(self, name: str) -> Place:
        return self._places[name]

    def read_into(self, target: Tensor, name: str, start: int) -> None:
        """Fill a contiguous tensor of the same type with as many rows as it has, from row `start` on."""
        path, offset, shape, dtype = self._places[name]
        content = target.view(torch.uint8).numpy().data.cast("B")
        try:
            with path.open("rb") as file:
                file.seek(offset + start * math.prod(shape[1:]) * dtype.itemsize)
                if file.readinto(content) != len(content):
                    raise LatxaError(f"{path}: has become shorter")
        except OSError as error:
            raise LatxaError(f"{path}: cannot be read ({error.strerror})") from None

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Rows [start, stop) of a tensor."""
        shape = self.place(name).shape
        found = torch.empty(((shape[0] if stop is None else stop) - start, *shape[1:]), dtype=self.place(name).dtype)
        self.read_into(found, name, start)
        return found

    def blocks(self, name: str, size: int) -> Iterator[Tensor]:
        """All rows of a tensor in order, some of them at a time, of so many bytes at most."""
        _, _, (rows, *width), dtype = self.place(name)
        step = max(1, size // (math.prod(width) * dtype.itemsize))
        for start in range(0, rows, step):
            yield self.read(name, start, min(start + step, rows))


class HfTensors(Tensors):
    """The tensors of a Hugging Face directory. Raises LatxaError for a file that is missing or damaged."""

    def __init__(self, directory: Path) -> None:
        found = {}
        files = weight_map(directory)
        for path in sorted({directory / file for file in files.values()}):
            there = places(path)
            for name in [name for name, file in files.items() if directory / file == path]:
                if name not in there:
                    raise LatxaError(f"{path}: has no tensor {name}, which {INDEX} says it has")
                found[name] = there[name]
        super().__init__(found)
        self._config = directory / "config.json"

    def settings(self) -> dict[str, str]:
        """What beside the files of weights tells these tensors from others, as fingerprints."""
        return {"config": fingerprint(self._config.read_text())}


def weight_map(directory: Path) -> dict[str, str]:
    """Tensor name -> file name, in the order of the index (or of the one file). Raises LatxaError for an index that is none."""
    index = directory / INDEX
    if index.is_file():
        found = read_json(index)
        files = check_map(index, found.get("weight_map") if isinstance(found, dict) else None)
        if (directory / SINGLE).is_file() and SINGLE not in files.values():
            what = f"is beside {INDEX}, which does not name it"
            raise LatxaError(f"{directory / SINGLE}: {what}; transformers reads the one, vLLM the other: remove one")
        return files
    if not (directory / SINGLE).is_file():
        if pickled := sorted(path.name for path in directory.glob("pytorch_model*.bin")):
            what = f"{pickled[0]} is a pickle, which can run any program"
            raise LatxaError(f"{directory}: {what}; only safetensors weights are read")
        raise LatxaError(f"{directory}: has neither {SINGLE} nor {INDEX}; only safetensors weights are read")
    return dict.fromkeys(places(directory / SINGLE), SINGLE)


def check_map(source: Path, found: Any) -> dict[str, str]:
    """Tensor name -> file name, as a file has it. Raises LatxaError where it is none, or leads elsewhere than beside the file."""
    if not isinstance(found, dict) or not found:
        raise LatxaError(f"{source}: has no weight_map")
    for file in found.values():
        if not isinstance(file, str) or not file.endswith(".safetensors") or file != Path(file).name:
            raise LatxaError(f"{source}: {file!r} is not the name of a safetensors file beside it")
    return found


def places(path: Path) -> dict[str, Place]:
    """Where the tensors of a file stand, in their order, once the safetensors library has found nothing wrong with it."""
    try:
        with safe_open(str(path), framework="pt"):
            pass
    except FileNotFoundError:
        raise LatxaError(f"{path}: is missing; download the model again") from None
    except (OSError, SafetensorError) as error:
        if path.is_file() and path.open("rb").read(len(_POINTER)) == _POINTER:
            raise LatxaError(f"{path}: is what git-lfs leaves in place of the weights; run git lfs pull there") from None
        raise LatxaError(f"{path}: is not a whole safetensors file ({error}); download it again") from None
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header: dict[str, Any] = json.loads(file.read(size))
    header.pop("__metadata__", None)
    found = {}
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        if entry["dtype"] not in DTYPES:
            raise LatxaError(f"{path}: {name} has the type {entry['dtype']}; known are {', '.join(DTYPES)}")
        found[name] = Place(path, 8 + size + entry["data_offsets"][0], tuple(entry["shape"]), DTYPES[entry["dtype"]])
    return found
