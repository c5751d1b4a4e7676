"""The weights in a checkpoint, by the table's names: one of ours, of Megatron-LM, of Megatron-Bridge or of NeMo 2.

These differ in where the directory is (NeMo has it as weights/), in what stands before each name (NeMo: module.), in whether a
layer's tensors are stacked over layers or have its number in their names, and in how many rows the vocabulary is padded to.

Of a run that keeps its weights in FP8 the checkpoint has them as that rounded them, and in fp32 in the optimizer's state. The
latter are the weights that were trained: they are read, and rounded to bf16.
"""

import math
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from latxa_megatron.convert.names import EMBEDDING, LAYERS, Row, rows, runs
from latxa_megatron.convert.torch_dist_reader import MEND, METADATA, TorchDistReader
from latxa_megatron.errors import LatxaError
from latxa_megatron.files import sha256
from latxa_megatron.model.llama import LlamaShape
from latxa_megatron.train import checkpoint

_NEMO = ("weights", "model_weights")


def resolve(source: Path) -> Path:
    """The torch_dist directory that a path names: itself, the newest iter_* in it, or NeMo's weights/. LatxaError if none is."""
    for place in (source, *(source / name for name in _NEMO)):
        if (place / ".metadata").is_file():
            return place
    if (source / "mp_rank_00").is_dir() or any(source.glob("mp_rank_*")):
        raise LatxaError(f"{source}: is a checkpoint for one layout; have Megatron-LM save it with --ckpt-format torch_dist")
    found = _named_by_tracker(source)
    return found if found is not None else checkpoint.resolve(source)


def _named_by_tracker(root: Path) -> Path | None:
    """The checkpoint that another program wrote last; ours have a run.json, which says what of them is whole."""
    tracker = root / checkpoint.TRACKER
    if not tracker.is_file():
        return None
    word = tracker.read_text().strip()
    found = checkpoint.iteration_directory(root, int(word)) if word.isdigit() else root / "release"
    return found if (found / ".metadata").is_file() and not (found / checkpoint.RUN_FILE).is_file() else None


class MegatronTensors:
    """The tensors that the rows of a model of a shape name.

    Raises LatxaError where one is missing, or a part of it, has other sizes, or is none of such a model's.
    """

    def __init__(self, directory: Path, shape: LlamaShape) -> None:
        self._directory, self._shape = directory, shape
        told = checkpoint.read_facts(directory).get("sha256", {}).get(METADATA)
        if told is not None and sha256(directory / METADATA) != told:
            raise LatxaError(f"{directory / METADATA}: is not the one that {checkpoint.RUN_FILE} has the hash of; {MEND}")
        self._reader = TorchDistReader(directory)
        names = self._reader.names()
        before = [name.removesuffix(EMBEDDING.mcore) for name in names if name.endswith(EMBEDDING.mcore)]
        if not before:
            raise LatxaError(f"{directory}: has no {EMBEDDING.mcore}; it is not the checkpoint of a language model")
        self._prefix = min(before, key=len)  # the others are the optimizer's
        self._rounded: torch.dtype | None = None
        if checkpoint.has_fp8_weights(directory):
            if checkpoint.TRAINED not in before:
                raise LatxaError(f"{directory}: its weights are rounded to FP8, and it has no optimizer state with others")
            self._prefix, self._rounded = checkpoint.TRAINED, torch.bfloat16
        table = rows(shape)
        self._stacked = self._prefix + next(row.mcore for row in table if row.in_layers) in names
        known = {self._name(row, layer) for row in table for layer in (range(shape.layers) if row.in_layers else [0])}
        for part in ("embedding.", "decoder.", "output_layer."):
            for name in names:
                if name.startswith(self._prefix + part) and name not in known:
                    raise LatxaError(f"{directory}: has a tensor {name}, which a model of config.json has not")
        for row in table:
            self._check(row)
        for name in sorted(known):
            self._reader.check(name)

    def _name(self, row: Row, layer: int) -> str:
        if row.in_layers and not self._stacked:
            return f"{self._prefix}{LAYERS}{layer}.{row.mcore.removeprefix(LAYERS)}"
        return self._prefix + row.mcore

    def of_layer(self, name: str, layer: int) -> Tensor:
        """A whole tensor of a layer, by the name that the layer's module has for it."""
        if self._stacked:
            return self._as_said(self._reader.read(f"{self._prefix}{LAYERS}{name}", layer))
        return self._as_said(self._reader.read(f"{self._prefix}{LAYERS}{layer}.{name}"))

    def _as_said(self, tensor: Tensor) -> Tensor:
        return tensor if self._rounded is None else tensor.to(self._rounded)

    def _check(self, row: Row) -> None:
        wanted = (sum(run.rows for run in runs(self._shape, row)), *self._shape.tensor_shape(row.hf[0])[1:])
        for layer in range(self._shape.layers) if row.in_layers else [0]:
            name = self._name(row, layer)
            sizes = self._reader.shape(name)
            if row.in_layers and self._stacked:
                if sizes[0] != self._shape.layers:
                    raise LatxaError(f"{self._directory}: has {sizes[0]} layers, config.json says {self._shape.layers}")
                sizes = sizes[1:]
            padded = row.padded and sizes[1:] == wanted[1:] and sizes[0] > wanted[0]
            if sizes != wanted and not padded:
                raise LatxaError(f"{self._directory}: {name} has the shape {sizes}; config.json says {wanted}")

    def dtype(self, row: Row) -> torch.dtype:
        return self._rounded or self._reader.dtype(self._name(row, 0))

    def pieces(self, row: Row, part: int, layer: int, size: int) -> Iterator[Tensor]:
        """The rows of a part of a row's tensor in a layer, in order, some at a time, of about so many bytes at most."""
        name, place = self._name(row, layer), layer if row.in_layers and self._stacked else None
        step = max(1, size // (math.prod(self._shape.tensor_shape(row.hf[part])[1:]) * self._reader.dtype(name).itemsize))
        first = 0
        for run in runs(self._shape, row):
            end = first + run.rows
            if run.part == part:
                for start in range(first, end, step):
                    yield self._as_said(self._reader.read(name, place, start, min(start + step, end)))
            first = end
