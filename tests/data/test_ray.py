"""A build on a Ray cluster of two nodes has the bytes of one in this process, and its errors."""

import importlib.util
import os

import pytest

from latxa_megatron.data.build import build_store
from latxa_megatron.errors import LatxaError
from tests.data.samples import chat, contents, corpus, write_sources

pytestmark = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed")


@pytest.fixture(scope="module")
def address():
    os.environ["RAY_raylet_start_wait_time_s"] = "300"  # noqa: SIM112 (ray reads it when imported)
    from ray.cluster_utils import Cluster

    cluster = Cluster()
    for _ in range(2):
        node = cluster.add_node(num_cpus=1, object_store_memory=80 << 20, include_dashboard=False)
    assert len(cluster.list_all_nodes()) == 2, node
    yield cluster.address
    cluster.shutdown()


def test_a_build_on_two_nodes_has_the_same_bytes_and_the_same_errors(address, byte_tokenizer, tmp_path, chunk_bytes, monkeypatch):
    chunk_bytes(1500)
    monkeypatch.chdir(tmp_path)  # paths that are relative here are not on the nodes
    files = write_sources(tmp_path / "sources").relative_to(tmp_path)
    sources = [corpus(files), chat(files)]
    whole = build_store(tmp_path / "whole", byte_tokenizer, sources)
    assert len(whole.shard_infos) > 4
    calls = []
    build_store(tmp_path / "ray", byte_tokenizer, sources, ray=address, progress=lambda *call: calls.append(call))
    assert contents(tmp_path / "ray") == contents(tmp_path / "whole")
    assert calls == sorted(calls)
    with (files / "b.jsonl").open("ab") as file:
        file.write(b'{"title": "a"}\n')
    with pytest.raises(LatxaError, match=r"^sources/b\.jsonl:41: the object has neither") as error:
        build_store(tmp_path / "bad", byte_tokenizer, sources, ray=address)
    assert error.type is LatxaError
    assert not list(tmp_path.glob("bad*"))


def test_a_cluster_that_is_not_there_is_one_sentence(byte_tokenizer, tmp_path):
    sources = [corpus(write_sources(tmp_path / "sources"))]
    for address in ("nowhere", "127.0.0.1:1"):
        with pytest.raises(LatxaError, match=f"--ray {address}: there is no Ray cluster that can be reached"):
            build_store(tmp_path / "store", byte_tokenizer, sources, ray=address)
        assert not list(tmp_path.glob("store*"))
