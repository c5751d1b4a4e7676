"""A rank that is gone takes the others with it, within seconds.

Over NCCL nobody notices: an operation with a rank that was killed never ends, and a process that waits in one acts on no signal.
So every rank keeps a connection to rank 0. The kernel closes it however a process ends, and TCP's own probes notice a machine
that is down. Rank 0 tells all.
"""

import os
import resource
import secrets
import selectors
import socket
import struct
import sys
import threading
import time
import weakref
from contextlib import suppress

import torch.distributed as dist

from latxa_megatron import launcher

GRACE = 5.0
"""Seconds in which a rank may still end by itself, with an error of its own, once another is gone."""

MEETING = 60.0
"""Seconds that the ranks have to connect."""

_HELLO, _WELCOME, _GONE, _LEAVES = struct.Struct("!16si"), b"+", struct.Struct("!i"), b"."
_NOBODY = -1

_connections: weakref.WeakSet[socket.socket] = weakref.WeakSet()


def _close_in_child() -> None:
    for connection in _connections:
        connection.close()


os.register_at_fork(after_in_child=_close_in_child)  # a save's writer may outlive its rank


class Peers:
    """While the block runs, the end of one rank, or an error that leaves its block, ends all. All ranks enter it together."""

    def __init__(self) -> None:
        self._rank, self._ranks = dist.get_rank(), dist.get_world_size()
        self._others: dict[socket.socket, int] = {}
        self._over = threading.Event()

    def __enter__(self) -> "Peers":
        if self._ranks > 1:
            try:
                self._meet()
            except OSError as error:
                whom = "not all ranks" if self._rank == 0 else "rank 0"
                print(
                    f"rank {self._rank}: no connection with {whom} ({error}); ranks may wait for one that dies", file=sys.stderr
                )
            if self._others:
                threading.Thread(target=self._watch, name="peers", daemon=True).start()
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        if error is None:
            self._over.set()
        for connection in self._others:
            with suppress(OSError):
                if error is None:
                    connection.sendall(_GONE.pack(_NOBODY) if self._rank == 0 else _LEAVES)
                connection.shutdown(socket.SHUT_WR)  # without a word it means an error; the other way stays open to the watch

    def _meet(self) -> None:
        """Connect rank 0 with each other. A stranger's connection, as of a port scan, does not know the word."""
        if self._rank == 0:
            _allow_files(self._ranks)
            both = socket.has_dualstack_ipv6()
            family = socket.AF_INET6 if both else socket.AF_INET
            with socket.create_server(("", 0), family=family, dualstack_ipv6=both, backlog=self._ranks) as door:
                word = secrets.token_bytes(16)
                dist.broadcast_object_list([(door.getsockname()[1], word)], src=0)
                deadline = time.monotonic() + MEETING
                while len(self._others) < self._ranks - 1:
                    door.settimeout(max(0.1, deadline - time.monotonic()))
                    self._admit(door.accept()[0], word)
        else:
            found = [(0, b"")]
            dist.broadcast_object_list(found, src=0)
            port, word = found[0]
            connection = socket.create_connection((launcher.first_host(), port), timeout=MEETING)
            connection.sendall(_HELLO.pack(word, self._rank))
            if not _receive(connection, len(_WELCOME)):
                raise OSError("it took no more of them")
            self._keep(connection, 0)

    def _admit(self, connection: socket.socket, word: bytes) -> None:
        connection.settimeout(1.0)
        said = _receive(connection, _HELLO.size)
        if said and secrets.compare_digest(_HELLO.unpack(said)[0], word):
            self._keep(connection, _HELLO.unpack(said)[1])
            with suppress(OSError):  # where it is gone again the watch will see that
                connection.sendall(_WELCOME)
        else:
            connection.close()

    def _keep(self, connection: socket.socket, rank: int) -> None:
        connection.settimeout(None)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3)):
            if hasattr(socket, option):
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
        _connections.add(connection)
        self._others[connection] = rank

    def _watch(self) -> None:
        """Until all others have left in order, or one is gone."""
        with selectors.DefaultSelector() as selector:
            for connection, rank in self._others.items():
                selector.register(connection, selectors.EVENT_READ, rank)
            while selector.get_map() and not self._over.is_set():
                for key, _ in selector.select(timeout=1.0):
                    assert isinstance(key.fileobj, socket.socket)
                    gone = self._said(key.fileobj, key.data)
                    if gone is None:
                        selector.unregister(key.fileobj)
                    else:
                        self._end(gone)

    def _said(self, connection: socket.socket, rank: int) -> int | None:
        """Which rank is gone, by what comes from `rank`; None where that one leaves in order."""
        said = _receive(connection, len(_LEAVES) if self._rank == 0 else _GONE.size)
        if not said:
            return rank
        if self._rank == 0:
            return None
        (gone,) = _GONE.unpack(said)
        return None if gone == _NOBODY else int(gone)

    def _end(self, gone: int) -> None:
        if self._rank == 0:
            for connection, rank in self._others.items():
                if rank != gone:
                    with suppress(OSError):
                        connection.sendall(_GONE.pack(gone))
        if not self._over.wait(GRACE):
            print(f"rank {gone} is gone, and rank {self._rank} ends with it", file=sys.stderr, flush=True)
            os._exit(1)


def _allow_files(count: int) -> None:
    """So many more open files than the soft limit has, as far as the hard one goes: it is often 1024, and ranks can be more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY:
        wanted = soft + count if hard == resource.RLIM_INFINITY else min(soft + count, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _receive(connection: socket.socket, size: int) -> bytes:
    """So many bytes; none where the other side has ended."""
    found = b""
    while len(found) < size:
        try:
            more = connection.recv(size - len(found))
        except OSError:
            more = b""
        if not more:
            return b""
        found += more
    return found
