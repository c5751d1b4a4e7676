"""How many parameters a model has, and the bytes of a checkpoint of its training."""

from latxa_megatron.config import RunConfig
from latxa_megatron.model.llama import LlamaShape
from latxa_megatron.train.flops import matrix_parameters


def parameters(shape: LlamaShape) -> int:
    """All of them, embeddings, norms and biases too."""
    norms = (2 * shape.layers + 1) * shape.hidden + (2 * shape.layers * shape.head_dim if shape.qk_norm else 0)
    biases = shape.layers * (shape.heads + 2 * shape.kv_heads) * shape.head_dim if shape.qkv_bias else 0
    return matrix_parameters(shape) + (0 if shape.tied else shape.vocab * shape.hidden) + norms + biases


def bytes_each(run: RunConfig) -> int:
    """Bytes of a checkpoint for each parameter: the weight, and in fp32 the optimizer's copy of it and its two moments."""
    return {"bf16": 2, "fp32": 4}[run.precision.dtype] + 12


def checkpoint_bytes(run: RunConfig, shape: LlamaShape) -> int:
    return parameters(shape) * bytes_each(run)
