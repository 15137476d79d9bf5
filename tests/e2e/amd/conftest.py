"""A mixed cluster: n1 has an NVIDIA GPU, n2 eight MI300X in one hive, n3 one GPU of either vendor, n4 two MI300X."""

from collections.abc import Iterator

import pytest

from tests.e2e.amd.helpers import (
    AMD_NODES,
    CONFIG_MAP,
    PROFILES,
    STATIC_PODS,
    SYSTEM,
    AmdNode,
    end_partitioning,
    profiles_config,
)
from tests.support.chart import Release
from tests.support.cluster import CACHE, Cluster, wait_until
from tests.support.fixtures import resync_soon, session_cluster
from tests.support.workload import Workspace, workspace

SETTINGS = {
    "simulator.profile": "",
    "nvidiaDriverRoot": "/run/nvidia/driver",
    "resources.amd.enabled": "true",
    "resources.amd.extendedResourceName": "amd.com/gpu",
    "controller.nodePartitioning.enabled": "true",
    "controller.nodePartitioning.maxUnavailable": "2",
    # The real one tries for 30 minutes; ours hangs no longer than a test can wait.
    "controller.nodePartitioning.dcmTimeout": "20s",
    "controller.nodePartitioning.applyTimeout": "60s",
    # Tests change the hardware behind the driver's back, and wait until it has looked.
    "kubeletPlugin.containers.plugin.env[0].name": "RESCAN_INTERVAL_S",
    "kubeletPlugin.containers.plugin.env[0].value": "1.0",
}

RESTART_AT_ONCE = {
    "maxContainerRestartPeriod": "1s"
}  # the kubelet lets a program that is killed often wait for minutes


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    for cluster in session_cluster("amd", "--nodes", str(len(PROFILES)), "--profile", ",".join(PROFILES.values())):
        for name in ("partita", "busybox"):
            cluster.run("load", CACHE / "images" / f"{name}.tar")
        for node in AMD_NODES:
            resync_soon(cluster, node, crashLoopBackOff=RESTART_AT_ONCE, staticPodPath=STATIC_PODS)
        yield cluster


@pytest.fixture(scope="session")
def release(cluster: Cluster) -> Release:
    release = Release(cluster, namespace=SYSTEM)
    release.install(**SETTINGS)
    # What a session that was ended has left.
    cluster.delete(CONFIG_MAP)
    for name in AMD_NODES:
        end_partitioning(AmdNode(cluster, name))
    return release


@pytest.fixture
def space(cluster: Cluster, release: Release, request: pytest.FixtureRequest) -> Iterator[Workspace]:
    """Afterwards its pods are gone and hold no GPU, which the next test may want."""
    # These first, so that they end last: a node is put in order when nobody holds its GPUs.
    for fixture in ("profiles", "n2", "n4"):
        if fixture in request.fixturenames:
            request.getfixturevalue(fixture)
    with workspace(cluster) as space:
        yield space
        cluster.kubectl("delete", "pods", "--all", "--namespace", space.namespace, "--grace-period=1")
        wait_until("no claim holds a GPU", lambda: not any(each.get("status") for each in cluster.list(space.claims())))


@pytest.fixture
def profiles(cluster: Cluster, release: Release) -> Iterator[None]:
    """`spx`, `cpx` and `qpx_nps4`, for nodes of any number of GPUs; afterwards there are the usual ones again."""
    cluster.apply(profiles_config(spx=("SPX", "NPS1", None), cpx=("CPX", "NPS4", None), qpx_nps4=("QPX", "NPS4", None)))
    yield
    cluster.delete(CONFIG_MAP)


@pytest.fixture
def n2(cluster: Cluster, release: Release) -> Iterator[AmdNode]:
    """Eight GPUs in SPX/NPS1; afterwards nobody asks anything of the node."""
    node = AmdNode(cluster, "n2")
    yield node
    end_partitioning(node)


@pytest.fixture
def n4(cluster: Cluster, release: Release) -> Iterator[AmdNode]:
    """Two GPUs in SPX/NPS1; afterwards nobody asks anything of the node."""
    node = AmdNode(cluster, "n4")
    yield node
    end_partitioning(node)


@pytest.fixture
def n3(cluster: Cluster, release: Release) -> AmdNode:
    return AmdNode(cluster, "n3")
