"""A cluster of its own for the driver under a whole cluster's workloads: two nodes, each with two simulated H100."""

from collections.abc import Iterator

import pytest

from tests.e2e.driver.helpers import cdi_files
from tests.support.chart import Release
from tests.support.cluster import CACHE, Cluster
from tests.support.fixtures import resync_soon, session_cluster
from tests.support.hardware import Simulator
from tests.support.workload import ADMIN_NAMESPACE, Workspace, wait_empty, workspace

NODES = ("n1", "n2")
OLDEST_MINOR = "1.34"  # the first with resource.k8s.io/v1
_FIRST_VARIABLE = "kubeletPlugin.containers.plugin.env[0]"
ON_REAL_DRIVER_ROOT = {
    "simulator.profile": "",
    "nvidiaDriverRoot": "/run/nvidia/driver",
    # Claims that are gone are given up at once, not after five minutes.
    f"{_FIRST_VARIABLE}.name": "STALE_CLAIM_GRACE_S",
    f"{_FIRST_VARIABLE}.value": "1.0",
}


def find_oldest() -> list[str]:
    """Releases of the oldest supported minor whose programs have been built here."""
    folders = CACHE.glob(f"bin/kubernetes-{OLDEST_MINOR}.*")
    return sorted(folder.name.removeprefix("kubernetes-") for folder in folders if (folder / "kubelet").exists())


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    for cluster in session_cluster("driver", "--nodes", "2", "--profile", "h100x2"):
        for name in ("partita", "busybox"):
            cluster.run("load", CACHE / "images" / f"{name}.tar")
        for node in NODES:
            resync_soon(cluster, node)
        yield cluster


@pytest.fixture(scope="session")
def release(cluster: Cluster) -> Release:
    """The chart as on nodes that have a driver: it brings no hardware of its own."""
    release = Release(cluster)
    release.install(**ON_REAL_DRIVER_ROOT)
    return release


@pytest.fixture(scope="session")
def simulators(cluster: Cluster) -> dict[str, Simulator]:
    """By node."""
    return {node: Simulator(cluster, node) for node in NODES}


@pytest.fixture
def space(cluster: Cluster, release: Release) -> Iterator[Workspace]:
    """A namespace in which admin access is allowed. The next test need not wait for its end; `idle` does."""
    with workspace(cluster, ADMIN_NAMESPACE) as space:
        yield space


@pytest.fixture
def idle(cluster: Cluster, release: Release, simulators: dict[str, Simulator]) -> None:
    """Nothing of earlier tests is left: no pod, no MIG instance, no CDI file."""
    wait_idle(cluster, simulators)


@pytest.fixture(scope="module", autouse=True)
def leaves_nothing(cluster: Cluster, release: Release, simulators: dict[str, Simulator]) -> Iterator[None]:
    """Every module ends with nodes as at its beginning."""
    yield
    wait_idle(cluster, simulators)


def wait_idle(cluster: Cluster, simulators: dict[str, Simulator]) -> None:
    wait_empty(cluster)
    for node in NODES:
        assert simulators[node].instances() == []
        assert cdi_files(cluster, node) == []
