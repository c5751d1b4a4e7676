"""`latxa convert export`: a Megatron torch_dist checkpoint to a Hugging Face directory, in the memory of a few rows."""

import shutil
from collections.abc import Callable
from pathlib import Path

import torch

from latxa_megatron.convert.card import NAME, model_card
from latxa_megatron.convert.hf import INDEX, SINGLE
from latxa_megatron.convert.megatron import MegatronTensors, resolve
from latxa_megatron.convert.names import Part, parts
from latxa_megatron.convert.origin import find_origin
from latxa_megatron.convert.safetensors_writer import NAMES, Entry, write_safetensors
from latxa_megatron.convert.source import FORGOTTEN
from latxa_megatron.convert.threads import PIECE_BYTES, Report, in_threads
from latxa_megatron.errors import LatxaError
from latxa_megatron.files import new_directory, read_json, require_space, sha256, write_atomically, write_json
from latxa_megatron.model.llama import LlamaShape
from latxa_megatron.train import checkpoint


def export_hf(
    source: Path, out: Path, like: Path | None = None, *, workers: int = 2, report: Report = lambda done, total: None
) -> Path:
    """Write the weights of a checkpoint (a torch_dist directory, or the newest under `source`) as a Hugging Face directory.

    Returns the torch_dist directory.

    Configuration, tokenizer and the spread of tensors over files are those of `like`, a Hugging Face directory; where it is not
    given, those that the import kept, and the tokenizer is the run's. workers: threads, each with a file. Raises LatxaError where
    none of these is there, where the checkpoint is not of such a model, where `out` exists, and for a disk that is too small.
    """
    directory = resolve(source)
    origin = find_origin(directory, like)
    tensors = MegatronTensors(directory, origin.shape)
    files: dict[str, list[Entry]] = {}
    places = parts(origin.shape)
    for name, file in origin.files().items():
        if not name.endswith(FORGOTTEN):
            if name not in places:
                raise LatxaError(f"{origin.model}: has the tensor {name}, which a model of its config.json does not")
            files.setdefault(file, []).append(_entry(name, places[name], tensors, origin.shape))
    if left := [name for name in places if name not in origin.files() and not (origin.shape.tied and name == "lm_head.weight")]:
        raise LatxaError(f"{origin.model}: has no tensor {left[0]}, which its config.json asks for")
    total = sum(entry.bytes for entries in files.values() for entry in entries)
    sums: dict[str, str] = {}
    with new_directory(out) as partial:
        require_space(partial, total)

        def write(file: str, tell: Callable[[int], None]) -> None:
            write_safetensors(partial / file, files[file], sums, tell)

        in_threads(workers, write, list(files), total, report)
        for name, path in origin.companions().items():
            (partial / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(path, partial / name)
        _name_dtype(partial / "config.json", {entry.dtype for entries in files.values() for entry in entries})
        if set(files) != {SINGLE}:
            index = {entry.name: file for file, entries in files.items() for entry in entries}
            write_json(partial / INDEX, {"metadata": {"total_size": total}, "weight_map": index})
        more = [str(path.relative_to(partial)) for path in partial.rglob("*") if path.is_file()]
        sums |= {name: sha256(partial / name) for name in more if name not in sums}
        card = model_card(out.name, checkpoint.read_facts(directory), origin.model, dict(sorted(sums.items())))
        write_atomically(partial / NAME, card)
    return directory


def _entry(name: str, part: Part, tensors: MegatronTensors, shape: LlamaShape) -> Entry:
    dtype = tensors.dtype(part.row)
    if dtype not in NAMES:
        raise LatxaError(f"{name}: is stored as {dtype}; known are {', '.join(map(str, NAMES))}")
    return Entry(name, dtype, shape.tensor_shape(name), tensors.pieces(part.row, part.part, part.layer, PIECE_BYTES))


def _name_dtype(file: Path, dtypes: set[torch.dtype]) -> None:
    """Make config.json name the type of the weights, if it names another, to which transformers would turn them.

    Where they have several, it stays.
    """
    config, known = read_json(file), {str(dtype).removeprefix("torch.") for dtype in dtypes}
    other = [key for key in ("dtype", "torch_dtype") if config.get(key) not in (None, *known)]
    if other and len(known) == 1:
        write_json(file, {**config, **dict.fromkeys(other, known.pop())})
