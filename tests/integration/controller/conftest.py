"""Control planes beside that of the plugin's tests, which may run at the same time."""

from collections.abc import Iterator

import pytest

from tests.support.cluster import Cluster
from tests.support.computedomain import install, make_node
from tests.support.domain_controller_world import NODES
from tests.support.fixtures import session_cluster


@pytest.fixture(scope="session")
def control_plane() -> Iterator[Cluster]:
    yield from session_cluster("ctl", "--nodes", "0", "--audit", "--provider", "local")


@pytest.fixture(scope="session")
def prepared() -> Iterator[Cluster]:
    """For ComputeDomains, one of its own: its nodes have no kubelets and would attract other tests' pods."""
    for cluster in session_cluster("cd", "--nodes", "0", "--audit", "--provider", "local"):
        install(cluster)
        for node, clique in NODES.items():
            make_node(cluster, node, clique)
        yield cluster
