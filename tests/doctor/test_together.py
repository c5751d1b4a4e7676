"""Several processes: bandwidth as nccl-tests counts it, clocks against each other, one report of all nodes."""

import json
import os
import re
import subprocess
import sys
from datetime import timedelta
from itertools import combinations, pairwise
from pathlib import Path

import pytest
import torch

from latxa_megatron.cli.main import main
from latxa_megatron.doctor import bandwidth, disk, together
from latxa_megatron.doctor.bandwidth import SHARE, Link, Measured, Timed, rounds
from latxa_megatron.doctor.clocks import Skew, look_at_skew
from latxa_megatron.doctor.examine import _fewest_nvlinks, examine
from latxa_megatron.doctor.finding import Finding
from latxa_megatron.doctor.speed import look_at_bandwidth
from latxa_megatron.errors import LatxaError
from tests.doctor.node_worker import AHEAD
from tests.doctor.smi import fake, matrix
from tests.tiny import write_llama


@pytest.fixture(scope="module")
def run_file(tmp_path_factory):
    root = tmp_path_factory.mktemp("job")
    write_llama(root / "hf")
    (root / "run.yaml").write_text(f"name: a\nout: {root}/out\nmodel: {{hf: {root}/hf}}\ndata: {{store: s, plan: p}}\n")
    return root / "run.yaml"


