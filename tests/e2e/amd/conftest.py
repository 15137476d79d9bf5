"""A mixed cluster: n1 has an NVIDIA GPU, n2 eight MI300X in one hive, n3 one GPU of either vendor."""

from collections.abc import Iterator

import pytest

from tests.e2e.amd.helpers import SYSTEM, AmdNode, end_partitioning
from tests.support.chart import Release
from tests.support.cluster import CACHE, Cluster, path
from tests.support.fixtures import resync_soon, session_cluster
from tests.support.workload import Workspace, workspace

SETTINGS = {
    "simulator.profile": "",
    "nvidiaDriverRoot": "/run/nvidia/driver",
    "resources.amd.enabled": "true",
    "controller.nodePartitioning.enabled": "true",
    # The real one tries for 30 minutes; ours hangs no longer than a test can wait.
    "controller.nodePartitioning.dcmTimeout": "20s",
    "controller.nodePartitioning.applyTimeout": "60s",
}

RESTART_AT_ONCE = {
    "maxContainerRestartPeriod": "1s"
}  # the kubelet lets a program that is killed often wait for minutes


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    for cluster in session_cluster("amd", "--nodes", "3", "--profile", "h100x1,mi300xx8,h100x1+mi300xx1"):
        for name in ("partita", "busybox"):
            cluster.run("load", CACHE / "images" / f"{name}.tar")
        for node in ("n2", "n3"):
            resync_soon(cluster, node, crashLoopBackOff=RESTART_AT_ONCE)
        yield cluster


@pytest.fixture(scope="session")
def release(cluster: Cluster) -> Release:
    release = Release(cluster, namespace=SYSTEM)
    release.install(**SETTINGS)
    end_partitioning(AmdNode(cluster, "n2"))  # what a session that was ended has left
    return release


@pytest.fixture
def space(cluster: Cluster, release: Release) -> Iterator[Workspace]:
    """Its pods are gone afterwards, so that GPUs are free for the next test."""
    with workspace(cluster) as space:
        yield space
        cluster.kubectl("delete", "pods", "--all", "--namespace", space.namespace, "--grace-period=1")
    cluster.wait_gone(path("v1", "namespaces", name=space.namespace), 120.0)


@pytest.fixture
def n2(cluster: Cluster, release: Release) -> Iterator[AmdNode]:
    """Eight GPUs in SPX/NPS1; afterwards nobody asks anything of the node."""
    node = AmdNode(cluster, "n2")
    yield node
    end_partitioning(node)


@pytest.fixture
def n3(cluster: Cluster, release: Release) -> AmdNode:
    return AmdNode(cluster, "n3")
