"""A cluster for what passes between kubelets and plugins, much of which is waiting."""

from collections.abc import Iterator

import pytest

from tests.support.cluster import Cluster
from tests.support.node_fixtures import bench, device_classes, node_cluster, plugin, running_plugin, simulator

__all__ = ["bench", "device_classes", "plugin", "running_plugin", "simulator"]


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """`n1`, `n3` and `n4` with two H100 each; `n2` with four GPUs on an NVLink fabric."""
    yield from node_cluster("kubelet", n1="h100x2", n2="gb200", n3="h100x2", n4="h100x2")
