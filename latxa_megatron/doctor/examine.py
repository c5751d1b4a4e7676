"""All looks in their order, on one machine or on each node of a job, and what they come to."""

import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from latxa_megatron import launcher
from latxa_megatron.config import RunConfig
from latxa_megatron.doctor import disk, gpus, host, links, versions
from latxa_megatron.doctor.finding import Finding, State, look, worst
from latxa_megatron.doctor.nvidia_smi import Machine, Run, machine, nvidia_smi
from latxa_megatron.errors import LatxaError

_ON_CPU = 2
"""Processes that measure bandwidth on a machine without a GPU: enough to see gloo work."""


@dataclass
class Report:
    """A line for each thing that was found, with the nodes where it is so, and the bandwidth where it was measured."""

    nodes: list[str]
    lines: list[tuple[Finding, list[str]]] = field(default_factory=list)
    measured: dict[str, Any] | None = None

    @property
    def state(self) -> State:
        return worst(finding for finding, _ in self.lines)

    def as_json(self) -> dict[str, Any]:
        keys = ("check", "state", "found", "mend")
        lines = [{**{key: getattr(finding, key) for key in keys}, "nodes": nodes} for finding, nodes in self.lines]
        return {"state": self.state, "nodes": self.nodes, "findings": lines, "bandwidth": self.measured}


def examine(run: RunConfig | None = None, out: Path | None = None, *, bandwidth: bool = False) -> Report | None:
    """Look at this machine or, under a launcher, at each node of the job and at what joins them; None on all ranks but 0.

    run: its checkpoints and its output's disk are looked at, too; out: another directory whose disk is. bandwidth: send
    messages between the launcher's processes, or between one for each GPU of this machine (two without a GPU).
    """
    mine = _of_this_node(run, out) if launcher.local_rank() == 0 else []
    if launcher.processes() > 1:
        return _of_the_job(mine, bandwidth)
    report = Report([socket.gethostname()])
    if bandwidth:
        mine += look("bandwidth", _between_own_processes, report)
    report.lines = [(finding, report.nodes) for finding in mine]
    return report


def _of_this_node(run: RunConfig | None, out: Path | None, ask: Run = nvidia_smi) -> list[Finding]:
    found: list[Machine | None] = []

    def find_gpus() -> list[Finding]:
        found.append(machine(ask))
        return [] if found[0] else [Finding("GPUs", "ok", "none, and no driver: training runs on the CPU")]

    findings = look("GPUs", find_gpus)
    with_gpus = found[0] if found else None
    if with_gpus:
        findings += look("GPUs", gpus.look_at_gpus, with_gpus)
        findings += look("CUDA driver", versions.look_at_driver, with_gpus.driver, with_gpus.cuda)
        findings += look("GPU to GPU", lambda: links.look_at_nvlink(links.topology(ask)))
    findings = look("versions", versions.look_at_versions, bool(with_gpus)) + findings
    findings += look("C++ core", versions.look_at_core)
    findings += look("shared memory", host.look_at_shared_memory)
    findings += look("limits", host.look_at_limits)
    if launcher.processes() == 1:
        findings += look("InfiniBand", links.look_at_infiniband, 1)
    if run:
        findings += look("run file", _look_at_run, run)
        findings += look("disk space", disk.look_at_space, run)
    if where := out or (run and run.out):
        findings += look("disk speed", disk.look_at_speed, where, disk.SIZE)
    return findings


def _look_at_run(run: RunConfig) -> list[Finding]:
    """Whether the run could start: on the launcher's processes, or on the fewest that its layout needs."""
    from latxa_megatron.train.check import check_run

    p = run.parallel
    processes = launcher.processes() if launcher.processes() > 1 else p.tp * p.cp * p.pp
    try:
        check_run(run, processes)
    except LatxaError as error:
        return [Finding("run file", "fail", str(error), "mend what it names; `latxa train` would refuse the run, too")]
    return [Finding("run file", "ok", f"{run.name} can start on {processes} process{'es' if processes > 1 else ''}")]


def _of_the_job(mine: list[Finding], bandwidth: bool) -> Report | None:
    """Rank 0's report of all nodes; a node that does not answer is a finding of those that do."""
    from latxa_megatron.doctor import together

    report, others = Report([socket.gethostname()]), list[Finding]()

    def meet() -> list[Finding]:
        with together.joined() as nodes:
            report.nodes = list(dict.fromkeys(nodes))
            if launcher.local_rank() == 0:
                mine.extend(look("InfiniBand", links.look_at_infiniband, len(report.nodes)))
            report.lines = _folded(together.gather(mine, nodes))
            others.extend(together.skew(nodes))
            if bandwidth:
                others.extend(look("bandwidth", _measured, together.speed(nodes), report))
        return []

    failed = look("meeting of the nodes", meet)
    if not report.lines:  # the nodes did not meet, and each one says what it knows
        report.lines = [(finding, report.nodes) for finding in mine]
    report.lines += [(finding, report.nodes) for finding in others + failed]
    return report if launcher.rank() == 0 else None


def _folded(found: list[tuple[str, Finding]]) -> list[tuple[Finding, list[str]]]:
    """Nodes of which the same is to be said share a line; lines of a check stand together, in the order of the looks."""
    same: dict[object, list[tuple[str, Finding]]] = {}
    for node, finding in found:
        same.setdefault(finding if finding.measure is None else (finding.check, finding.state), []).append((node, finding))
    lines = [(min((f for _, f in alike), key=lambda f: f.measure or 0), [node for node, _ in alike]) for alike in same.values()]
    checks = list(dict.fromkeys(finding.check for _, finding in found))
    return sorted(lines, key=lambda line: checks.index(line[0].check))


def _between_own_processes(report: Report) -> list[Finding]:
    import torch

    from latxa_megatron.doctor import together

    processes = torch.cuda.device_count() if torch.cuda.is_available() else _ON_CPU
    return _measured(together.start(processes), report)


def _measured(result: Any, report: Report) -> list[Finding]:
    from latxa_megatron.doctor.speed import look_at_bandwidth

    report.measured = result.as_json()
    return look_at_bandwidth(result, _fewest_nvlinks() if result.device != "cpu" else 0, links.port_rate())


def _fewest_nvlinks(ask: Run = nvidia_smi) -> int:
    """NVLinks between the two GPUs of this node that have the fewest; 0 where nvidia-smi does not tell: that has its own line."""
    try:
        matrix = links.topology(ask)
    except (LatxaError, OSError):
        return 0
    pairs = [links.nvlinks(kind) for i, row in enumerate(matrix) for j, kind in enumerate(row) if i != j]
    return min(pairs, default=0)
