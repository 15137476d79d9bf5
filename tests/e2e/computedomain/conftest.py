"""Four nodes in two NVLink cliques, with the chart in the namespace that NVIDIA's documentation uses."""

from collections.abc import Iterator

import pytest

from tests.e2e.computedomain.jobs import CLIQUES, Driver, Space, space
from tests.support.cluster import CACHE, Cluster
from tests.support.fixtures import resync_soon, session_cluster


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    profiles = ",".join(f"gb200:clique={clique}" for clique in CLIQUES.values())
    for cluster in session_cluster("domain", "--nodes", str(len(CLIQUES)), "--profile", profiles):
        for name in ("partita", "busybox"):
            cluster.run("load", CACHE / "images" / f"{name}.tar")
        for node in CLIQUES:  # pods start while the API server is down, and are prepared when a node has been given up
            resync_soon(cluster, node)
        yield cluster


@pytest.fixture(scope="session")
def driver(cluster: Cluster) -> Driver:
    """The chart; a test that takes it away puts it back."""
    driver = Driver(cluster)
    driver.uninstall()  # an earlier session's, whose pods have an earlier image
    driver.install()
    return driver


@pytest.fixture
def here(driver: Driver) -> Iterator[Space]:
    """A namespace of its own. Afterwards the nodes must be as they were: no domain leaves anything."""
    with space(driver) as here:
        yield here


@pytest.fixture(scope="module")
def shared(driver: Driver) -> Iterator[Space]:
    """The same for a whole module, whose tests go on with what the one before has left running."""
    with space(driver) as shared:
        yield shared
