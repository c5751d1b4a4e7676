"""`latxa launch`: a run on several processes, here or on a cluster, and how it does."""

from pathlib import Path
from typing import Annotated

import typer

from latxa_megatron.cli.terminal import OPTIONS, console

launch = typer.Typer(help="Start training on several processes, here or on a cluster.", **OPTIONS)

RunFile = Annotated[Path, typer.Argument(metavar="RUN.yaml", help="Run file; `latxa recipes list` shows those that ship.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[SECTION.KEY=VALUE]...", help="Values to change, as in optimizer.lr=1e-5."),
]

Force = Annotated[bool, typer.Option("--force", help="Start also what the GPUs have no room for by its plan.")]


@launch.command("local")
def launch_local(
    run_file: RunFile,
    nproc: Annotated[int, typer.Option(min=1, help="Processes to start; one for each GPU, where there are any.")],
    overrides: Overrides = None,
    nodes: Annotated[int, typer.Option(min=1, help="Machines, on each of which this is started.")] = 1,
    node_rank: Annotated[int, typer.Option(min=0, help="This machine's number among them.")] = 0,
    first: Annotated[str | None, typer.Option(metavar="HOST:PORT", help="Where number 0 is found by the others.")] = None,
    force: Force = False,
) -> None:
    """Run `latxa train RUN.yaml` under torchrun on this machine, alone or with others."""
    from latxa_megatron.launch.local import Among
    from latxa_megatron.launch.local import launch_local as start

    start(run_file, nproc, overrides, Among(nodes, node_rank, first), force=force)


@launch.command("slurm")
def launch_slurm(
    run_file: RunFile,
    nodes: Annotated[int, typer.Option(min=1, help="Nodes; the site says how many GPUs each has.")],
    overrides: Overrides = None,
    site: Annotated[str, typer.Option(metavar="NAME|FILE", help="A site that ships, or a YAML file.")] = "generic",
    partition: Annotated[str | None, typer.Option(help="Instead of the site's.")] = None,
    account: Annotated[str | None, typer.Option(help="Whom Slurm charges.")] = None,
    qos: Annotated[str | None, typer.Option(help="Quality of service, where the site has several.")] = None,
    time: Annotated[
        str | None, typer.Option(metavar="HH:MM:SS", help="Time limit of a job, as sbatch reads it; the run goes on in the next.")
    ] = None,
    container: Annotated[Path | None, typer.Option(metavar="IMAGE", help=".sqsh (pyxis) or .sif (Apptainer).")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the script and submit nothing.")] = False,
    force: Force = False,
) -> None:
    """Submit a run to Slurm, as a job that starts itself again until the run is done."""
    from latxa_megatron.launch import slurm
    from latxa_megatron.launch.site import load_site

    def warn(says: str) -> None:
        typer.echo(f"warning: {says}", err=True)

    job = slurm.Job(nodes, partition, account, qos, time, container)
    if dry_run:
        text = slurm.script(run_file, job, load_site(site), overrides, force=force, warn=warn)
        console.print(text, end="", markup=False, highlight=False, soft_wrap=True)
        return
    number, directory = slurm.launch_slurm(run_file, job, load_site(site), overrides, force=force, warn=warn)
    console.print(f"job {number}; its log will be {directory / f'{number}.log'}", soft_wrap=True, highlight=False)
    console.print(f"`latxa launch status {directory.parent}` says how it does", soft_wrap=True, highlight=False, markup=False)


@launch.command("k8s")
def launch_k8s(
    run_file: RunFile,
    nodes: Annotated[int, typer.Option(min=1, help="Pods, one for each node.")],
    gpus: Annotated[int, typer.Option(min=1, help="GPUs of each.")],
    image: Annotated[str, typer.Option(metavar="IMAGE", help="Container image with latxa-megatron in it.")],
    claim: Annotated[list[str], typer.Option(metavar="NAME:/PATH", help="Persistent volume claim, and its place; repeatable.")],
    overrides: Overrides = None,
    namespace: Annotated[str | None, typer.Option(help="Instead of kubectl's.")] = None,
    force: Force = False,
) -> None:
    """Print a JobSet manifest of a run, for `kubectl apply -f -`."""
    import yaml

    from latxa_megatron.launch import kubernetes

    claims = dict(kubernetes.claim(each) for each in claim)
    pods = kubernetes.Pods(nodes, gpus, image, claims, namespace)
    made = kubernetes.manifest(run_file, pods, overrides, force=force)
    text = yaml.safe_dump(made, sort_keys=False, width=128)
    console.print(text, end="", markup=False, highlight=False, soft_wrap=True)


@launch.command("status")
def launch_status(
    run: Annotated[Path, typer.Argument(metavar="RUN.yaml|OUT", help="Run file, or the directory that a run writes to.")],
    overrides: Overrides = None,
) -> None:
    """Say how a run does, from its files alone: progress, speed, time left, restarts, faults."""
    from datetime import datetime

    from latxa_megatron.launch.status import describe, status

    now = datetime.now()
    for line in describe(status(run, overrides, now.timestamp()), now):
        console.print(line, soft_wrap=True, highlight=False, markup=False)
