"""`latxa convert import`: a Hugging Face directory to a Megatron torch_dist checkpoint, without building a model.

The checkpoint keeps a copy of the configuration and tokenizer, and of which tensor stood in which file, under hf/: an export
needs nothing else.
"""

import shutil
from pathlib import Path
from typing import Any

from megatron.core.dist_checkpointing import ShardedTensor

from latxa_megatron.convert.hf import COMPANIONS, HfTensors, open_tensors, weight_map
from latxa_megatron.convert.names import Row, rows
from latxa_megatron.errors import LatxaError
from latxa_megatron.files import fingerprint, sha256, write_atomically, write_json
from latxa_megatron.model.llama import LlamaShape
from latxa_megatron.train import checkpoint, save
from latxa_megatron.train.distributed import connected

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
        with open_tensors(hf) as tensors:
            state = {row.mcore: _sharded(shape, row, tensors) for row in rows(shape)}
            _check_all_used(hf, shape, tensors)
            with connected():
                save.write(final, {"model": state}, {"step": 0, "imported": identity})
    _keep_origin(hf, out / ORIGIN)
    write_atomically(out / checkpoint.TRACKER, "0\n")
    return final


def _identity(hf: Path) -> dict[str, Any]:
    """What tells one source from another: its configuration and the hash of each of its weight files."""
    files = {p.name: sha256(p) for p in sorted(hf.glob("*.safetensors"))}
    return {"config": fingerprint((hf / "config.json").read_text()), "files": files}


def _sharded(shape: LlamaShape, row: Row, tensors: HfTensors) -> list[ShardedTensor]:
    if not row.in_layers:
        return [ShardedTensor.from_rank_offsets(row.mcore, _read(shape, row, tensors, 0))]
    return [
        ShardedTensor.from_rank_offsets(
            row.mcore, _read(shape, row, tensors, layer), (0, layer, shape.layers), prepend_axis_num=1
        )
        for layer in range(shape.layers)
    ]


def _read(shape: LlamaShape, row: Row, tensors: HfTensors, layer: int) -> Any:
    parts = []
    for template in row.hf:
        name = template.format(layer)
        if name not in tensors:
            raise LatxaError(f"the Hugging Face directory has no tensor {name}, which its config.json asks for")
        parts.append(tensors[name])
        if tuple(parts[-1].shape) != shape.tensor_shape(name):
            raise LatxaError(f"{name}: has the shape {tuple(parts[-1].shape)}, config.json says {shape.tensor_shape(name)}")
    return row.pack(shape, parts)


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
