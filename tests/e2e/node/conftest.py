"""A cluster of its own for one node's kubelet and plugin.

The plugin runs on `n1` as a plain process, so that it can be killed, paused and started at will.
"""

from collections.abc import Iterator
from uuid import uuid4

import pytest

from tests.support.cluster import Cluster, path, wait_until
from tests.support.fixtures import session_cluster
from tests.support.plugin import BARE_NODE, NodePlugin


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Two nodes with two simulated H100 each."""
    yield from session_cluster("node", "--nodes", "2", "--profile", "h100x2")


@pytest.fixture(scope="session")
def device_classes(cluster: Cluster) -> None:
    """The two of the reference driver; no chart is installed here."""
    for name, kind in (("gpu.nvidia.com", "gpu"), ("mig.nvidia.com", "mig")):
        expression = f"device.driver == 'gpu.nvidia.com' && device.attributes['gpu.nvidia.com'].type == '{kind}'"
        cluster.apply(
            {
                "apiVersion": "resource.k8s.io/v1",
                "kind": "DeviceClass",
                "metadata": {"name": name},
                "spec": {"selectors": [{"cel": {"expression": expression}}]},
            }
        )


@pytest.fixture
def namespace(cluster: Cluster) -> Iterator[str]:
    """A fresh namespace; afterwards all that ran in it is gone, or the test fails."""
    name = f"test-{uuid4().hex[:8]}"
    cluster.create(path("v1", "namespaces"), {"metadata": {"name": name}})
    account = path("v1", "serviceaccounts", namespace=name, name="default")
    wait_until(f"{name} has its service account", lambda: cluster.find(account))
    yield name
    cluster.delete(path("v1", "namespaces", name=name))
    cluster.wait_gone(path("v1", "namespaces", name=name), 180.0)


@pytest.fixture
def plugin(cluster: Cluster, device_classes: None) -> Iterator[NodePlugin]:
    """Not started yet; killed afterwards, with its slices removed."""
    process = NodePlugin(cluster, BARE_NODE)
    yield process
    process.kill()
    for piece in cluster.list(path("resource.k8s.io/v1", "resourceslices"), fieldSelector=f"spec.nodeName={BARE_NODE}"):
        cluster.delete(path("resource.k8s.io/v1", "resourceslices", name=piece["metadata"]["name"]))
