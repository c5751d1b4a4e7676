"""`latxa convert export`: a Megatron torch_dist checkpoint to a Hugging Face directory, in the memory of a few rows."""

import math
import shutil
from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from latxa_megatron.convert.hf import COMPANIONS, INDEX, SINGLE, weight_map
from latxa_megatron.convert.importer import ORIGIN, PIECE_BYTES, WEIGHT_MAP
from latxa_megatron.convert.names import Row, rows, runs
from latxa_megatron.convert.safetensors_writer import Entry, write_safetensors
from latxa_megatron.convert.torch_dist import TorchDistReader
from latxa_megatron.errors import LatxaError
from latxa_megatron.files import new_directory, read_json, write_json
from latxa_megatron.model.llama import LlamaShape
from latxa_megatron.train import checkpoint


def export_hf(source: Path, out: Path, like: Path | None = None) -> None:
    """Write the weights of a checkpoint (an iter_* directory, or the newest under `source`) as a Hugging Face directory.

    Configuration, tokenizer and the spread of tensors over files are those of `like`, a Hugging Face directory; where it is not
    given, those that the import kept. Raises LatxaError where neither is there, and where `out` exists.
    """
    directory = checkpoint.resolve(source)
    origin = like or _origin(directory)
    shape = LlamaShape.from_hf(origin)
    files = read_json(origin / WEIGHT_MAP) if (origin / WEIGHT_MAP).is_file() else weight_map(origin)
    files = {name: file for name, file in files.items() if not name.endswith("rotary_emb.inv_freq")}  # of old Llama 2 files
    entries = _entries(TorchDistReader(directory), shape, list(files), directory)
    with new_directory(out) as partial:
        total = 0
        for file in dict.fromkeys(files.values()):
            total += write_safetensors(partial / file, [entry for entry in entries if files[entry.name] == file])
        for name in COMPANIONS:
            if (origin / name).is_file():
                shutil.copyfile(origin / name, partial / name)
        if set(files.values()) != {SINGLE}:
            write_json(partial / INDEX, {"metadata": {"total_size": total}, "weight_map": files})


def _origin(directory: Path) -> Path:
    """hf/ of the import that a checkpoint is, or was trained from."""
    run = checkpoint.read_facts(directory).get("run", {})
    start = run.get("model", {}).get("checkpoint")
    for root in (directory.parent, *([Path(start), Path(start).parent] if start else [])):
        if (root / ORIGIN / "config.json").is_file():
            return root / ORIGIN
    hf = run.get("model", {}).get("hf")
    if hf and (Path(hf) / "config.json").is_file():
        return Path(hf)
    raise LatxaError(f"{directory}: its Hugging Face origin is not known; name a directory of the same model with --like")


def _places(shape: LlamaShape) -> dict[str, tuple[Row, int, int | None]]:
    """Of each Hugging Face tensor the Megatron tensor that holds it, which part of that it is, and its layer."""
    return {
        name.format(layer): (row, part, layer)
        for row in rows(shape)
        for layer in (range(shape.layers) if row.in_layers else [None])
        for part, name in enumerate(row.hf)
    }


def _entries(reader: TorchDistReader, shape: LlamaShape, names: list[str], directory: Path) -> list[Entry]:
    """The named Hugging Face tensors. Raises LatxaError where the checkpoint has them not, or of other sizes."""
    places = _places(shape)
    entries = []
    for name in names:
        if name not in places:
            raise LatxaError(f"{directory}: no tensor of it is {name}")
        row, part, layer = places[name]
        sizes = reader.shape(row.mcore)
        if layer is not None and sizes[0] != shape.layers:
            raise LatxaError(f"{directory}: has {sizes[0]} layers, config.json says {shape.layers}")
        held = (sum(run.rows for run in runs(shape, row)), *shape.tensor_shape(name)[1:])
        if sizes[0 if layer is None else 1 :] != held:
            raise LatxaError(f"{directory}: {row.mcore} has the shape {sizes}; config.json says another")
        pieces = _pieces(reader, shape, row, part, layer)
        entries.append(Entry(name, reader.dtype(row.mcore), shape.tensor_shape(name), pieces))
    return entries


def _pieces(reader: TorchDistReader, shape: LlamaShape, row: Row, part: int, layer: int | None) -> Iterator[Tensor]:
    """Rows of a part in order, some at a time; of a tensor that is by heads, all of it is read once."""
    order = runs(shape, row)
    if row.by_heads:
        found = reader.read(row.mcore, layer).split([run.rows for run in order])
        yield from (some for run, some in zip(order, found, strict=True) if run.part == part)
        return
    first = sum(run.rows for run in order[:part])
    end = first + order[part].rows
    width = math.prod(shape.tensor_shape(row.hf[part])[1:]) * reader.dtype(row.mcore).itemsize
    step = max(1, PIECE_BYTES // width)
    for start in range(first, end, step):
        yield reader.read(row.mcore, layer, start, min(start + step, end))
