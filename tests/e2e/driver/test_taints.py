"""Devices tainted by the driver for their faults, or by an admin's rule: rows of upstream's suite "Cluster"."""

import time

from tests.support.cluster import Cluster, Object, path, wait_until
from tests.support.hardware import Simulator
from tests.support.manifests import claim, gpu_request, pod
from tests.support.workload import LOOK, START_S, Device, Workspace, sees_exactly

NODE = "n2"
DOUBLE_BIT_ERROR = 48  # NVIDIA's XID catalogue: a fault of the GPU, not of the application
STABLE_S = 3.0  # whoever is evicted is so within a second
RULES = path("resource.k8s.io/v1", "devicetaintrules")


def taints(cluster: Cluster, node: str) -> dict[str, list[str]]:
    """Full GPU -> keys of its taints."""
    slices = cluster.list(path("resource.k8s.io/v1", "resourceslices"), fieldSelector=f"spec.nodeName={node}")
    devices = [device for each in slices for device in each["spec"].get("devices", ())]
    return {
        each["name"]: [taint["key"] for taint in each.get("taints", ())]
        for each in devices
        if each["name"] in ("gpu-0", "gpu-1")
    }


def tolerating(key: str, **more: str) -> Object:
    return {"tolerations": [{"key": key, "operator": "Exists", **more}]}


def test_a_gpu_with_a_critical_error_gets_only_pods_that_tolerate_it(
    cluster: Cluster, idle: None, space: Workspace, simulators: dict[str, Simulator]
) -> None:
    """What runs on it stays; others go elsewhere or wait, until the GPU was reset."""
    space.apply(
        claim("early", space.namespace, gpu_request()),
        pod("early", space.namespace, claims=("early",), node=NODE),
    )
    space.wait_running("early")
    (sick,) = space.devices("early")
    simulators[NODE].xid(int(sick.name.removeprefix("gpu-")), DOUBLE_BIT_ERROR)
    wait_until("it is tainted", lambda: taints(cluster, NODE)[sick.name] == ["gpu.nvidia.com/xid"])
    (well,) = taints(cluster, NODE).keys() - {sick.name}
    assert taints(cluster, NODE)[well] == []
    assert space.phase("early") == "Running"
    space.delete("early")

    space.apply(
        claim("one", space.namespace, gpu_request()),
        claim("two", space.namespace, gpu_request(count=2)),
        pod("one", space.namespace, claims=("one",), node=NODE, command=LOOK),
    )
    space.wait_running("one")
    assert [each.name for each in space.devices("one")] == [well]
    space.delete("one")
    space.apply(pod("two", space.namespace, claims=("two",), node=NODE, command=LOOK))
    space.wait_unschedulable("two")

    tolerant = gpu_request(count=2, **tolerating("gpu.nvidia.com/xid"))
    space.apply(
        claim("tolerant", space.namespace, tolerant),
        pod("tolerant", space.namespace, claims=("tolerant",), node=NODE, command=LOOK),
    )
    space.wait_running("tolerant")
    sees_exactly(space.view("tolerant"), space.devices("tolerant"))
    assert space.phase("two") == "Pending"
    space.delete("tolerant")

    simulators[NODE].inject("lost", "--gpu", sick.name.removeprefix("gpu-"))
    wait_until("it is lost", lambda: "gpu.nvidia.com/gpu-lost" in taints(cluster, NODE)[sick.name])
    simulators[NODE].reset()
    space.wait_running("two")
    assert taints(cluster, NODE) == {sick.name: [], well: []}


def evict(device: Device) -> Object:
    taint = {"key": "example.com/maintenance", "value": "today", "effect": "NoExecute"}
    selector = {"driver": "gpu.nvidia.com", "pool": device.node, "device": device.name}
    return {
        "apiVersion": "resource.k8s.io/v1",
        "kind": "DeviceTaintRule",
        "metadata": {"name": "maintenance"},
        "spec": {"deviceSelector": selector, "taint": taint},
    }


def test_an_admins_rule_evicts_those_who_use_a_device(cluster: Cluster, space: Workspace) -> None:
    """Those on other devices stay, and those whose claim tolerates it; the evicted pod's GPU is free."""
    # Kubernetes 1.37.1 evicts those, too, whose toleration names no effect, which is to mean every effect.
    tolerant = gpu_request(**tolerating("example.com/maintenance", effect="NoExecute"))
    space.apply(
        claim("intolerant", space.namespace, gpu_request()),
        claim("other", space.namespace, gpu_request()),
        claim("tolerant", space.namespace, tolerant),
        *(pod(name, space.namespace, claims=(name,)) for name in ("intolerant", "other")),
    )
    space.wait_running("intolerant", "other")
    (device,) = space.devices("intolerant")
    cluster.create(RULES, evict(device))
    try:
        cluster.wait_gone(space.pods("intolerant"), START_S)
        space.wait_released("intolerant")
        assert space.phase("other") == "Running"
        space.apply(pod("intolerant", space.namespace, claims=("intolerant",), command=LOOK))
        space.wait_running("intolerant")
        assert space.devices("intolerant") != [device]
        space.apply(pod("tolerant", space.namespace, claims=("tolerant",), node=device.node, command=LOOK))
        space.wait_running("tolerant")
        time.sleep(STABLE_S)
        assert space.phase("tolerant") == "Running"
    finally:
        cluster.delete(f"{RULES}/maintenance")
