import pytest

from tests.launch.cluster import LOGIN, NODES, cluster, missing
from tests.launch.hosts import hosts
from tests.train.conftest import TinyRun


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory) -> TinyRun:
    return TinyRun(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def two_hosts():
    """node1 and node2, and login; skipped where this machine cannot have them."""
    with hosts([LOGIN, *NODES]) as found:
        if isinstance(found, str):
            pytest.skip(found)
        yield found


@pytest.fixture(scope="session")
def slurm(two_hosts, tmp_path_factory):
    """A Slurm of these hosts; skipped where it is not installed."""
    if reason := missing():
        pytest.skip(reason)
    with cluster(two_hosts, tmp_path_factory.mktemp("slurm")) as found:
        yield found


@pytest.fixture(scope="session")
def whole(tiny_run, two_hosts):
    """The directory of DISTURBED's run that nothing disturbed, on two hosts that know of each other by srun's words alone."""
    from tests.launch.test_rendezvous import train_on

    return train_on(two_hosts, NODES, tiny_run, "whole")
