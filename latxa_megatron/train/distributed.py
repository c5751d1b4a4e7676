"""Process groups: torch.distributed from the launcher's environment, then megatron-core's parallel state."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state, tensor_parallel

from latxa_megatron.config import RunConfig
from latxa_megatron.launcher import adopt_srun
from latxa_megatron.model import device
from latxa_megatron.model.layout import Layout

_SAME_BITS = {"NCCL_ALGO": "Ring", "NVTE_ALLOW_NONDETERMINISTIC_ALGO": "0", "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
"""What NCCL, Transformer Engine and cuBLAS must find in the environment when they start, to compute the same bits each time."""


def compute_same_bits(wanted: bool) -> None:
    """Have every library choose deterministic algorithms, or leave the choice to them. Must come before connect()."""
    torch.use_deterministic_algorithms(wanted)
    if wanted:
        os.environ.update(_SAME_BITS)


def let_messages_overlap(wanted: bool) -> None:
    """Have kernels start in the order in which they are asked for, as userbuffers need it. Must come before connect()."""
    if wanted:
        os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")


def let_messages_be_recorded(wanted: bool) -> None:
    """Have NCCL register no buffers of messages in a CUDA graph: megatron-core asks that of graphs with expandable segments.

    Must come before connect().
    """
    if wanted:
        os.environ.setdefault("NCCL_GRAPH_REGISTER", "0")


def time_limit(run: RunConfig) -> timedelta:
    """How long a rank waits for another before the library ends it: longer than the run's own watch, which can say more."""
    return timedelta(minutes=(run.guard.hang_minutes or 24 * 60) + 30)


@contextmanager
def connected(limit: timedelta | None = None) -> Iterator[None]:
    """connect() for the length of a block; a group that was there before stays.

    So does one on GPUs that an error leaves: to take it apart NCCL would wait for the other ranks, and the error be said by none.
    """
    there = dist.is_initialized()
    connect(limit)
    try:
        yield
    except BaseException:
        if not there and not device.on_gpu():
            disconnect()
        raise
    if not there:
        disconnect()


def connect(limit: timedelta | None = None) -> None:
    """Join the process group that torchrun or srun described; a group of one where there is no launcher.

    limit: how long an operation waits for the other ranks; torch's choice where it is not given.
    """
    if dist.is_initialized():
        return
    adopt_srun()
    options: dict[str, Any] = {"backend": "gloo"}
    if device.on_gpu():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())  # srun may show each task its own
        options = {"backend": "nccl", "device_id": device.device()}
    if "RANK" not in os.environ:
        options.update(store=dist.HashStore(), rank=0, world_size=1)
    dist.init_process_group(**options, timeout=limit)


def spread(layout: Layout, seed: int, limit: timedelta = timedelta(minutes=30), *, graph_safe: bool = False) -> None:
    """Lay the ranks out as megatron-core does, and seed the random states of each. graph_safe: as a CUDA graph wants these."""
    if parallel_state.model_parallel_is_initialized():
        parallel_state.destroy_model_parallel()
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=layout.tp,
        pipeline_model_parallel_size=layout.pp,
        virtual_pipeline_model_parallel_size=layout.vp if layout.vp > 1 else None,
        context_parallel_size=layout.cp,
        distributed_timeout_minutes=int(limit.total_seconds() / 60),
    )
    tensor_parallel.model_parallel_cuda_manual_seed(seed, use_cudagraphable_rng=graph_safe, force_reset_rng=True)


def disconnect() -> None:
    if parallel_state.model_parallel_is_initialized():
        parallel_state.destroy_model_parallel()
    dist.destroy_process_group()
