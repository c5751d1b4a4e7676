"""Llama shapes with random weights, and runs of them through `latxa` as users start it."""

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml

SIZES_70B = {"hidden_size": 8192, "intermediate_size": 28672, "num_attention_heads": 64}
SIZES_8B = {"hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32}
SHAPES: dict[str, dict[str, int]] = {
    "135M-shaped": {
        **{"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30},
        **{"num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True},
    },
    "small, 8 layers": {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16, "num_hidden_layers": 8},
    "8B-shaped, 2 layers": {**SIZES_8B, "num_hidden_layers": 2},
    "70B-shaped, 4 layers": {**SIZES_70B, "num_hidden_layers": 4},
    "70B-shaped, 8 layers": {**SIZES_70B, "num_hidden_layers": 8},
    "70B-shaped, 5 layers": {**SIZES_70B, "num_hidden_layers": 5},
    "70B-shaped, 10 layers": {**SIZES_70B, "num_hidden_layers": 10},
    "70B-shaped, 20 layers": {**SIZES_70B, "num_hidden_layers": 20},
    "8B-shaped, 4 layers": {**SIZES_8B, "num_hidden_layers": 4},
    "8B-shaped, 8 layers": {**SIZES_8B, "num_hidden_layers": 8},
    "Llama-3.1-8B": {**SIZES_8B, "num_hidden_layers": 32},
    "Llama-3.1-70B": {**SIZES_70B, "num_hidden_layers": 80},
    "Llama-3.1-405B": {"hidden_size": 16384, "intermediate_size": 53248, "num_attention_heads": 128, "num_hidden_layers": 126},
}


def latxa(*arguments: object, limit: float | None = None, allowed: int = 0) -> str:
    """What a `latxa` command prints.

    Raises RuntimeError with its last words where it ends with a status above `allowed`, or has not ended after `limit` seconds;
    then it is killed, with all processes that it started.
    """
    command = [sys.executable, "-m", "latxa_megatron", *map(str, arguments)]
    with subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            said, errors = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            kill(process.pid)
            said, errors = process.communicate(timeout=60)
            raise RuntimeError(f"{(errors + said)[-6000:]}\nno end after {limit:.0f} s") from None
    if not 0 <= process.returncode <= allowed:
        raise RuntimeError((errors + said)[-6000:])
    return said


def kill(pid: int) -> None:
    """A process and all that came from it: torchrun's workers are in sessions of their own."""
    import psutil

    above = psutil.Process(pid)
    family = [above, *above.children(recursive=True)]
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(family, timeout=30)


def file_name(words: str) -> str:
    return re.sub(r"\W+", "-", words)


def write_shape(directory: Path, shape: str) -> Path:
    """A Hugging Face directory with nothing but config.json."""
    hf = directory / file_name(shape)
    hf.mkdir(parents=True, exist_ok=True)
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 128256,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "tie_word_embeddings": False,
        **SHAPES[shape],
    }
    (hf / "config.json").write_text(json.dumps(config))
    return hf


def write_run(out: Path, name: str, shape: str, plan: Path) -> Path:
    """The run file of a run of `shape` on a pack plan; its directory is the run's `out`."""
    from latxa_megatron.data.plan import PackPlan

    directory = out / file_name(f"{shape} {name}")
    directory.mkdir(parents=True, exist_ok=True)
    run = {
        "name": "benchmark",
        "out": str(directory),
        "model": {"hf": str(write_shape(out, shape))},
        "data": {"store": "unused", "plan": str(plan), "seq_length": PackPlan(plan).seq_length},
        "train": {"global_batch": 16},
        "optimizer": {"lr": 1e-5},
        "checkpoint": {"every": None},
    }
    file = directory / "run.yaml"
    file.write_text(yaml.safe_dump(run))
    return file


def read_metrics(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.with_name("metrics.jsonl").read_text().splitlines()]


def run_shape(
    out: Path, name: str, shape: str, plan: Path, overrides: list[str], *, gpus: int = 1, limit: float | None = None
) -> list[dict[str, Any]]:
    """metrics.jsonl of such a run, through `latxa launch local`. Raises RuntimeError after `limit` seconds."""
    file = write_run(out, name, shape, plan)
    latxa("launch", "local", file, "--nproc", gpus, *overrides, limit=limit)
    return read_metrics(file)


def run_pair(out: Path, name: str, shape: str, plan: Path, overrides: list[str]) -> list[dict[str, Any]]:
    """metrics.jsonl of such a run in two processes: on two GPUs, or both on the one that is there.

    NCCL refuses two ranks of one host on a GPU: there each says that it is a host of its own, and they speak over loopback.
    """
    import torch

    file = write_run(out, name, shape, plan)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "NCCL_IB_DISABLE": "1"}
    logs, ranks = [file.with_name(f"rank{rank}.log") for rank in range(2)], []
    for rank, log in enumerate(logs):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        if torch.cuda.device_count() == 1:
            own.update(NCCL_HOSTID=f"host-{rank}", NCCL_SOCKET_IFNAME="lo")
        command = [sys.executable, "-m", "latxa_megatron", "train", str(file), *overrides]
        with log.open("w") as words:
            ranks.append(subprocess.Popen(command, env={**os.environ, **shared, **own}, stdout=words, stderr=words))
    while None in (codes := [rank.poll() for rank in ranks]) and not any(codes):
        time.sleep(0.5)
    for rank, log in zip(ranks, logs, strict=True):
        if any(codes):
            rank.kill()
        if rank.wait() > 0:
            raise RuntimeError(log.read_text()[-6000:])
    return read_metrics(file)
