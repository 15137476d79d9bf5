"""A node plugin of its own for the tests of single nodes: a plain process, killed, stopped and started at will.

One is left running from test to test; a test that needs a fresh one restarts it.
"""

from collections.abc import Iterator

import pytest

from tests.support.bench import Bench, open_bench
from tests.support.cluster import Cluster
from tests.support.fixtures import resync_soon, session_cluster
from tests.support.hardware import Simulator
from tests.support.plugin import BARE_NODE, NodePlugin


def node_cluster(name: str, **profiles: str) -> Iterator[Cluster]:
    """For `yield from` in a session fixture: nodes n1, n2 and so on, by profile of their hardware.

    Local ones: the plugin runs there as a process of this checkout.
    """
    options = ("--nodes", str(len(profiles)), "--profile", ",".join(profiles.values()), "--provider", "local")
    for cluster in session_cluster(name, *options):
        for node in profiles:
            resync_soon(cluster, node)
        yield cluster


@pytest.fixture(scope="session")
def device_classes(cluster: Cluster) -> None:
    """Those of the chart, which is not installed here."""
    attributes = {"gpu.nvidia.com": "gpu", "mig.nvidia.com": "mig"}
    expressions = {
        name: f"device.driver == 'gpu.nvidia.com' && device.attributes['gpu.nvidia.com'].type == '{kind}'"
        for name, kind in attributes.items()
    }
    channel = "device.attributes['compute-domain.nvidia.com'].type == 'channel'"
    expressions["compute-domain-default-channel.nvidia.com"] = (
        f"device.driver == 'compute-domain.nvidia.com' && {channel}"
    )
    for name, expression in expressions.items():
        cluster.apply(
            {
                "apiVersion": "resource.k8s.io/v1",
                "kind": "DeviceClass",
                "metadata": {"name": name},
                "spec": {"selectors": [{"cel": {"expression": expression}}]},
            }
        )


@pytest.fixture(scope="session")
def running_plugin(cluster: Cluster, device_classes: None) -> Iterator[NodePlugin]:
    process = NodePlugin(cluster, BARE_NODE)
    yield process
    process.kill()


@pytest.fixture
def plugin(running_plugin: NodePlugin) -> NodePlugin:
    """Registered; its log begins with the test."""
    running_plugin.ensure()
    running_plugin.mark()
    return running_plugin


@pytest.fixture
def simulator(cluster: Cluster) -> Simulator:
    return Simulator(cluster, BARE_NODE)


@pytest.fixture
def bench(cluster: Cluster, plugin: NodePlugin, simulator: Simulator) -> Iterator[Bench]:
    """A fresh namespace, slices published; afterwards all that ran in it is gone without trace, or the test fails."""
    it = open_bench(cluster, plugin, simulator)
    it.wait_published()
    yield it
    it.sweep()
