"""Conversions that are killed at random moments: nothing half-written has a name, and the same command finishes."""

import random
import shutil
import subprocess
import sys
import time
from multiprocessing import get_context
from pathlib import Path

import pytest

from latxa_megatron.convert.exporter import export_hf
from latxa_megatron.convert.importer import import_hf
from latxa_megatron.train.checkpoint import TRACKER
from tests.convert.converting import convert, stand_still
from tests.tiny import write_llama


@pytest.fixture(scope="module")
def processes():
    """Starts processes that have their modules loaded already, and so are in the work at once."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["tests.convert.converting"])
    return context


def contents(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("kind", ["import", "export"])
@pytest.mark.parametrize("kills", [8, pytest.param(100, marks=pytest.mark.slow)])
def test_killed_at_random_moments_and_started_again_gives_the_same_bytes(kills, kind, processes, tmp_path):
    source = write_llama(tmp_path / "hf", max_shard_size="150KB")
    if kind == "export":
        import_hf(source, tmp_path / "ckpt")
        source = tmp_path / "ckpt"

    def start(out: Path):
        process = processes.Process(target=convert, args=(kind, source, out))
        process.start()
        return process

    for name in ("first", "whole"):  # the first waits for the modules to be loaded
        began = time.monotonic()
        start(tmp_path / name / "model").join()
        took = time.monotonic() - began
    expected = contents(tmp_path / "whole" / "model")
    chance, out, killed, unfinished = random.Random(3), tmp_path / "out" / "model", 0, 0
    while killed < kills:
        process = start(out)
        time.sleep(chance.uniform(0, took))
        process.kill()
        process.join()
        killed += process.exitcode == -9
        unfinished += bool(list((tmp_path / "out").rglob("*.partial")))
        if (out / TRACKER if kind == "import" else out).exists():  # whole, and so to be done anew
            assert contents(out) == expected
            shutil.rmtree(out)
    assert unfinished > kills / 4
    last = start(out)
    last.join()
    assert last.exitcode == 0
    assert contents(out) == expected
    assert not list((tmp_path / "out").rglob("*.partial"))


@pytest.mark.parametrize("kind", ["import", "export"])
def test_a_second_one_is_refused_as_long_as_the_first_lives(kind, processes, tmp_path):
    """And does the first no harm, whose bytes so far stay; a killed first one is in nobody's way."""
    source, out = write_llama(tmp_path / "hf"), tmp_path / "out"
    command = ["import", "--hf", source]
    if kind == "export":
        import_hf(source, tmp_path / "ckpt")
        source = tmp_path / "ckpt"
        command = ["export", "--checkpoint", source]
    begun = processes.Event()
    first = processes.Process(target=stand_still, args=(kind, source, out, begun))
    first.start()
    begun.wait()
    there = sorted(tmp_path.rglob("*"))
    latxa = [sys.executable, "-m", "latxa_megatron", "convert", *map(str, command), "--out", str(out)]
    second = subprocess.run(latxa, capture_output=True, text=True)
    assert second.returncode == 2
    held, what = (out, "importing a model there") if kind == "import" else (f"{out}.partial", "writing it")
    assert second.stderr == f"error: {held}: another process is {what}; wait for it or stop it\n"
    assert sorted(tmp_path.rglob("*")) == there
    assert first.is_alive()
    first.kill()
    first.join()
    subprocess.run(latxa, check=True)
    assert not list(tmp_path.rglob("*.partial"))
    {"import": import_hf, "export": export_hf}[kind](source, tmp_path / "whole" / "out")
    assert contents(out).keys() == contents(tmp_path / "whole" / "out").keys()