def tasks(started: int, *arguments: str) -> list[tuple[int, str, str]]:
    """What srun would start, of three tasks: 0 and 1 on the first node, 2 on the second. Status, output, errors of each."""
    worker, job = Path(__file__).with_name("node_worker.py"), str(os.getpid())
    processes = [
        subprocess.Popen(
            [sys.executable, str(worker), "doctor", *arguments],
            env={
                **os.environ,
                "PYTHONPATH": str(Path(__file__).parents[2]),
                "SLURM_PROCID": str(rank),
                "SLURM_LOCALID": str(rank % 2),
                "SLURM_STEP_NUM_TASKS": "3",
                "SLURM_STEP_NODELIST": "localhost",
                "SLURM_JOB_ID": job,
                "SLURM_STEP_ID": str(started),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(started)
    ]
    said = [process.communicate() for process in processes]
    return [(process.returncode, *words) for process, words in zip(processes, said, strict=True)]


@pytest.fixture(scope="module")
def report(run_file) -> dict:
    """Three tasks on two nodes: the first prints, and its status is the job's."""
    (status, printed, _), *others = tasks(3, "--gpus", "--json", str(run_file))
    assert status == 1
    assert [(status, printed) for status, printed, _ in others] == [(0, ""), (0, "")]
    return json.loads(printed)


def test_a_fault_of_one_node_is_that_nodes(report):
    lines = {(f["check"], f["state"]): f["nodes"] for f in report["findings"]}
    both = ["one.example", "two.example"]
    assert report["nodes"] == both
    assert (lines["C++ core", "ok"], lines["run file", "fail"], lines["disk speed", "ok"]) == (both, both, both)
    assert (lines["disk space", "ok"], lines["disk space", "fail"]) == (both[:1], both[1:])


def test_a_clock_that_is_ahead_is_measured(report):
    (skew,) = (f for f in report["findings"] if f["check"] == "clock skew")
    milliseconds, accuracy = re.match(r"at most (\S+) ms \(two.example\), measured to (\S+) ms", skew["found"]).groups()
    assert skew["state"] == "warn"
    assert abs(float(milliseconds) - 1000 * AHEAD) <= float(accuracy) + 5  # three digits of milliseconds


def test_bandwidth_is_counted_as_nccl_tests_does(report):
    measured = report["bandwidth"]
    assert (measured["backend"], measured["nodes"]) == ("gloo", ["one.example", "one.example", "two.example"])
    assert [(one["operation"], one["bytes"]) for one in measured["collectives"]] == [
        ("all_reduce", 1020),  # 85 floats for each of three ranks
        ("all_reduce", 1048572),
        ("all_gather", 1020),
        ("all_gather", 1048572),
    ]
    for one in measured["collectives"]:
        share = {"all_reduce": 4 / 3, "all_gather": 2 / 3}[one["operation"]]
        assert one["algbw_gb_s"] == pytest.approx(one["bytes"] / one["seconds"] / 1e9)
        assert one["busbw_gb_s"] == pytest.approx(one["algbw_gb_s"] * share)
    assert [(link["ranks"], link["gb_s"] > 0) for link in measured["links"]] == [([0, 1], True), ([0, 2], True)]
    assert {"p2p in a node", "p2p between nodes"} <= {f["check"] for f in report["findings"]}


def test_a_node_that_does_not_come_is_a_line():
    """Two of three tasks are there: each says what it knows, and that it waited for the third."""
    (status, printed, errors), _ = tasks(2, "alone")
    assert status == 1
    assert "fail  meeting of the nodes" in printed
    assert "ok    C++ core" in printed
    assert "Traceback" not in printed + errors


def test_processes_of_its_own():
    report = examine(bandwidth=True)
    assert "GLOO_SOCKET_IFNAME" not in os.environ  # or later process groups of this process would stay on loopback
    assert report.measured["nodes"] == [*report.nodes, *report.nodes]
    assert {"all-reduce", "all-gather", "p2p in a node"} <= {finding.check for finding, _ in report.lines}


def test_a_process_that_fails_is_a_line(monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "nosuch0")
    (failed,) = [finding for finding, _ in examine(bandwidth=True).lines if finding.state == "fail"]
    assert (failed.check, "nosuch0" in failed.found) == ("bandwidth", True)


def test_nodes_of_one_name():
    """As containers may be; ranks go node by node, or around the nodes."""
    assert together.names([("a", 0), ("a", 1), ("b", 0), ("b", 1)]) == ["a", "a", "b", "b"]
    assert together.names([("a", 0), ("a", 1), ("a", 0), ("a", 1)]) == ["a", "a", "a#2", "a#2"]
    assert together.names([("a", 0), ("a", 0), ("a", 1), ("a", 1)]) == ["a", "a#2", "a", "a#2"]


def measured(*links: Link, device: str = "NVIDIA H200") -> Measured:
    timed = [Timed("all_reduce", size, 1e-4, 1.0, 1.5 * size / (256 << 20)) for size in (1024, 256 << 20)]
    return Measured("nccl", device, ["a", "a", "b", "b"], timed, list(links))


def test_a_link_that_is_far_below_what_it_can_do():
    """NV18 is 450 GB/s each way; 400 Gb/s InfiniBand 50."""
    fast = measured(Link((0, 1), 1 << 28, 380.0), Link((1, 2), 1 << 28, 48.0), Link((2, 3), 1 << 28, 390.0))
    assert [(f.check, f.state) for f in look_at_bandwidth(fast, 18, 50.0)] == [
        ("all-reduce", "ok"),
        ("p2p in a node", "ok"),
        ("p2p between nodes", "ok"),
    ]
    slow = measured(Link((0, 1), 1 << 28, 380.0), Link((1, 2), 1 << 28, 2.1), Link((2, 3), 1 << 28, 31.0))
    reduced, inside, between = look_at_bandwidth(slow, 18, 50.0)
    assert reduced.found.startswith("1.5 GB/s bus bandwidth at 256 MiB, 100 us for 1024 bytes; 4 processes")
    assert (inside.state, inside.found) == (
        "warn",
        "31 GB/s each way at 256 MiB between ranks 2 and 3, the slowest of 2; the link can do 450",
    )
    assert (between.state, between.found.endswith("between ranks 1 and 2, the slowest of 1; the link can do 50")) == (
        "warn",
        True,
    )
    assert [f.state for f in look_at_bandwidth(slow, 0, 0.0)] == ["ok"] * 3  # PCIe and TCP: nothing is promised


@pytest.mark.parametrize("sizes", [[2], [3], [8], [8, 8], [8, 8, 8], [4, 1], [3, 2]])
@pytest.mark.parametrize("around", [False, True])
def test_each_pair_of_a_node_and_each_port_between_nodes(sizes, around):
    """Ranks node by node, or dealt around the nodes. Between nodes, rank i of each meets rank i of the next."""
    nodes = [str(node) for node, size in enumerate(sizes) for _ in range(size)]
    if around:
        nodes = [str(node) for i in range(max(sizes)) for node, size in enumerate(sizes) if i < size]
    met = [pair for pairs in rounds(nodes) for pair in pairs]
    for pairs in rounds(nodes):
        assert len({rank for pair in pairs for rank in pair}) == 2 * len(pairs)
    of_node = [[rank for rank, node in enumerate(nodes) if node == str(k)] for k in range(len(sizes))]
    expected = [pair for ranks in of_node for pair in combinations(ranks, 2)]
    expected += [pair for a, b in pairwise(of_node) for pair in zip(a, b, strict=False)]
    assert sorted(map(sorted, met)) == sorted(map(sorted, expected))
    assert len(rounds(["a"] * 8)) == 7


class Work:
    """A message that NCCL is done with after so many questions."""

    def __init__(self, questions: int) -> None:
        self.questions, self.waited = questions, False

    def is_completed(self) -> bool:
        self.questions -= 1
        return self.questions < 0

    def wait(self) -> None:
        assert self.questions < 0  # it would sleep
        self.waited = True


def test_nccl_is_polled_and_not_waited_for_for_ever(monkeypatch):
    done = Work(3)
    bandwidth._wait([done], torch.device("cuda"))
    assert done.waited
    monkeypatch.setattr(bandwidth, "LIMIT", timedelta(seconds=0.01))
    with pytest.raises(LatxaError, match="no answer from another rank"):
        bandwidth._wait([Work(10**9)], torch.device("cuda"))


def test_nodes_that_see_no_gpu_beside_others(monkeypatch):
    def tell(found: list[int], mine: int) -> None:
        assert mine == 0
        found[:] = [1, 1, 0, 0]

    monkeypatch.setattr(together.dist, "all_gather_object", tell)
    with pytest.raises(LatxaError, match="ranks on b see no GPU"):
        together.speed(["a", "a", "b", "b"])


def test_fewest_nvlinks():
    """0 where the driver does not tell: what was measured stands in the report nonetheless."""

    def silent(*_: str) -> str:
        raise LatxaError("nvidia-smi ended with status 6")

    assert _fewest_nvlinks(fake("", matrix("X NV18 NV12", "NV18 X NV18", "NV12 NV18 X"))) == 12
    assert _fewest_nvlinks(silent) == 0


def test_bus_bandwidth_of_eight():
    assert (SHARE["all_reduce"](8), SHARE["all_gather"](8)) == (1.75, 0.875)


@pytest.mark.parametrize(("seconds", "state"), [(0.2, "ok"), (-2.0, "warn"), (400.0, "fail")])
def test_the_farthest_clock_counts(seconds, state):
    (found,) = look_at_skew([Skew("b", 0.01, 1e-5), Skew("c", seconds, 2e-5)])
    assert (found.state, "(c)" in found.found, "measured to 0.02 ms" in found.found) == (state, True, True)


@pytest.fixture
def latxa(monkeypatch, capsys):
    def run(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["latxa", "doctor", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        return int(end.value.code or 0), capsys.readouterr().out

    return run


def test_the_command(latxa, monkeypatch, run_file, tmp_path):
    monkeypatch.setattr(disk, "SIZE", 16 << 20)
    status, printed = latxa()
    assert (status, "fail  " in printed, "0 fail" in printed) == (0, False, True)
    status, printed = latxa(str(run_file), "--out", str(tmp_path))
    assert status == 1
    assert "fail  run file" in printed
    assert "-> mend what it names" in printed
    assert str(tmp_path) in printed.replace("\n", "").replace(" ", "")
    broken = [Finding("GPUs", "fail", "[none]", "buy [b]one[/b]")]
    monkeypatch.setattr("latxa_megatron.doctor.examine._of_this_node", lambda *_: broken)
    status, printed = latxa()
    assert (status, "[none]" in printed, "-> buy [b]one[/b]" in printed) == (1, True, True)
    assert json.loads(latxa("--json")[1])["findings"][0]["mend"] == "buy [b]one[/b]"
