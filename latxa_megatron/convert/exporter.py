"""`latxa convert export`: a Megatron torch_dist checkpoint to a Hugging Face directory, one file's tensors at a time."""

import shutil
from pathlib import Path
from typing import Any

import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing import ShardedTensor
from safetensors.torch import save_file

from latxa_megatron.convert.hf import COMPANIONS, INDEX, SINGLE, weight_map
from latxa_megatron.convert.importer import ORIGIN, WEIGHT_MAP
from latxa_megatron.convert.names import Row, rows
from latxa_megatron.errors import LatxaError
from latxa_megatron.files import new_directory, read_json, write_json
from latxa_megatron.model.llama import LlamaShape
from latxa_megatron.train import checkpoint
from latxa_megatron.train.distributed import connect


def export_hf(source: Path, out: Path, like: Path | None = None) -> None:
    """Write the weights of a checkpoint (an iter_* directory, or the newest under `source`) as a Hugging Face directory.

    Configuration, tokenizer and the spread of tensors over files are those of `like`, a Hugging Face directory; where it is not
    given, those that the import kept. Raises LatxaError where neither is there, and where `out` exists.
    """
    directory = checkpoint.resolve(source)
    origin = like or _origin(directory)
    shape = LlamaShape.from_hf(origin)
    files = read_json(origin / WEIGHT_MAP) if (origin / WEIGHT_MAP).is_file() else weight_map(origin)
    connect()
    with new_directory(out) as partial:
        total = 0
        for file in dict.fromkeys(files.values()):
            tensors = _tensors(directory, shape, [name for name, where in files.items() if where == file])
            save_file(tensors, str(partial / file), metadata={"format": "pt"})
            total += sum(tensor.nbytes for tensor in tensors.values())
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


def _tensors(directory: Path, shape: LlamaShape, names: list[str]) -> dict[str, torch.Tensor]:
    """The named Hugging Face tensors, from the Megatron tensors that hold them."""
    wanted = set(names)
    metadata = dist_checkpointing.load_tensors_metadata(str(directory))
    plan = [
        (row, layer)
        for row in rows(shape)
        for layer in range(shape.layers if row.in_layers else 1)
        if wanted & {name.format(layer) for name in row.hf}
    ]
    state = {f"{row.mcore}/{layer}": _request(shape, row, layer, metadata, directory) for row, layer in plan}
    loaded = dist_checkpointing.load(state, str(directory))
    tensors = {}
    for row, layer in plan:
        parts = row.unpack(shape, loaded[f"{row.mcore}/{layer}"])
        tensors.update({name.format(layer): part for name, part in zip(row.hf, parts, strict=True)})
    absent = wanted - set(tensors)
    if absent:
        raise LatxaError(f"{directory}: no tensor of it is {sorted(absent)[0]}")
    return {name: tensors[name] for name in names}


def _request(shape: LlamaShape, row: Row, layer: int, metadata: dict[str, Any], directory: Path) -> ShardedTensor:
    """An empty tensor to load one layer's part of a Megatron tensor into."""
    if row.mcore not in metadata:
        raise LatxaError(f"{directory}: has no tensor {row.mcore}; it is the checkpoint of another model")
    stored = metadata[row.mcore]
    size = stored.global_shape[1:] if row.in_layers else stored.global_shape
    empty = torch.empty(size, dtype=stored.dtype)
    if not row.in_layers:
        return ShardedTensor.from_rank_offsets(row.mcore, empty)
    return ShardedTensor.from_rank_offsets(row.mcore, empty, (0, layer, shape.layers), prepend_axis_num=1)

