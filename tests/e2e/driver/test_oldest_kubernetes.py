"""The oldest Kubernetes that is supported: partitions are offered and used there too, where the gate is on.

Only where its programs are in the cache, for building them takes minutes.
"""

import pytest

from tests.e2e.driver.conftest import find_oldest
from tests.e2e.driver.helpers import create_device_classes
from tests.support.cluster import path
from tests.support.fixtures import session_cluster
from tests.support.hardware import Simulator
from tests.support.manifests import claim, gpu_request, mig_request, pod
from tests.support.plugin import NodePlugin
from tests.support.workload import LOOK, sees_exactly, workspace

NODE = "n1"
pytestmark = pytest.mark.skipif(
    not find_oldest(),
    reason="Kubernetes 1.34 has not been built here; `hack/cluster --name oldest up --kubernetes 1.34` takes minutes",
)


def test_slices_made_on_demand_are_used_on_kubernetes_1_34() -> None:
    """Counter sets and the devices that draw from them are in one slice there, one for each GPU."""
    (version,) = find_oldest()[-1:]
    gate = "DRAPartitionableDevices=true"
    hardware = ("--nodes", "1", "--profile", "h100x2", "--provider", "local")
    options = (*hardware, "--kubernetes", version, "--feature-gates", gate)
    for cluster in session_cluster("oldest", *options):
        create_device_classes(cluster)
        with NodePlugin(cluster, NODE).running() as plugin, workspace(cluster) as space:
            plugin.wait_logged("published")
            slices = cluster.list(path("resource.k8s.io/v1", "resourceslices"))
            assert [len(each["spec"]["sharedCounters"]) for each in slices] == [1, 1]
            space.apply(
                claim("mig", space.namespace, mig_request(), mig_request("3g.40gb", "large")),
                claim("gpu", space.namespace, gpu_request()),
                *(pod(name, space.namespace, claims=(name,), command=LOOK) for name in ("mig", "gpu")),
            )
            space.wait_running("mig", "gpu")
            for name in ("mig", "gpu"):
                sees_exactly(space.view(name), space.devices(name))
            space.delete("mig", "gpu")
        assert Simulator(cluster, NODE).instances() == []
