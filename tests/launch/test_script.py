"""The script of a run, and what is refused before there is one. test_slurm.py runs it."""

import os
import shlex
import subprocess
from pathlib import Path

import pytest

from latxa_megatron.errors import LatxaError
from latxa_megatron.launch.local import GPU_MEMORY, environment
from latxa_megatron.launch.site import Site, load_site, names
from latxa_megatron.launch.slurm import Job, launch_slurm, script, seconds
from latxa_megatron.plan.gpus import find_gpu
from tests.plan.conftest import write_model

SITE = Site(description="a cluster", tasks_per_node=2, cpus_per_task=3)


@pytest.fixture
def options(tiny_run):
    """The #SBATCH lines of a run's script, by option, and its last srun with the words that it got."""

    def made(job, site=SITE, *overrides, file=tiny_run.file):
        text = script(Path(file), job, site, list(overrides))
        lines = [line.removeprefix("#SBATCH --") for line in text.splitlines() if line.startswith("#SBATCH")]
        call = text[text.index("\nsrun ") : text.index("\nstatus=")].replace("\\\n", " ")
        return dict(line.partition("=")[::2] for line in lines), shlex.split(call)

    return made


@pytest.mark.parametrize("name", names())
def test_sites_that_ship(name, options):
    site = load_site(name)
    asked, srun = options(Job(2, account="mine", time="1-00:00:00"), site, "train.global_batch=16", "train.steps=2")
    assert (asked["nodes"], asked["ntasks-per-node"]) == ("2", str(site.tasks_per_node))
    assert asked["gres"] == f"gpu:{site.tasks_per_node}"
    assert (asked["account"], asked["time"]) == ("mine", "1-00:00:00")
    assert asked.get("partition") == {"generic": None, "leonardo": "boost_usr_prod", "marenostrum5": "acc"}[name]
    assert find_gpu(site.gpu).node == site.tasks_per_node
    assert asked["signal"] == "USR1@300"
    assert "requeue" in asked
    assert srun[:3] == ["srun", "--kill-on-bad-exit=1", f"--cpus-per-task={site.cpus_per_task}"]
    assert Path(__file__).parents[2].joinpath("docs", "clusters.md").read_text().count(f"| `{name}` |") == 1
    source = Path(__file__).parents[2] / "latxa_megatron" / "launch" / "sites" / f"{name}.yaml"
    assert "# " in source.read_text()
    assert "https://" in source.read_text()


def test_words_reach_the_run_as_they_were(options, tiny_run, tmp_path, monkeypatch):
    """In a directory, and with values, that a shell would take apart."""
    place = tmp_path / "it's #1 & more"
    place.mkdir()
    monkeypatch.chdir(place)
    file = Path("my run.yaml")
    file.write_text(Path(tiny_run.file).read_text())
    odd = ["name=a b", "logging.wandb=null", "out=$HOME/`x`"]
    asked, srun = options(Job(1), SITE, *odd, file=file)
    assert srun[-6:] == ["latxa_megatron", "train", str(place / file), *odd]
    assert asked["chdir"] == f'"{place}"'
    assert asked["job-name"] == "latxa-a_b"
    assert asked["output"] == f'"{place}/$HOME/`x`/slurm/%j.log"'


def test_what_a_site_adds(options, tiny_run):
    site = Site(**{
        **SITE.model_dump(),
        **{"modules": ["cuda/12.8"], "setup": ["ulimit -c 0"], "environment": {"NCCL_IB_HCA": "mlx5_0, mlx5_1"}},
        **{"sbatch": ["--constraint=gpu&fast"], "stop_before": 90, "partition": "p", "time": "60"},
    })  # fmt: skip
    text = script(Path(tiny_run.file), Job(1, partition="q"), site)
    asked, _ = options(Job(1, partition="q"), site)
    for line in ("module load cuda/12.8", "ulimit -c 0", "export NCCL_IB_HCA='mlx5_0, mlx5_1'", "export OMP_NUM_THREADS=3"):
        assert f"\n{line}\n" in text
    assert "\nexport PYTORCH_ALLOC_CONF=expandable_segments:True\n" in text
    own = site.model_copy(update={"environment": {"PYTORCH_ALLOC_CONF": "backend:native"}})
    assert text.count("PYTORCH_ALLOC_CONF") == 1
    assert "\nexport PYTORCH_ALLOC_CONF=backend:native\n" in script(Path(tiny_run.file), Job(1), own)
    assert (asked["partition"], asked["time"], asked["signal"]) == ("q", "60", "USR1@90")
    assert asked["constraint"] == "gpu&fast"


