"""A server whose feature gate DRAPartitionableDevices is off: it drops the counters by which partitions are offered."""

from collections.abc import Iterator

import pytest

from tests.e2e.driver.helpers import NVIDIA_SMI, create_device_classes
from tests.support.cluster import Cluster, Object, path, wait_until
from tests.support.fixtures import session_cluster
from tests.support.hardware import Simulator
from tests.support.manifests import claim, claim_template, gpu_request, mig_request, pod
from tests.support.plugin import NodePlugin
from tests.support.workload import ADMIN_NAMESPACE, LOOK, sees_exactly, workspace

NODE = "n1"


@pytest.fixture(scope="module")
def gateless() -> Iterator[Cluster]:
    yield from session_cluster(
        "gateless",
        *("--nodes", "1", "--profile", "h100x2", "--feature-gates", "DRAPartitionableDevices=false"),
        *("--provider", "local"),
    )


@pytest.fixture(scope="module")
def plugin(gateless: Cluster) -> Iterator[NodePlugin]:
    """On a node where an admin has made two slices of the first GPU; it runs as a plain process."""
    create_device_classes(gateless)
    Simulator(gateless, NODE).reset()
    made = f"{NVIDIA_SMI} -i 0 -mig 1 && {NVIDIA_SMI} mig -i 0 -cgi 19,9 -C"
    gateless.in_node(NODE, "sh", "-c", made)
    plugin = NodePlugin(gateless, NODE, {"DRIVERS": "gpu.nvidia.com"})
    with plugin.running():
        yield plugin


def published(cluster: Cluster) -> list[Object]:
    return cluster.list(path("resource.k8s.io/v1", "resourceslices"), fieldSelector="spec.driver=gpu.nvidia.com")


def test_only_whole_gpus_and_existing_slices_are_offered(gateless: Cluster, plugin: NodePlugin) -> None:
    """And it is said why: in the log, and in an Event of the node."""

    def complete() -> list[Object] | None:
        slices = published(gateless)
        return slices if slices and len(slices) == slices[0]["spec"]["pool"]["resourceSliceCount"] else None

    plugin.wait_logged("published")
    slices = wait_until("the slices are complete", complete)
    devices = [device for each in slices for device in each["spec"].get("devices", ())]
    profiles = sorted(each["attributes"].get("profile", {}).get("string", "whole") for each in devices)
    assert profiles == ["1g.10gb", "3g.40gb", "whole"]
    assert [each["name"] for each in devices if "profile" not in each["attributes"]] == ["gpu-1"]
    assert plugin.wait_logged("features_missing")["gates"] == "DRAPartitionableDevices"

    def told() -> bool:
        events = gateless.list(path("v1", "events", namespace="default"))
        return any(
            event["reason"] == "FeatureGateOff"
            and event["involvedObject"]["name"] == NODE
            and "DRAPartitionableDevices" in event["message"]
            for event in events
        )

    wait_until("an Event of the node says so", told)


def test_existing_slices_and_whole_gpus_are_used(gateless: Cluster, plugin: NodePlugin) -> None:
    """A slice that nobody has made is waited for; the admin's outlives the pods; admin access shares what is in use."""
    before = Simulator(gateless, NODE).instances()
    everything = gpu_request(allocationMode="All", adminAccess=True)
    with workspace(gateless, ADMIN_NAMESPACE) as space:
        space.apply(
            claim("slice", space.namespace, mig_request("1g.10gb")),
            claim("gpu", space.namespace, gpu_request()),
            claim_template("missing", space.namespace, mig_request("2g.20gb")),
            pod("slice-user", space.namespace, claims=("slice",), command=LOOK),
            pod("gpu-user", space.namespace, claims=("gpu",), command=LOOK),
            pod("waiting", space.namespace, templates=("missing",)),
        )
        space.wait_running("slice-user", "gpu-user")
        space.apply(
            claim("all", space.namespace, everything),
            pod("monitor", space.namespace, claims=("all",), command=LOOK),
        )
        space.wait_running("monitor")
        for name, claim_name in (("slice-user", "slice"), ("gpu-user", "gpu"), ("monitor", "all")):
            sees_exactly(space.view(name), space.devices(claim_name))
        assert space.view("monitor").gpus == space.view("gpu-user").gpus
        space.wait_unschedulable("waiting")
        space.delete("slice-user", "gpu-user", "monitor", "waiting")
    assert Simulator(gateless, NODE).instances() == before
