"""Versions, limits, disks and ports that are not as they should be."""

import os
import resource
import shutil
from importlib import metadata
from types import SimpleNamespace

import pytest
import torch

from latxa_megatron.config import load_run
from latxa_megatron.doctor import disk, host, versions
from latxa_megatron.doctor.finding import look
from latxa_megatron.doctor.links import look_at_infiniband, port_rate
from tests.tiny import load_llama, write_llama


def usage(total, free):
    return lambda path: SimpleNamespace(total=total, used=total - free, free=free)


@pytest.mark.parametrize(
    ("package", "version", "state"),
    [
        ("torch", "2.13.0+cpu", "ok"),
        ("torch", "2.11.0a0+a6c236b9fd.nv26.03", "ok"),
        ("torch", "2.12.1", "warn"),
        ("torch", "2.5.1", "fail"),
        ("torch", None, "fail"),
        ("megatron-core", "0.19.2", "ok"),
        ("megatron-core", "0.18.0", "warn"),
        ("megatron-core", "0.20.0", "fail"),
    ],
)
def test_versions_against_those_tested_and_those_allowed(monkeypatch, package, version, state):
    real = metadata.version

    def installed(name):
        if name == package and version is None:
            raise metadata.PackageNotFoundError(name)
        return version if name == package else real(name)

    monkeypatch.setattr(metadata, "version", installed)
    (finding,) = (f for f in versions.look_at_versions(gpu=False) if f.check == package)
    assert finding.state == state
    assert bool(finding.mend) == (state != "ok")
    if state == "warn":
        assert "tested: " in finding.found


def test_a_python_that_was_not_tested(monkeypatch):
    for python, state in (("3.11.9", "ok"), ("3.12.0", "ok"), ("3.13.5", "warn"), ("3.1.4", "warn")):
        monkeypatch.setattr("platform.python_version", lambda python=python: python)
        assert versions.look_at_versions(gpu=False)[0].state == state


@pytest.mark.parametrize(("built", "driver", "state"), [("13.0", "12.8", "fail"), ("12.8", "12.4", "ok"), ("12.8", "13.0", "ok")])
def test_a_driver_that_is_too_old_for_torch(monkeypatch, built, driver, state):
    """Within a major version of CUDA an older driver does."""
    monkeypatch.setattr("torch.version.cuda", built)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert versions.look_at_driver("580", driver)[0].state == state


def test_the_core_computes():
    assert [f.state for f in versions.look_at_core()] == ["ok"]


def test_shared_memory_as_docker_gives_it(monkeypatch, tmp_path):
    cases = [(64 << 20, 64 << 20, "warn"), (16 << 30, 1 << 20, "warn"), (16 << 30, 16 << 30, "ok")]
    for total, free, state in cases:
        monkeypatch.setattr(shutil, "disk_usage", usage(total, free))
        assert [f.state for f in host.look_at_shared_memory(tmp_path)] == [state]
    assert host.look_at_shared_memory(tmp_path / "none")[0].state == "fail"


def test_limits(monkeypatch, tmp_path):
    limits = {resource.RLIMIT_NOFILE: (1024, 524288), resource.RLIMIT_MEMLOCK: (8 << 20, 8 << 20)}
    monkeypatch.setattr(resource, "getrlimit", limits.get)
    few, locked = host.look_at_limits(tmp_path / "none")
    assert (few.state, few.found, few.mend) == ("warn", "1,024", "ulimit -n 4096 in the job script, or more")
    assert locked.state == "ok"
    (tmp_path / "mlx5_0").mkdir()
    assert host.look_at_limits(tmp_path)[1].state == "fail"
    limits[resource.RLIMIT_NOFILE] = (1024, 1024)
    assert "administrator" in host.look_at_limits(tmp_path)[0].mend


def port(root, card, state, rate, layer="InfiniBand"):
    directory = root / card / "ports" / "1"
    directory.mkdir(parents=True)
    for name, text in {"state": state, "rate": rate, "link_layer": layer}.items():
        (directory / name).write_text(text + "\n")


