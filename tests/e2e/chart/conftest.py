"""A cluster of its own for the chart: two nodes without hardware, onto which the chart itself puts simulated GPUs."""

from collections.abc import Iterator

import pytest

from tests.support.chart import Release
from tests.support.cluster import CACHE, Cluster
from tests.support.fixtures import session_cluster

IMAGES = ("partita", "partita-simulator", "busybox")


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    for cluster in session_cluster("chart", "--nodes", "2"):
        for name in IMAGES:
            cluster.run("load", CACHE / "images" / f"{name}.tar")
        yield cluster


@pytest.fixture(scope="session")
def release(cluster: Cluster) -> Iterator[Release]:
    """The chart with simulated H100 nodes; a test that takes it away puts it back."""
    release = Release(cluster)
    release.install()
    yield release
    release.uninstall()
