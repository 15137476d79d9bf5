"""Two nodes of one NVLink clique that enforce NetworkPolicies, and the chart with all of its own."""

from collections.abc import Iterator

import pytest

from tests.e2e.computedomain.jobs import Driver, Space, space
from tests.support.cluster import CACHE, Cluster
from tests.support.fixtures import session_cluster

NODES = ("n1", "n2")


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    options = ("--nodes", str(len(NODES)), "--profile", "gb200:clique=1", "--network-policies", "--provider", "local")
    for cluster in session_cluster("policies", *options):
        for name in ("partita", "busybox"):
            cluster.run("load", CACHE / "images" / f"{name}.tar")
        yield cluster


@pytest.fixture(scope="session")
def driver(cluster: Cluster) -> Driver:
    driver = Driver(cluster, nodes=NODES)
    driver.uninstall()
    enabled = {f"{part}.networkPolicy.enabled": "true" for part in ("kubeletPlugin", "controller")}
    driver.install(**enabled)
    return driver


@pytest.fixture(scope="module")
def shared(driver: Driver) -> Iterator[Space]:
    with space(driver) as shared:
        yield shared
