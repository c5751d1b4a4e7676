"""Where tensors live. Without CUDA, "cuda" means the CPU, and stock megatron-core trains over gloo.

megatron-core asks torch for device "cuda" and for CUDA streams, events and random states throughout. On a machine without CUDA,
prepare() answers those calls for the CPU: a torch-function mode rewrites devices, and the few torch.cuda functions that
megatron-core calls become no-ops or their CPU equals. Nothing of megatron-core is changed. The mode belongs to the thread
that imported it, which is the one that trains.

On CPUs without bf16 instructions (no AVX-512), torch multiplies bf16 matrices with plain loops, far slower than fp32.
There the same mode multiplies them in fp32 and rounds the product to bf16, which is what the instructions do.
"""

import contextlib
import ctypes
import importlib.util
import os
import platform
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from latxa_megatron.model import fused_wgrad

_CPU = torch.device("cpu")


def on_gpu() -> bool:
    return torch.cuda.is_available()


def has_transformer_engine() -> bool:
    """Whether layers can be Transformer Engine's: it is installed and there is a GPU."""
    return on_gpu() and importlib.util.find_spec("transformer_engine") is not None


def device() -> torch.device:
    """This process's device: its own GPU, or the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if on_gpu() else _CPU


def to_device(tensor: Tensor) -> Tensor:
    """A CPU tensor on this process's device. The copy to a GPU waits for nothing that goes on there."""
    return tensor.pin_memory().to(device(), non_blocking=True) if on_gpu() else tensor


def release_unused() -> None:
    """Give memory that was freed, and is kept for the next tensors, back to the system: CUDA's cache, and glibc's heap."""
    if on_gpu():
        torch.cuda.empty_cache()
    trim_heap()


def trim_heap() -> None:
    """Give memory that glibc keeps for the next tensors back to the system; with a GPU they are not in that heap."""
    if not on_gpu() and platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def prepare() -> None:
    """Make megatron-core usable on this machine. Must run before megatron-core is imported; runs once."""
    global _mode
    if on_gpu():
        fused_wgrad.prepare()
        return
    if _mode is not None:
        return
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")  # megatron-core compiles small functions, for GPUs
    sys.modules.setdefault("transformer_engine", None)  # type: ignore[arg-type]  # importing it fails: its kernels want a GPU
    _replace_cuda_functions()
    _mode = _CudaMeansCpu()
    _mode.__enter__()  # for the life of the thread


_mode: TorchFunctionMode | None = None


_MATRIX_PRODUCTS = {
    torch.nn.functional.linear,
    torch.nn.functional.scaled_dot_product_attention,
    torch.Tensor.matmul,
    torch.Tensor.__matmul__,
    torch.matmul,
    torch.mm,
    torch.bmm,
    torch.addmm,
    torch.baddbmm,
}


def _widened(value: Any) -> Any:
    return value.float() if isinstance(value, torch.Tensor) and value.dtype == torch.bfloat16 else value


def _is_cuda(where: Any) -> bool:
    return (isinstance(where, str) and where.startswith("cuda")) or (isinstance(where, torch.device) and where.type == "cuda")


class _CudaMeansCpu(TorchFunctionMode):
    """device="cuda" is the CPU for every torch call, t.cuda() is t, and t.type() names a torch.cuda type."""

    def __init__(self) -> None:
        super().__init__()
        self._widen = not torch.ops.mkldnn._is_mkldnn_bf16_supported()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.Tensor.cuda:
            return args[0]
        if func is torch.Tensor.type and len(args) == 1 and not kwargs:
            return func(*args).replace("torch.", "torch.cuda.", 1)
        if kwargs:
            if _is_cuda(kwargs.get("device")):
                kwargs["device"] = _CPU
            if kwargs.get("pin_memory"):
                kwargs["pin_memory"] = False
        if func is torch.Tensor.to and len(args) > 1 and _is_cuda(args[1]):
            args = (args[0], _CPU, *args[2:])
        if self._widen and func in _MATRIX_PRODUCTS and args[0].dtype == torch.bfloat16 and "out" not in kwargs:
            return func(*map(_widened, args), **kwargs).to(torch.bfloat16)
        return func(*args, **kwargs)


class _Generators:
    """torch.cuda.default_generators, whatever the index."""

    def __getitem__(self, _: int) -> torch.Generator:
        return torch.default_generator


class _Stream:
    """A stream or event where nothing is asynchronous."""

    device = _CPU

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __getattr__(self, _: str) -> Callable[..., None]:
        return lambda *args, **kwargs: None

    def __enter__(self) -> "_Stream":
        return self

    def __exit__(self, *args: object) -> None: ...

    def query(self) -> bool:
        return True

    def record_event(self, event: Any = None) -> Any:
        return event or self


def _set(owner: Any, value: Callable[..., Any], *names: str) -> None:
    for name in names:  # a fresh function for each name: torch._dynamo refuses one object under two
        setattr(owner, name, lambda *args, _value=value, **kwargs: _value(*args, **kwargs))


def _replace_cuda_functions() -> None:
    cuda: Any = torch.cuda
    _set(
        cuda,
        lambda *a, **k: None,
        *("synchronize", "set_device", "empty_cache", "init", "_lazy_init", "reset_peak_memory_stats"),
    )
    _set(
        cuda,
        lambda *a, **k: 0,
        *("memory_allocated", "max_memory_allocated", "memory_reserved", "max_memory_reserved"),
    )
    _set(cuda, lambda *a, **k: contextlib.nullcontext(), "stream", "device")
    _set(cuda, lambda *a, **k: cuda.Stream(), "current_stream", "default_stream")
    _set(cuda, lambda: _CPU, "current_device")
    _set(cuda, lambda: 1, "device_count")
    _set(cuda, lambda call, **k: call(), "_lazy_call")
    _set(cuda.nvtx, lambda *a, **k: None, "range_push", "range_pop")
    cuda.Stream, cuda.Event = type("Stream", (_Stream,), {}), type("Event", (_Stream,), {})
    cuda.default_generators = _Generators()
    _set(cuda, lambda device=None: torch.get_rng_state(), "get_rng_state")
    _set(cuda, lambda state, device=None: torch.set_rng_state(state), "set_rng_state")
    _set(cuda, lambda seed: torch.manual_seed(seed) and None, "manual_seed")
    for name in ("get_rng_state", "set_rng_state", "manual_seed"):
        setattr(cuda.random, name, getattr(cuda, name))
