"""Pods that wait for their channel: for whom, what they are told, and how they go."""

from collections.abc import Iterator

import pytest

from tests.e2e.computedomain.jobs import Driver, Job, Space, condition


@pytest.fixture(scope="module")
def patient(shared: Space) -> Job:
    """Two nodes wanted, and no pod before both are connected; one is there and connected."""
    job = shared.job("patient", 2, releasePolicy="AllNodes")
    job.start(a="n1")
    job.wait("n1 is connected", lambda domain: domain.get("status", {}).get("readyNodes") == 1)
    return job


def test_with_release_policy_all_nodes_no_pod_starts_before_all_nodes_are_connected(patient: Job) -> None:
    space = patient.space
    told = "WaitingForComputeDomain: .*releasePolicy AllNodes: not all nodes are connected yet"
    space.wait_told("a", told)
    assert space.phase("a") == "Pending"
    assert condition(patient.domain(), "DaemonsReady")["status"] == "True"


def test_a_pod_that_is_deleted_while_it_waits_goes_at_once_and_the_node_says_why(patient: Job) -> None:
    """Not when the kubelet's call ends by itself: then it would say what was missing."""
    space = patient.space
    claim = space.cluster.get(space.where("v1", "pods", "a"))["status"]["resourceClaimStatuses"][0]["resourceClaimName"]
    space.end("a")
    assert "PodDeleted" in space.wait_told(claim, "the pods that it is for are being deleted")
    patient.wait("its node is no member", lambda domain: domain["status"].get("memberNodes") == 0)


def test_with_release_policy_all_nodes_the_last_node_starts_them_all(patient: Job) -> None:
    patient.run(b="n1", c="n2")
    patient.wait_ready(2)
    patient.share_all_ways("b", "c")
    patient.space.end("b", "c")


@pytest.fixture
def narrow(driver: Driver) -> Iterator[Driver]:
    """An IMEX domain takes one node."""
    driver.install(**{"resources.computeDomains.imex.maxNodes": "1"})
    yield driver
    driver.install()


def test_a_node_for_which_its_clique_has_no_place_waits_and_its_pod_is_told(narrow: Driver, shared: Space) -> None:
    job = shared.job("wide", 2)
    job.run(x="n1")
    job.start(y="n2")
    full = r"NVLink clique \S+ has its 1 nodes: no place for n2"
    shared.wait_told("y", f"WaitingForComputeDomain: .*{full}")
    assert "no place for n2" in job.wait_condition("Degraded", "True", "NodesLeftOut")
    assert condition(job.domain(), "Ready")["reason"] == "NodesLeftOut"
    assert shared.phase("y") == "Pending"
    assert set(job.daemons()) == {"n1"}
    shared.end("x")
    job.wait_running("y")
    job.wait("n2 has the only index", lambda domain: domain["status"].get("nodes") and job.indexes() == {"n2": 0})
    shared.end("y")
