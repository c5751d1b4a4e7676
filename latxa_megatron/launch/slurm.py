"""`latxa launch slurm`: one sbatch script for a run, which starts itself again until the run is done.

srun starts the ranks themselves, one for each GPU, and they meet at the job's first node by what srun says of them
(latxa_megatron/launcher.py). torchrun is left out: it would be a second watcher below Slurm's, with a rendezvous of its own that
can fail, and between Slurm's signals and the ranks that have to save on them. What it is good for, to start ranks again in
place, a job does by being requeued, also after the loss of a node.

A job ends in one of three ways, which it reads from starts.jsonl. The run is finished, or says why it cannot work: that is the
end. Anything else (the signal before the time limit, a killed task, a lost node): `scontrol requeue`, or, where a site does not
let users do that, a new job from the same script. Starts in a row that save nothing are counted, and few.
"""

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from latxa_megatron.config import RunConfig, load_run
from latxa_megatron.errors import LatxaError
from latxa_megatron.files import write_atomically
from latxa_megatron.launch.container import in_container
from latxa_megatron.launch.local import GPU_MEMORY
from latxa_megatron.launch.site import Site

Warn = Callable[[str], None]

STARTS = 3
"""Starts in a row without a new checkpoint, after which a job is not requeued."""

_TIME = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?")


@dataclass(frozen=True)
class Job:
    """What Slurm is asked for. Raises LatxaError for what cannot stand in an #SBATCH line."""

    nodes: int
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    time: str | None = None
    container: Path | None = None

    def __post_init__(self) -> None:
        for option in ("partition", "account", "qos"):
            value = getattr(self, option)
            if value is not None and not re.fullmatch(r"[^\s#'\"]+", value):
                raise LatxaError(f"--{option} '{value}': is one word")
        if self.time is not None:
            seconds(self.time)


def seconds(time: str) -> int:
    """Of a time limit as sbatch reads it; 0 without one. Raises LatxaError for what is none."""
    if time.upper() in ("INFINITE", "UNLIMITED"):
        return 0
    found = _TIME.fullmatch(time)
    if found is None:
        raise LatxaError(f"--time {time}: is minutes, MM:SS, HH:MM:SS, D-HH, D-HH:MM or D-HH:MM:SS")
    days, *parts = (None if part is None else int(part) for part in found.groups())
    first, second, third = (part or 0 for part in parts)
    if days is not None or parts[2] is not None:  # hours come first
        return 86400 * (days or 0) + 3600 * first + 60 * second + third
    return 60 * first + second


def launch_slurm(
    run_file: Path, job: Job, site: Site, overrides: list[str] | None = None, *, force: bool = False, warn: Warn = print
) -> tuple[str, Path]:
    """Check the run, write its script to OUT/slurm/job.sbatch and submit it; the number of the job and OUT/slurm, for its log.

    Raises LatxaError for a run that cannot work on so many nodes, and with what sbatch says where it refuses.
    """
    text = script(run_file, job, site, overrides, force=force, warn=warn)
    if shutil.which("sbatch") is None:
        raise LatxaError("there is no sbatch on this machine; go to a login node, or see the script with --dry-run")
    if job.container and job.container.suffix == ".sqsh" and "--container-image" not in _said_by("srun", "--help"):
        raise LatxaError(f"--container {job.container}: srun has no --container-image here, as pyxis gives it; use a .sif image")
    path = _script_path(load_run(run_file, overrides))
    path.parent.mkdir(parents=True, exist_ok=True)
    (path.parent / "idle").unlink(missing_ok=True)
    write_atomically(path, text)
    done = subprocess.run(["sbatch", "--parsable", str(path)], check=False, capture_output=True, text=True)
    if done.returncode:
        raise LatxaError(f"{path}: sbatch refuses it ({_one_line(done.stderr)})")
    return done.stdout.strip().partition(";")[0], path.parent


