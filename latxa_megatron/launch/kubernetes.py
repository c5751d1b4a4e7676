"""`latxa launch k8s`: a manifest for Kubernetes with JobSet, which Kubeflow Trainer brings along: one pod for each node.

The pods meet at the first one under the name that JobSet gives it, and `latxa launch local` starts the ranks in each. Where a pod
fails or is evicted, JobSet starts all of them again, and the run goes on from its newest whole checkpoint.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latxa_megatron.config import load_run
from latxa_megatron.errors import LatxaError
from latxa_megatron.launch.container import mounts

API = "jobset.x-k8s.io/v1alpha2"
PORT = 29500
RESTARTS = 10
"""Starts after the first one that JobSet makes; it counts those after an eviction, too."""
GRACE = 600
"""Seconds between SIGTERM and SIGKILL, as of an eviction: for the step under way and its checkpoint."""


@dataclass(frozen=True)
class Pods:
    """What Kubernetes is asked for. gpus: of each node. claims: where each persistent volume claim is mounted, by its name."""

    nodes: int
    gpus: int
    image: str
    claims: dict[str, Path]
    namespace: str | None = None


def claim(text: str) -> tuple[str, Path]:
    """NAME:/PATH. Raises LatxaError for what is none."""
    name, _, path = text.partition(":")
    if not re.fullmatch(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?", name) or not Path(path).is_absolute():
        raise LatxaError(f"--claim {text}: has the form NAME:/PATH, of a persistent volume claim and where the pods see it")
    return name, Path(path)


def manifest(run_file: Path, pods: Pods, overrides: list[str] | None = None, *, force: bool = False) -> dict[str, Any]:
    """The JobSet of a run; with force it starts also where the GPUs have no room for it by its plan.

    Raises LatxaError for a run that cannot work on so many GPUs, or has files outside of all claims.
    """
    from latxa_megatron.train.check import check_run

    run = load_run(run_file, overrides)
    check_run(run, pods.nodes * pods.gpus)
    for place in map(Path, mounts(run, run_file, [])):
        if not any(place.is_relative_to(path) for path in pods.claims.values()):
            raise LatxaError(f"--claim: {place}, which the run needs, is in none of the claims")
    name = "latxa-" + re.sub(r"[^a-z0-9]+", "-", run.name.lower()).strip("-")[:30].strip("-")
    first = f"{name}-node-0-0.{name}:{PORT}"  # JobSet's host name of the first pod of the first job of `node`
    train = ["python3", "-m", "latxa_megatron", "launch", "local", str(run_file.absolute()), "--nproc", str(pods.gpus)]
    meeting = ["--nodes", str(pods.nodes), "--node-rank", "$(NODE_RANK)", "--first", first, *(["--force"] if force else [])]
    index = {"fieldPath": "metadata.annotations['batch.kubernetes.io/job-completion-index']"}
    container = {
        "name": "train",
        "image": pods.image,
        "workingDir": str(Path.cwd()),
        "command": [*train, *meeting, *(_literal(override) for override in overrides or [])],
        "env": [{"name": "NODE_RANK", "valueFrom": {"fieldRef": index}}],
        "resources": {"limits": {"nvidia.com/gpu": pods.gpus}},
        "volumeMounts": [
            {"name": "shm", "mountPath": "/dev/shm"},
            *({"name": f"claim-{n}", "mountPath": str(path)} for n, path in enumerate(pods.claims.values())),
        ],
    }
    pod = {
        "restartPolicy": "Never",  # alone, a rank cannot join the others again
        "terminationGracePeriodSeconds": GRACE,
        "containers": [container],
        "volumes": [
            {"name": "shm", "emptyDir": {"medium": "Memory"}},  # NCCL's; the default of 64 MB is too small
            *({"name": f"claim-{n}", "persistentVolumeClaim": {"claimName": each}} for n, each in enumerate(pods.claims)),
        ],
    }
    size = {"parallelism": pods.nodes, "completions": pods.nodes, "completionMode": "Indexed", "backoffLimit": 0}
    node = {"name": "node", "replicas": 1, "template": {"spec": {**size, "template": {"spec": pod}}}}
    return {
        "apiVersion": API,
        "kind": "JobSet",
        "metadata": {"name": name, **({"namespace": pods.namespace} if pods.namespace else {})},
        "spec": {"failurePolicy": {"maxRestarts": RESTARTS}, "replicatedJobs": [node]},
    }


def _literal(word: str) -> str:
    """A word of a container's command that Kubernetes leaves as it is."""
    return word.replace("$(", "$$(")