def test_containers(options, tiny_run, tmp_path, monkeypatch):
    """Each sees all that the run names, and what links among it point to."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "image.sqsh").touch()
    (tmp_path / "image.sif").touch()
    (tmp_path / "other").mkdir()
    (tmp_path / "link").symlink_to(tiny_run.hf)
    site = SITE.model_copy(update={"mounts": [tmp_path.parent / "scratch"], "apptainer": "singularity"})
    (tmp_path.parent / "scratch").mkdir()
    job = ["python3", "-m", "latxa_megatron", "train", str(Path(tiny_run.file)), f"model.hf={tmp_path / 'link'}"]
    seen = sorted(map(str, (tiny_run.root, tmp_path, tmp_path.parent / "scratch")))
    _, srun = options(Job(1, container=Path("image.sqsh")), site, job[-1])
    binds = ",".join(f"{place}:{place}" for place in seen)
    pyxis = [f"--container-image={tmp_path}/image.sqsh", f"--container-mounts={binds}", f"--container-workdir={tmp_path}"]
    assert srun[3:] == [*pyxis, *job]
    _, srun = options(Job(1, container=Path("image.sif")), site, job[-1])
    apptainer = ["singularity", "exec", "--nv", "--bind", ",".join(seen), "--pwd", str(tmp_path)]
    assert srun[3:] == [*apptainer, f"{tmp_path}/image.sif", *job]


@pytest.mark.parametrize(
    ("job", "message"),
    [
        ({"nodes": 3}, "train.global_batch: 4 is not a multiple of micro_batch 1 x 6 data-parallel ranks"),
        ({"nodes": 1, "time": "tomorrow"}, "--time tomorrow: is minutes"),
        ({"nodes": 1, "account": "a b"}, "--account 'a b': is one word"),
        ({"nodes": 1, "container": Path("image.img")}, "--container image.img: is neither"),
        ({"nodes": 1, "container": Path("none.sif")}, "--container none.sif: there is no such file"),
    ],
)
def test_what_cannot_be_submitted(job, message, tiny_run):
    with pytest.raises(LatxaError, match=message):
        script(Path(tiny_run.file), Job(**job), SITE)


@pytest.mark.parametrize(
    ("time", "expected"),
    [("7", 420), ("7:30", 450), ("2:00:01", 7201), ("1-2", 93600), ("1-2:3", 93780), ("1-02:03:04", 93784), ("UNLIMITED", 0)],
)
def test_time_limits_are_read_as_sbatch_reads_them(time, expected):
    """The forms that its manual has."""
    assert seconds(time) == expected
    assert Job(1, time=time).time == time


def test_a_job_is_not_asked_to_stop_before_it_starts(tiny_run):
    site = SITE.model_copy(update={"stop_before": 120})
    assert "#SBATCH --time=2:01\n" in script(Path(tiny_run.file), Job(1, time="2:01"), site)
    with pytest.raises(LatxaError, match=r"--time 2: is 120 s, and a job is asked to stop 120 s before its end"):
        script(Path(tiny_run.file), Job(1, time="2"), site)


def test_a_run_without_room_on_the_sites_gpus_is_not_submitted(tiny_run, tmp_path):
    """An 8B, 64 positions a sample: 16 GB of weights, 32 of gradients, 96 of the optimizer's state over all ranks."""
    words = [f"model.hf={write_model(tmp_path / 'hf')}", "model.checkpoint=null", "precision.dtype=bf16", "train.global_batch=6"]
    said = []

    def made(gpu, *more, tasks=2, force=False):
        site = SITE.model_copy(update={"gpu": gpu, "tasks_per_node": tasks})
        return script(Path(tiny_run.file), Job(1), site, [*words, *more], force=force, warn=said.append)

    with pytest.raises(LatxaError, match=r"a100-64g: this run does not fit: it needs .* of 63.4 GiB on stage 0; .* on 4 GPUs"):
        made("a100-64g")
    with pytest.raises(LatxaError, match=r"precision.fp8: a100-64g has no FP8"):
        made("a100-64g", "precision.fp8=tensorwise", "parallel.tp=2")
    made("a100-64g", force=True)
    made("h200")
    assert said == []
    made("a100-80g", tasks=3)  # 76 of 79.2 GiB, and 4 have to stay free
    assert len(said) == 1
    assert said[0].startswith("a100-80g: this run may not fit")


