"""`latxa convert export`: a Megatron torch_dist checkpoint to a Hugging Face directory, one file's tensors at a time."""

import shutil
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from latxa_megatron.convert.hf import COMPANIONS, INDEX, SINGLE, weight_map
from latxa_megatron.convert.importer import ORIGIN, WEIGHT_MAP
from latxa_megatron.convert.names import rows
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
    reader = TorchDistReader(directory)
    with new_directory(out) as partial:
        total = 0
        for file in dict.fromkeys(files.values()):
            tensors = _tensors(reader, shape, [name for name, where in files.items() if where == file], directory)
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


def _tensors(reader: TorchDistReader, shape: LlamaShape, names: list[str], directory: Path) -> dict[str, Tensor]:
    """The named Hugging Face tensors, from the Megatron tensors that hold them."""
    wanted = set(names)
    tensors: dict[str, Tensor] = {}
    for row in rows(shape):
        if row.in_layers and reader.shape(row.mcore)[0] != shape.layers:
            raise LatxaError(f"{directory}: has {reader.shape(row.mcore)[0]} layers, config.json says {shape.layers}")
        for layer in range(shape.layers) if row.in_layers else [None]:
            parts = [name.format(layer) for name in row.hf]
            if wanted.intersection(parts):
                unpacked = row.unpack(shape, reader.read(row.mcore, layer))
                tensors.update(zip(parts, unpacked, strict=True))
    for name in names:
        if name not in tensors:
            raise LatxaError(f"{directory}: no tensor of it is {name}")
        if tuple(tensors[name].shape) != shape.tensor_shape(name):
            raise LatxaError(f"{directory}: {name} has the shape {tuple(tensors[name].shape)}; config.json says another")
    return {name: tensors[name] for name in names}