def test_infiniband_ports(tmp_path):
    assert [f.state for nodes in (1, 2) for f in look_at_infiniband(nodes, tmp_path)] == ["ok", "warn"]
    port(tmp_path, "mlx5_1", "1: DOWN", "10 Gb/sec (4X SDR)")
    assert [f.state for nodes in (1, 2) for f in look_at_infiniband(nodes, tmp_path)] == ["ok", "fail"]
    port(tmp_path, "mlx5_0", "4: ACTIVE", "400 Gb/sec (4X NDR)")
    assert [(f.state, f.found) for f in look_at_infiniband(2, tmp_path)] == [
        ("ok", "1 x InfiniBand 400 Gb/s; not in use: mlx5_1:1")
    ]
    assert port_rate(tmp_path) == 50.0
    port(tmp_path, "mlx5_2", "4: ACTIVE", "100 Gb/sec (4X EDR)", "Ethernet")
    assert [(f.state, f.found) for f in look_at_infiniband(2, tmp_path)] == [
        ("warn", "ports of several kinds: 1 x InfiniBand 400 Gb/s, 1 x RoCE 100 Gb/s")
    ]


def test_disk_speed_leaves_nothing_behind(tmp_path):
    (found,) = disk.look_at_speed(tmp_path / "not" / "yet", 32 << 20)
    assert found.found.startswith(f"{tmp_path}: writes ")
    assert "(32 MiB, " in found.found
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    (found,) = look("disk speed", disk.look_at_speed, tmp_path / "file" / "out", 32 << 20)
    assert (found.state, found.found) == ("fail", f"{tmp_path}/file: is a file, and a run's output needs a directory")


def test_a_disk_that_is_full_or_read_only(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "write", lambda descriptor, block: 512)
    (found,) = look("disk speed", disk.look_at_speed, tmp_path, 32 << 20)
    assert (found.check, found.state, found.found.startswith("OSError: [Errno 28] No space left")) == ("disk speed", "fail", True)
    assert list(tmp_path.iterdir()) == []


def test_a_file_system_without_direct_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(disk, "_past_cache", lambda path: False)
    assert "(32 MiB, fsync)" in disk.look_at_speed(tmp_path, 32 << 20)[0].found
    monkeypatch.setattr(disk, "_SLOW", 1e15)
    assert disk.look_at_speed(tmp_path, 32 << 20)[0].state == "warn"


@pytest.fixture
def run(tmp_path):
    write_llama(tmp_path / "hf")
    file = tmp_path / "run.yaml"
    file.write_text(f"name: a\nout: {tmp_path}/out\nmodel: {{hf: {tmp_path}/hf}}\ndata: {{store: s, plan: p}}\n")
    return load_run(file)


@pytest.mark.parametrize(("family", "tied"), [("Llama", False), ("Llama", True), ("Qwen2", False), ("Qwen3", True)])
def test_parameters_are_those_that_transformers_counts(tmp_path, run, family, tied):
    hf = write_llama(tmp_path / "other", family=family, tied=tied)
    theirs = sum(weight.numel() for weight in load_llama(hf, torch.float32).parameters())
    assert disk.parameters_of(run.model_copy(update={"model": run.model.model_copy(update={"hf": hf})})) == theirs


def test_planned_checkpoints_and_a_disk_that_is_too_small(run, monkeypatch):
    one = 14 * disk.parameters_of(run)
    monkeypatch.setattr(shutil, "disk_usage", usage(1 << 40, 3 * one - 1))
    (found,) = disk.look_at_space(run)
    assert (found.state, "3 checkpoints of " in found.found) == ("fail", True)
    monkeypatch.setattr(shutil, "disk_usage", usage(1 << 40, 3 * one))
    assert disk.look_at_space(run)[0].state == "ok"
    monkeypatch.setattr(shutil, "disk_usage", usage(1 << 40, 2 * one))
    run.checkpoints.mkdir(parents=True)
    (run.checkpoints / "state").write_bytes(bytes(one))  # a run that goes on needs room for what is not there yet
    assert disk.look_at_space(run)[0].state == "ok"


def test_a_model_that_is_not_there_is_taken_from_the_run_file(run, tmp_path):
    shutil.rmtree(tmp_path / "hf")
    assert disk.look_at_space(run)[0].state == "warn"
    scale = run.scale.model_copy(update={"parameters": 1000})
    assert "3 checkpoints of 14.0 kB" in disk.look_at_space(run.model_copy(update={"scale": scale}))[0].found


def test_an_error_is_a_line():
    def broken():
        try:
            raise RuntimeError("first\n  second")
        except RuntimeError as error:
            raise ValueError("see above") from error

    assert [(f.state, f.found) for f in look("a check", broken)] == [("fail", "RuntimeError: first second")]
