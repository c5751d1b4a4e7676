"""A Slurm of one login node and two compute nodes, which are network namespaces of this machine. Debian: slurm-wlm and munge."""

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.launch.hosts import Hosts

NODES = ["node1", "node2"]
LOGIN = "login"

_CONFIGURATION = """
ClusterName=tests
SlurmctldHost={login}({login_address})
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={root}/munge.socket,cred_expire=5
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/%n
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/%n.pid
SlurmctldLogFile={root}/slurmctld.log
SlurmdLogFile={root}/%n.log
MailProg=/bin/true
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1,bf_interval=1
KillWait=10
{nodes}
PartitionName=main Nodes=ALL Default=YES State=UP
"""


class Cluster:
    """run() is a command on the login node; what it says, without a status that is not 0."""

    def __init__(self, hosts: Hosts, root: Path) -> None:
        self._hosts, self.root = hosts, root
        self.environment = {**os.environ, "SLURM_CONF": str(root / "slurm.conf"), "COLUMNS": "200"}

    def run(self, *command: object) -> str:
        at = self._hosts.command(LOGIN, *command)
        done = subprocess.run(at, check=False, env=self.environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def job(self, number: str) -> dict[str, str]:
        """What `scontrol show job` says."""
        words = self.run("scontrol", "--oneliner", "show", "job", number).split()
        return dict(word.partition("=")[::2] for word in words)

    def start(self, host: str, *command: object) -> subprocess.Popen:
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}  # they have log files
        return subprocess.Popen(self._hosts.command(host, *command), env=self.environment, **quiet)


@contextmanager
def cluster(hosts: Hosts, root: Path) -> Iterator[Cluster]:
    """A cluster whose nodes are idle. All of it ends with the block."""
    for name in ("state", *NODES):
        (root / name).mkdir()
    (root / "munge.key").write_bytes(os.urandom(1024))
    (root / "munge.key").chmod(0o400)
    each = [f"NodeName={name} NodeAddr={hosts.addresses[name]} CPUs=2 State=UNKNOWN" for name in NODES]
    login = {"login": LOGIN, "login_address": hosts.addresses[LOGIN]}
    (root / "slurm.conf").write_text(_CONFIGURATION.format(root=root, nodes="\n".join(each), **login))
    there = Cluster(hosts, root)
    files = {"key-file": "munge.key", "socket": "munge.socket", "pid-file": "munge.pid", "log-file": "munge.log"}
    options = [f"--{name}={root / file}" for name, file in {**files, "seed-file": "munge.seed"}.items()]
    daemons = [there.start(LOGIN, "munged", "--foreground", "--force", *options)]
    try:
        _until(lambda: (root / "munge.socket").exists(), daemons)
        daemons.append(there.start(LOGIN, "slurmctld", "-D"))
        daemons.extend(there.start(name, "slurmd", "-D", "-N", name) for name in NODES)
        _until(lambda: there.run("sinfo", "--noheader", "--format=%T").split() == ["idle"], daemons)
        yield there
    finally:
        _end(there, daemons)


def _end(there: Cluster, daemons: list[subprocess.Popen]) -> None:
    if len(daemons) > 1:
        subprocess.run(there._hosts.command(LOGIN, "scancel", "--user=root"), check=False, env=there.environment)
        _until(lambda: not there.run("squeue", "--noheader"), daemons)
    for daemon in reversed(daemons):
        daemon.terminate()
    for daemon in daemons:
        daemon.wait()


def _until(reached: Callable[[], bool], daemons: list[subprocess.Popen]) -> None:
    while not reached():
        ended = [daemon.args for daemon in daemons if daemon.poll() is not None]
        assert not ended, ended
        time.sleep(0.1)


def missing() -> str | None:
    """Why no Slurm can be started here; None where it can."""
    programs = [name for name in ("slurmctld", "slurmd", "munged") if not shutil.which(name)]
    return f"{', '.join(programs)} not found: `make slurm` installs them on Debian" if programs else None
