"""`latxa convert import`: a Hugging Face directory to a Megatron torch_dist checkpoint, without building a model.

The checkpoint keeps a copy of the configuration and tokenizer, and of which tensor stood in which file, under hf/: an export
needs nothing else.
"""

import math
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latxa_megatron.convert.hf import COMPANIONS, HfTensors, weight_map
from latxa_megatron.convert.names import Row, Run, rows, runs
from latxa_megatron.convert.torch_dist_writer import Piece, Stored, write_torch_dist
from latxa_megatron.errors import LatxaError
from latxa_megatron.files import fingerprint, sha256, write_atomically, write_json
from latxa_megatron.model.llama import LlamaShape
from latxa_megatron.train import checkpoint, save

PIECE_BYTES = 64 << 20
"""What is held in memory of a tensor at once."""

COMMON = {"content_metadata": checkpoint.CONTENT}

ORIGIN = "hf"
WEIGHT_MAP = "weight_map.json"


def import_hf(hf: Path, out: Path) -> Path:
    """Write the weights of a Hugging Face directory as OUT/iter_0000000; return that directory.

    Does nothing where OUT holds the import of the same directory. Raises LatxaError for a model that is not a Llama, a tensor
    that is missing or has another shape than config.json says, and where OUT holds something else.
    """
    shape = LlamaShape.from_hf(hf)
    final = checkpoint.iteration_directory(out, 0)
    identity = _identity(hf)
    if final.exists():
        if checkpoint.read_facts(final).get("imported") != identity:
            raise LatxaError(f"{final}: holds another checkpoint; remove it or name another directory")
    else:
        tensors = HfTensors(hf)
        stored = [_stored(shape, row, tensors) for row in rows(shape)]
        _check_all_used(hf, shape, tensors)
        save.write(final, lambda place: write_torch_dist(place, stored, COMMON), {"step": 0, "imported": identity})
    _keep_origin(hf, out / ORIGIN)
    write_atomically(out / checkpoint.TRACKER, "0\n")
    return final


def _identity(hf: Path) -> dict[str, Any]:
    """What tells one source from another: its configuration and the hash of each of its weight files."""
    files = {p.name: sha256(p) for p in sorted(hf.glob("*.safetensors"))}
    return {"config": fingerprint((hf / "config.json").read_text()), "files": files}


def _stored(shape: LlamaShape, row: Row, tensors: HfTensors) -> Stored:
    """A tensor of the checkpoint, layer by layer. Raises LatxaError for a part that is not as config.json says."""
    layers = range(shape.layers) if row.in_layers else [0]
    names = [[name.format(layer) for name in row.hf] for layer in layers]
    for name in (name for parts in names for name in parts):
        if name not in tensors:
            raise LatxaError(f"the Hugging Face directory has no tensor {name}, which its config.json asks for")
        if tensors.shape(name) != shape.tensor_shape(name):
            raise LatxaError(f"{name}: has the shape {tensors.shape(name)}, config.json says {shape.tensor_shape(name)}")
    dtype = tensors.dtype(names[0][0])
    if other := [name for parts in names for name in parts if tensors.dtype(name) != dtype]:
        raise LatxaError(f"{other[0]}: is {tensors.dtype(other[0])} and {names[0][0]} {dtype}; they become one tensor")
    whole = runs(shape, row)
    width = shape.tensor_shape(row.hf[0])[1:]
    most = max(1, PIECE_BYTES // (math.prod(width) * dtype.itemsize))
    pieces = []
    for layer, parts in enumerate(names):
        first = 0
        for some in _cut(whole, most):
            count = sum(run.rows for run in some)
            at, size = (first, *[0] * len(width)), (count, *width)
            read = partial(_read, tensors, parts, some, size, dtype, stacked=row.in_layers)
            pieces.append(Piece((layer, *at), (1, *size), read) if row.in_layers else Piece(at, size, read))
            first += count
    sizes = (sum(run.rows for run in whole), *width)
    return Stored(row.mcore, (shape.layers, *sizes) if row.in_layers else sizes, dtype, pieces)


def _cut(whole: list[Run], most: int) -> Iterator[list[Run]]:
    """Runs in groups of at most so many rows."""
    group: list[Run] = []
    held = 0
    for run in whole:
        start, left = run.start, run.rows
        while left:
            count = min(left, most - held)
            group.append(Run(run.part, start, count))
            start, left, held = start + count, left - count, held + count
            if held == most:
                yield group
                group, held = [], 0
    if group:
        yield group


def _read(
    tensors: HfTensors, names: list[str], some: list[Run], size: tuple[int, ...], dtype: torch.dtype, *, stacked: bool
) -> Tensor:
    found = torch.empty(size, dtype=dtype)
    first = 0
    for run in some:
        tensors.read_into(found[first : first + run.rows], names[run.part], run.start)
        first += run.rows
    return found[None] if stacked else found


def _check_all_used(hf: Path, shape: LlamaShape, tensors: HfTensors) -> None:
    known = {template.format(layer) for row in rows(shape) for template in row.hf for layer in range(shape.layers)}
    left = [name for name in tensors.names() if name not in known and not name.endswith("rotary_emb.inv_freq")]
    if left:
        raise LatxaError(f"{hf}: has the tensor {left[0]}, which a Llama of its config.json does not")


def _keep_origin(hf: Path, origin: Path) -> None:
    origin.mkdir(exist_ok=True)
    for name in COMPANIONS:
        if (hf / name).is_file():
            shutil.copyfile(hf / name, origin / name)
    write_json(origin / WEIGHT_MAP, weight_map(hf))
