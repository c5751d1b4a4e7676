"""Whether a Hugging Face directory holds the model that its config.json describes, and nothing else."""

from pathlib import Path

import torch

from latxa_megatron.convert.hf import Tensors
from latxa_megatron.convert.names import EMBEDDING, HEAD, parts, rows
from latxa_megatron.convert.threads import PIECE_BYTES
from latxa_megatron.errors import LatxaError
from latxa_megatron.model.llama import LlamaShape

FORGOTTEN = "rotary_emb.inv_freq"
"""How the names of tensors end that old Llama 2 files have, and that follow from config.json."""


def check_source(hf: Path, shape: LlamaShape, tensors: Tensors) -> None:
    """Raise LatxaError for a tensor that is missing, has another shape than config.json says, or is none of such a model's."""
    for row in rows(shape):
        names = [name.format(layer) for layer in (range(shape.layers) if row.in_layers else [0]) for name in row.hf]
        for name in names:
            if name not in tensors:
                raise LatxaError(f"{hf}: has no tensor {name}, which its config.json asks for")
            if tensors.place(name).shape != shape.tensor_shape(name):
                found = tensors.place(name).shape
                raise LatxaError(f"{hf}: {name} has the shape {found}, config.json says {shape.tensor_shape(name)}")
            dtype, first = tensors.place(name).dtype, tensors.place(names[0]).dtype
            if dtype != first:
                raise LatxaError(f"{hf}: {name} is {dtype} and {names[0]} {first}; they become one tensor")
    known = parts(shape)
    for name in tensors.names():
        if name not in known and not name.endswith(FORGOTTEN):
            raise LatxaError(f"{hf}: has the tensor {name}, which a model of its config.json does not")
    if shape.tied and HEAD.hf[0] in tensors:
        _check_head(hf, tensors)


def _check_head(hf: Path, tensors: Tensors) -> None:
    """Raise LatxaError where the head of a model that is said to be tied is not its embedding."""
    head, embedding = HEAD.hf[0], EMBEDDING.hf[0]
    blocks = zip(*(tensors.blocks(name, PIECE_BYTES) for name in (head, embedding)), strict=False)
    if tensors.place(head)[2:] != tensors.place(embedding)[2:] or not all(torch.equal(one, other) for one, other in blocks):
        raise LatxaError(f"{hf}: tie_word_embeddings is set, but {head} is not {embedding}")
