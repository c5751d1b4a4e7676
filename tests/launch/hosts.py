"""Hosts on one machine: network namespaces of Linux with a name and an address each, which need root."""

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NETWORK = "10.213.77"


class Hosts:
    """Names to addresses; command() is what runs a command on one of them. They share all files but /etc/hosts."""

    def __init__(self, directory: Path, names: list[str]) -> None:
        self.addresses = {name: f"{NETWORK}.{number}" for number, name in enumerate(names, 1)}
        self._file = directory / "hosts"
        self._file.write_text("127.0.0.1 localhost\n" + "".join(f"{a} {name}\n" for name, a in self.addresses.items()))

    def namespace(self, name: str) -> str:
        return f"latxa-{os.getpid()}-{name}"

    def command(self, name: str, *command: object) -> list[str]:
        own = f'hostname {name} && mount --bind {self._file} /etc/hosts && exec "$@"'
        enter = ["nsenter", f"--net=/run/netns/{self.namespace(name)}", "unshare", "--uts", "--mount"]
        return [*enter, "sh", "-c", own, "sh", *map(str, command)]


def exit_codes(tasks: list[subprocess.Popen]) -> list[int]:
    """Of tasks that need each other: where one fails, the others are ended."""
    while None in (codes := [task.poll() for task in tasks]) and not any(codes):
        time.sleep(0.1)
    for task in tasks:
        if any(codes):
            task.kill()
    return [task.wait() for task in tasks]


@contextmanager
def hosts(names: list[str]) -> Iterator[Hosts | str]:
    """Hosts that reach each other through a bridge of the first one; or the reason why this machine cannot have them."""
    with tempfile.TemporaryDirectory(prefix="latxa-hosts-") as directory:
        made = Hosts(Path(directory), names)
        try:
            if os.geteuid() or not shutil.which("ip"):
                raise OSError("network namespaces need root and iproute2")
            _connect(made)
            yield made
        except (OSError, subprocess.CalledProcessError) as error:
            yield f"no network namespaces here: {getattr(error, 'stderr', None) or error}"
        finally:
            for name in names:
                with contextlib.suppress(OSError):
                    subprocess.run(["ip", "netns", "delete", made.namespace(name)], check=False, capture_output=True)


def _connect(made: Hosts) -> None:
    first, *others = (made.namespace(name) for name in made.addresses)
    for namespace in (first, *others):
        _ip("netns", "add", namespace)
        _ip("-n", namespace, "link", "set", "lo", "up")
    _ip("-n", first, "link", "add", "bridge", "type", "bridge")
    address = list(made.addresses.values())
    for number, namespace in enumerate(others, 2):
        _ip("-n", first, "link", "add", f"to{number}", "type", "veth", "peer", "name", "eth0", "netns", namespace)
        _ip("-n", first, "link", "set", f"to{number}", "master", "bridge", "up")
        _ip("-n", namespace, "address", "add", f"{address[number - 1]}/24", "dev", "eth0")
        _ip("-n", namespace, "link", "set", "eth0", "up")
    _ip("-n", first, "address", "add", f"{address[0]}/24", "dev", "bridge")
    _ip("-n", first, "link", "set", "bridge", "up")
    subprocess.run(made.command(next(iter(made.addresses)), "true"), check=True, capture_output=True, text=True)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)
