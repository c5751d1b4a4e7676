"""`latxa convert verify`: proves that a Megatron checkpoint and a Hugging Face directory are the same model, in bounded memory.

First that each side has the tensors that the configuration asks for, in their shapes, and no others; then that every number is
the same, bit for bit; then that both compute the same (layers.py).
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from latxa_megatron.convert.adapter import AdaptedTensors
from latxa_megatron.convert.hf import HfTensors
from latxa_megatron.convert.layers import Difference, run_layers
from latxa_megatron.convert.megatron import MegatronTensors, resolve
from latxa_megatron.convert.names import Part, parts
from latxa_megatron.convert.origin import find_origin
from latxa_megatron.convert.source import FORGOTTEN, check_source
from latxa_megatron.convert.threads import PIECE_BYTES, Report, in_threads
from latxa_megatron.errors import LatxaError
from latxa_megatron.model import device
from latxa_megatron.model.llama import LlamaShape
from latxa_megatron.train import checkpoint

TOLERANCE = 1e-4
"""The most that the two may differ by in fp32: the norm of a difference over the norm."""


@dataclass(frozen=True)
class Verified:
    """What is the same: so many tensors, of so many bytes; and by how much the outputs of each layer, and the logits, differ."""

    tensors: int
    bytes: int
    tokens: int
    layers: list[Difference]
    logits: Difference


def verify(
    hf: Path,
    source: Path,
    *,
    adapter: Path | None = None,
    workers: int = 2,
    report: Report = lambda done, total: None,
) -> Verified:
    """Prove that a checkpoint (a torch_dist directory, or the newest under `source`) is the model of a Hugging Face directory.

    adapter: a LoRA that was merged into the weights while importing. workers: threads, each comparing a tensor.
    report: told of the bytes that are read, of the checkpoint, for both proofs. Raises LatxaError for the first thing in
    which they differ.
    """
    if device.on_gpu():
        raise LatxaError("verify computes on the CPU; set CUDA_VISIBLE_DEVICES to nothing before torch is imported")
    shape = LlamaShape.from_hf(hf)
    theirs = HfTensors(hf) if adapter is None else AdaptedTensors(hf, adapter)
    check_source(hf, shape, theirs)
    directory = resolve(source)
    find_origin(directory, hf)  # the checkpoint may know settings of which its tensors tell nothing
    ours = MegatronTensors(directory, shape)
    places = parts(shape)
    names = [name for name in theirs.names() if not name.endswith(FORGOTTEN)]
    sizes = {name: torch.Size(shape.tensor_shape(name)).numel() * theirs.place(name).dtype.itemsize for name in names}

    def compare(name: str, tell: Callable[[int], None]) -> int:
        return _differing(name, places[name], theirs, ours, tell)

    size = sum(sizes.values())  # is read twice
    counts = dict(zip(names, in_threads(workers, compare, names, 2 * size, report), strict=True))
    if other := [name for name in names if counts[name]]:
        more = f", and in {len(other) - 1} other tensors" if len(other) > 1 else ""
        if adapter is None and checkpoint.read_facts(directory).get("imported", {}).get("adapter"):
            more += "; an adapter was merged into it, name that with --adapter"
        raise LatxaError(f"{directory}: differs from {hf} in {counts[other[0]]:,} values of {other[0]}{more}")
    tokens, layers, logits = run_layers(
        hf, shape, theirs, ours, lambda done: report(size + size * done // shape.layers, 2 * size)
    )
    for layer, difference in enumerate(layers):
        if not difference.relative <= TOLERANCE:
            raise LatxaError(f"{directory}: layer {layer} computes something else, by {difference.relative:.1e} of it")
    if not logits.relative <= TOLERANCE:
        raise LatxaError(f"{directory}: the logits are others, by {logits.relative:.1e} of them")
    return Verified(len(names), size, tokens, layers, logits)


def _differing(name: str, part: Part, theirs: HfTensors, ours: MegatronTensors, tell: Callable[[int], None]) -> int:
    """How many values of a tensor differ in any bit; all of them where the types do."""
    dtype = ours.dtype(part.row)
    if dtype != theirs.place(name).dtype:
        raise LatxaError(f"{name}: is {theirs.place(name).dtype} in the Hugging Face directory, {dtype} in the checkpoint")
    differing = start = 0
    for piece in ours.pieces(part.row, part.part, part.layer, PIECE_BYTES):
        other = theirs.read(name, start, start + len(piece))
        differing += int((_bits(piece) != _bits(other)).sum())
        start += len(piece)
        tell(other.nbytes)
    return differing


def _bits(values: Tensor) -> Tensor:
    return values.view({2: torch.int16, 4: torch.int32}[values.itemsize])