def test_a_machine_without_slurm(tiny_run, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "bash").symlink_to("/bin/bash")
    with pytest.raises(LatxaError, match="there is no sbatch on this machine"):
        launch_slurm(Path(tiny_run.file), Job(1), SITE, [f"out={tmp_path / 'out'}"])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tasks_per_node: 4\ncpus_per_task: 8\n", r"site.yaml: the key 'description' is missing \(the cluster in some words"),
        (
            "description: a\ntasks_per_node: 4\ncpus_per_task: 8\nnodes: 2\n",
            "site.yaml: there is no key 'nodes'; there are",
        ),
        (
            "description: a\ntasks_per_node: four\ncpus_per_task: 8\n",
            "site.yaml: tasks_per_node: input should be",
        ),
        ("description: a\ntasks_per_node: 4\ncpus_per_task: 8\nsbatch: [gpu]\n", "sbatch: 'gpu' is no option of sbatch"),
        (
            "description: a\ntasks_per_node: 4\ncpus_per_task: 8\nenvironment: {WANDB_API_KEY: x}\n",
            "environment: WANDB_API_KEY is a secret by its name",
        ),
        (
            "description: a\ntasks_per_node: 4\ncpus_per_task: 8\ngpu: h300\n",
            "site.yaml: gpu: h300: is not known; choose one of a100-40g",
        ),
        ("description: a\n  b: [\n", "site.yaml:2: cannot be read as YAML"),
        ("[]", "a site file is a YAML mapping"),
    ],
)
def test_site_files_that_cannot_be(text, message, tmp_path):
    (tmp_path / "site.yaml").write_text(text)
    with pytest.raises(LatxaError, match=message):
        load_site(str(tmp_path / "site.yaml"))


def test_a_setup_that_bash_cannot_read(tiny_run):
    with pytest.raises(LatxaError, match="a script that bash cannot read"):
        script(Path(tiny_run.file), Job(1), SITE.model_copy(update={"setup": ["if true"]}))


def test_what_processes_on_this_machine_find_in_their_environment():
    cores = len(os.sched_getaffinity(0))
    assert environment(cores, gpus=False)["OMP_NUM_THREADS"] == environment(2 * cores, gpus=True)["OMP_NUM_THREADS"] == "1"
    assert environment(1, gpus=True).items() - environment(1, gpus=False).items() == {*GPU_MEMORY.items()}


def test_the_script_is_clean_bash(tiny_run, tmp_path):
    """By bash -n with every option of the template in use; and it starts with its shell."""
    site = Site(**{**SITE.model_dump(), "modules": ["a"], "setup": ["true"]})
    (tmp_path / "job").write_text(script(Path(tiny_run.file), Job(1), site))
    assert (tmp_path / "job").read_text().startswith("#!/bin/bash\n")
    assert subprocess.run(["bash", "-n", tmp_path / "job"], check=False, env=os.environ).returncode == 0
