"""Pods that wait for their channel: for whom, what they are told, and how they go."""

import pytest

from tests.e2e.computedomain.jobs import Job, Space, condition


@pytest.fixture(scope="module")
def patient(shared: Space) -> Job:
    """Two nodes wanted, and no pod before both are connected; one is there and connected."""
    job = shared.job("patient", 2, releasePolicy="AllNodes")
    job.start(a="n1")
    job.wait("n1 is connected", lambda domain: domain.get("status", {}).get("readyNodes") == 1)
    return job


def test_with_release_policy_all_nodes_no_pod_starts_before_all_nodes_are_connected(patient: Job) -> None:
    space = patient.space
    told = "WaitingForComputeDomain: .*releasePolicy AllNodes: 1 of 2 nodes are connected"
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
