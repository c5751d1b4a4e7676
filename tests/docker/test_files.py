"""The files that images are built from: lint, what they copy, what compose starts, what build.sh asks the engine for."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from latxa_megatron import recipes
from latxa_megatron.config import load_run

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
COMPOSE = yaml.safe_load((DOCKER / "compose.yaml").read_text())
FILES = ["Dockerfile", "Dockerfile.cpu"]


@pytest.mark.parametrize("name", FILES)
def test_hadolint_has_nothing_to_say(name):
    beside = Path(sys.executable).with_name("hadolint")
    hadolint = str(beside) if beside.exists() else shutil.which("hadolint")
    if hadolint is None:
        pytest.skip("hadolint is not installed")
    ran = subprocess.run([hadolint, "--config", ROOT / ".hadolint.yaml", DOCKER / name], capture_output=True, text=True)
    assert (ran.returncode, ran.stdout) == (0, "")


@pytest.mark.parametrize("name", FILES)
def test_an_image_runs_without_rights_and_knows_its_health(name):
    last = (DOCKER / name).read_text().rpartition("\nFROM ")[2]
    assert re.search(r"^USER [1-9]\d*$", last, re.MULTILINE)
    assert re.search(r'^HEALTHCHECK .*CMD \["latxa", "doctor"\]$', last, re.MULTILINE)
    assert "apt-get" not in last  # what builds stays behind
    assert re.search(r"^ARG BASE=\S+:\S+$", (DOCKER / name).read_text(), re.MULTILINE)


def test_one_place_names_nvidias_image():
    files = [file for file in [*DOCKER.iterdir(), *ROOT.glob("*.md"), *ROOT.glob("docs/*.md")] if file.is_file()]
    assert [file.name for file in files if "nvcr.io/" in file.read_text()] == ["Dockerfile"]


def test_nothing_that_was_built_here_goes_into_an_image():
    """A core of another Python would be taken for this one's."""
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert {".git", ".venv", "build", "**/*.so"} <= set(ignored)


def test_apptainer_copies_what_there_is():
    text = (DOCKER / "latxa.def").read_text()
    copied = re.findall(r"^    (\S+) /src/(\S+)$", text, re.MULTILINE)
    assert copied
    assert all(source == target and (ROOT / source).exists() for source, target in copied)
    wanted = re.search(r"license-files = \[\"(.*)\"\]", (ROOT / "pyproject.toml").read_text())
    assert {wanted[1], "pyproject.toml", "CMakeLists.txt", "csrc", "latxa_megatron", "examples"} <= {
        source for source, _ in copied
    }
    installed = "pip install --no-cache-dir '.["
    assert (
        text.partition(installed)[2].partition("'")[0]
        == (DOCKER / "Dockerfile").read_text().partition(installed)[2].partition("'")[0]
    )


def test_compose_refers_to_what_there_is():
    services = COMPOSE["services"]
    for service in services.values():
        context = DOCKER / service["build"]["context"]
        assert (context / service["build"]["dockerfile"]).is_file()
        assert set(service.get("depends_on", {})) <= set(services)
        assert {volume.partition(":")[0] for volume in service["volumes"]} <= set(COMPOSE["volumes"])


def test_the_nodes_of_compose_are_one_run(tmp_path):
    nodes = {name: service for name, service in COMPOSE["services"].items() if "RANK" in service.get("environment", {})}
    said = [service["environment"] for service in nodes.values()]
    assert sorted(each["RANK"] for each in said) == [str(rank) for rank in range(len(nodes))]
    assert all(each["WORLD_SIZE"] == str(len(nodes)) and each["MASTER_ADDR"] == next(iter(nodes)) for each in said)
    command, run_file, *overrides = nodes["node0"]["command"]
    assert command == "train"
    assert run_file == "demo-out/run.yaml"  # written by the demo, on its recipe
    run = load_run(recipes.path("demo"), overrides)
    assert (run.parallel.pp, run.train.steps, run.logging.tensorboard) == (len(nodes), 4, True)


@pytest.fixture
def build(tmp_path):
    """docker/build.sh where a docker, whose daemon is not there, and a podman write down what they are asked for."""

    def run(*arguments: str, engines: tuple[str, ...] = ("docker", "podman", "apptainer")) -> subprocess.CompletedProcess:
        for name in ("docker", "podman", "apptainer"):
            (tmp_path / name).unlink(missing_ok=True)
        for name in engines:
            works = "exit 1" if name == "docker" else "exit 0"
            (tmp_path / name).write_text(f'#!/bin/sh\n[ "$1" = info ] && {works}\necho {name} "$@"\n')
            (tmp_path / name).chmod(0o755)
        for tool in ("bash", "dirname", "sed", "sh"):
            (tmp_path / tool).unlink(missing_ok=True)
            (tmp_path / tool).symlink_to(shutil.which(tool))
        command = [tmp_path / "bash", DOCKER / "build.sh", *arguments]
        return subprocess.run(command, capture_output=True, text=True, env={"PATH": str(tmp_path)})

    return run


def test_build_takes_the_first_engine_that_works(build):
    said = build("cpu", "--build-arg", "BASE=a b").stdout.splitlines()
    assert said[0] == "podman build --format docker --file docker/Dockerfile.cpu --tag latxa-megatron:cpu --build-arg BASE=a b ."
    assert build("gpu").stdout.startswith("podman build --format docker --file docker/Dockerfile --tag latxa-megatron:gpu .\n")
    base = re.search(r"^ARG BASE=(.*)$", (DOCKER / "Dockerfile").read_text(), re.MULTILINE)[1]
    assert build("sif").stdout == f"apptainer build --build-arg BASE={base} latxa-megatron.sif docker/latxa.def\n"


def test_build_says_what_it_wants(build):
    for wrong in ((), ("tpu",)):
        ran = build(*wrong)
        assert (ran.returncode, "docker/build.sh cpu" in ran.stderr) == (2, True)
    alone = build("cpu", engines=("docker",))
    assert (alone.returncode, "neither docker, podman nor buildah works here" in alone.stderr) == (2, True)