def script(
    run_file: Path, job: Job, site: Site, overrides: list[str] | None = None, *, force: bool = False, warn: Warn = print
) -> str:
    """The sbatch script of a run; with force it starts also where the GPUs have no room for it by its plan.

    Raises LatxaError for a run that cannot work on so many nodes, or has no room on the site's GPUs, and for a job that would be
    asked to stop before it starts. warn: is told of a run that may have too little room.
    """
    from latxa_megatron.plan.room import check_room_on
    from latxa_megatron.train.check import check_run

    run, ranks = load_run(run_file, overrides), job.nodes * site.tasks_per_node
    check_run(run, ranks)
    if site.gpu and not force:
        check_room_on(site.gpu, run, ranks, warn)
    limit = job.time or site.time
    if limit and 0 < seconds(limit) <= site.stop_before:
        raise LatxaError(
            f"--time {limit}: is {seconds(limit)} s, and a job is asked to stop {site.stop_before} s before its end; take more, "
            "or a smaller stop_before of the site"
        )
    train = ["train", *(["--force"] if force else []), str(run_file.absolute()), *(overrides or [])]
    text = _rendered(run, run_file, job, site, ["-m", "latxa_megatron", *train])
    found = subprocess.run(["bash", "-n"], input=text, check=False, capture_output=True, text=True)
    if found.returncode:
        raise LatxaError(f"setup: the site's lines make a script that bash cannot read ({_one_line(found.stderr)})")
    return text


def _rendered(run: RunConfig, run_file: Path, job: Job, site: Site, train: list[str]) -> str:
    import jinja2

    environment = jinja2.Environment(
        trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined, keep_trailing_newline=True
    )
    template = environment.from_string((Path(__file__).parent / "job.sbatch.jinja").read_text(encoding="utf-8"))
    if job.container:
        options, command = in_container(job.container, run, run_file, site, ["python3", *train])
    else:
        options, command = [], [sys.executable, *train]
    variables = {"OMP_NUM_THREADS": str(site.cpus_per_task), **GPU_MEMORY, **site.environment}
    return template.render(
        name=run.name,
        nodes=job.nodes,
        site=site,
        sbatch=_options(run, job, site),
        out=shlex.quote(str(run.out.absolute())),
        script=shlex.quote(str(_script_path(run))),
        environment=[(name, shlex.quote(value)) for name, value in variables.items()],
        command=[*map(shlex.quote, options), shlex.join(command)],
        starts=STARTS,
    )


def _options(run: RunConfig, job: Job, site: Site) -> list[str]:
    out = run.out.absolute()
    asked = {
        "job-name": f"latxa-{re.sub(r'[^A-Za-z0-9._-]', '_', run.name)}",
        "partition": job.partition or site.partition,
        "account": job.account,
        "qos": job.qos,
        "time": job.time or site.time,
        "nodes": job.nodes,
        "ntasks-per-node": site.tasks_per_node,
        "cpus-per-task": site.cpus_per_task,
    }
    own = {
        "chdir": _quoted(Path.cwd()),
        "output": _quoted(Path(str(out).replace("%", "%%")) / "slurm" / "%j.log"),
        "open-mode": "append",
        "signal": f"USR1@{site.stop_before}",
    }
    given = [f"--{name}={value}" for name, value in asked.items() if value is not None]
    return [*given, *site.sbatch, *(f"--{name}={value}" for name, value in own.items()), "--requeue"]


def _quoted(path: Path) -> str:
    """A path in an #SBATCH line, whose quotes sbatch reads as a shell does."""
    text = str(path)
    if "\n" in text or '"' in text:
        raise LatxaError(f"{text!r}: Slurm's scripts cannot name a path with a quote or a line break")
    return f'"{text}"' if re.search(r"[\s#']", text) else text


def _script_path(run: RunConfig) -> Path:
    return run.out.absolute() / "slurm" / "job.sbatch"


def _said_by(*command: str) -> str:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    return done.stdout + done.stderr


def _one_line(text: str) -> str:
    return " ".join(text.split())[:300]
