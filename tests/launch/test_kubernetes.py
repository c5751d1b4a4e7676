"""The manifest of a run, against the published schemas; and what its pods run, on two hosts with the pods' names."""

import subprocess
import sys
from pathlib import Path

import pytest
from kubeflow_trainer_api.models import JobsetV1alpha2JobSet

from latxa_megatron.errors import LatxaError
from latxa_megatron.launch.kubernetes import Pods, claim, manifest
from tests.launch.hosts import exit_codes, hosts
from tests.launch.test_rendezvous import RUN
from tests.train.test_resume import assert_same_state


@pytest.fixture
def made(tiny_run, monkeypatch):
    """The manifest of a run with its out directory, and the specification of its pods."""
    monkeypatch.chdir(tiny_run.root)

    def make(out="out", nodes=2, gpus=1, overrides=(), **more):
        pods = Pods(nodes, gpus, "registry/latxa:1", {"work": tiny_run.root.parent}, **more)
        found = manifest(Path(tiny_run.file), pods, [f"out={tiny_run.out(out)}", *RUN, *overrides])
        return found, found["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]

    return make


def test_it_is_as_the_schema_says(made):
    found, _ = made(namespace="team")
    assert JobsetV1alpha2JobSet.from_dict(found).to_dict() == found  # with a key that the schema has not, it would be less
    assert found["metadata"] == {"name": "latxa-tiny", "namespace": "team"}
    found["spec"]["replicatedJobs"][0]["template"]["spec"]["paralelism"] = 2
    assert JobsetV1alpha2JobSet.from_dict(found).to_dict() != found


def test_names_that_have_to_agree(made, tiny_run):
    found, pod = made(nodes=1, gpus=4, overrides=["parallel.pp=1", "name=Mine_$(HOME)"])
    job = found["spec"]["replicatedJobs"][0]
    container = pod["containers"][0]
    name = found["metadata"]["name"]
    assert name == "latxa-mine-home"
    assert f"{name}-{job['name']}-0-0.{name}:29500" in container["command"]
    assert container["command"][-1] == "name=Mine_$$(HOME)"  # Kubernetes puts the value of $(NAME) in its place
    assert {volume["name"] for volume in pod["volumes"]} == {mount["name"] for mount in container["volumeMounts"]}
    assert container["volumeMounts"][-1]["mountPath"] == str(tiny_run.root.parent)
    assert pod["volumes"][-1]["persistentVolumeClaim"] == {"claimName": "work"}
    assert container["resources"] == {"limits": {"nvidia.com/gpu": 4}}


def test_two_pods_train_one_run(made, tiny_run, whole):
    found, pod = made("pods")
    name = found["metadata"]["name"]
    names = [f"{name}-node-0-{index}.{name}" for index in range(2)]
    container = pod["containers"][0]
    with hosts(names) as machines:
        pods = [
            subprocess.Popen(
                machines.command(host, sys.executable, *(w.replace("$(NODE_RANK)", str(n)) for w in container["command"][1:])),
                cwd=Path(__file__).parents[2],
            )
            for n, host in enumerate(names)
        ]
        assert exit_codes(pods) == [0, 0]
    assert_same_state(whole, tiny_run.out("pods"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"nodes": 3}, "parallel: tp x cp x pp is 2, and 3 processes do not divide by it"),
        ({"overrides": ["out=/elsewhere/out"]}, "--claim: /, which the run needs, is in none of the claims"),
    ],
)
def test_what_cannot_be_rendered(arguments, message, made):
    with pytest.raises(LatxaError, match=message):
        made(**arguments)


@pytest.mark.parametrize("text", ["work", "work:data", "Work:/data", ":/data"])
def test_what_is_no_claim(text):
    with pytest.raises(LatxaError, match="has the form NAME:/PATH"):
        claim(text)
