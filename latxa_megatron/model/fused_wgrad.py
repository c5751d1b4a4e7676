"""Weight gradients that a product adds straight into the gradient buffer, for layers that are not Transformer Engine's.

megatron-core's own layers (of ours, the output head) ask apex's module `fused_weight_gradient_mlp_cuda` for that. Where apex
is not installed, prepare() puts two cuBLAS calls of torch's under that name: without them each microbatch of a head with
128,256 rows of 8192 writes, reads and adds a gradient of 2 GB.
"""

import importlib.util
import sys
import types

import torch
from torch import Tensor

_NAME = "fused_weight_gradient_mlp_cuda"


def prepare() -> None:
    """Must run before megatron-core is imported, which looks for the module once."""
    if importlib.util.find_spec(_NAME) is None:
        module = types.ModuleType(_NAME)
        module.__spec__ = importlib.util.spec_from_loader(_NAME, loader=None)
        module.wgrad_gemm_accum_fp16 = _into_same_dtype  # type: ignore[attr-defined]
        module.wgrad_gemm_accum_fp32 = _into_fp32  # type: ignore[attr-defined]
        sys.modules[_NAME] = module


def _rows(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1, tensor.shape[-1])


def _into_same_dtype(inputs: Tensor, grad_output: Tensor, main_grad: Tensor) -> None:
    """main_grad [out, in] += grad_output [..., out] transposed times inputs [..., in]."""
    main_grad.addmm_(_rows(grad_output).t(), _rows(inputs))


def _into_fp32(inputs: Tensor, grad_output: Tensor, main_grad: Tensor) -> None:
    """The same for bf16 products that are added in fp32."""
    torch.addmm(main_grad, _rows(grad_output).t(), _rows(inputs), out_dtype=torch.float32, out=main_grad)
