"""A rank that is killed takes the others with it, without an agent above them that would."""

import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from latxa_megatron.train import peers
from latxa_megatron.train.metrics import read_metrics
from tests.train.test_srun import srun_task


@pytest.mark.parametrize(
    ("doomed", "how", "code"), [(0, "killed", -signal.SIGKILL), (1, "killed", -signal.SIGKILL), (1, "fails", 1)]
)
def test_the_others_end_with_it(doomed, how, code, tiny_run, tmp_path):
    out = tiny_run.out(f"gone {doomed} {how}")
    worker = Path(__file__).with_name("gone_worker.py")
    command = [sys.executable, worker, str(doomed), how, tiny_run.file, f"out={out}", "train.steps=4"]
    log = tmp_path / "log"
    with log.open("w") as file:
        tasks = [
            subprocess.Popen(command, env=srun_task(rank, 2, 1 + doomed + 2 * (how == "fails")), stderr=file) for rank in range(2)
        ]
        codes = [task.wait() for task in tasks]
    assert codes[doomed] == code
    assert codes[1 - doomed] == 1
    assert f"rank {doomed} is gone, and rank {1 - doomed} ends with it" in log.read_text()
    assert len(read_metrics(out)) == 1


def test_a_stranger_is_not_taken_for_a_rank(monkeypatch):
    """A scan of ports comes first, then rank 1: in threads, with the broadcast of where to meet between them."""
    told = threading.Event()
    place = []

    def broadcast(found, src):
        if place:
            found[:] = place
        else:
            place.append(found[0])
            told.set()

    monkeypatch.setattr(peers.dist, "broadcast_object_list", broadcast)
    monkeypatch.setattr(peers.dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(peers.dist, "get_rank", lambda: 0)
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    first = peers.Peers()
    meeting = threading.Thread(target=first.__enter__)
    meeting.start()
    told.wait()
    with socket.create_connection(("localhost", place[0][0])) as stranger:
        stranger.sendall(b"GET / HTTP/1.1\r\n\r\nab")  # as long as what a rank says
        assert stranger.recv(1) == b""  # shown the door
    monkeypatch.setattr(peers.dist, "get_rank", lambda: 1)
    with peers.Peers():
        meeting.join()
        assert list(first._others.values()) == [1]
    first.__exit__(None)


def test_a_rank_that_is_not_admitted_goes_on_without(monkeypatch, capsys):
    """Rank 0 is out of files, say, with the connection in its queue: that is no sign that it is gone."""
    monkeypatch.setattr(peers.dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(peers.dist, "get_rank", lambda: 1)
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    door = socket.create_server(("", 0))
    monkeypatch.setattr(
        peers.dist, "broadcast_object_list", lambda found, src: found.__setitem__(0, (door.getsockname()[1], b""))
    )
    closing = threading.Timer(0.5, door.close)
    closing.start()
    with peers.Peers() as rank:
        assert not rank._others
    closing.join()
    assert "rank 1: no connection with rank 0" in capsys.readouterr().err
