"""A cluster of one node: what becomes of its plugin, its hardware and its disk."""

from collections.abc import Iterator

import pytest

from tests.support.cluster import Cluster
from tests.support.node_fixtures import bench, device_classes, node_cluster, plugin, running_plugin, simulator

__all__ = ["bench", "device_classes", "plugin", "running_plugin", "simulator"]


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """`n1` with two H100."""
    yield from node_cluster("node", n1="h100x2")
