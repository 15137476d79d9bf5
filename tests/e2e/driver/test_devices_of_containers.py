"""Which devices reach which container, and with which config: the driver-facing rows of upstream's suite "Cluster"."""

import json

import pytest

from tests.e2e.driver.helpers import time_slices
from tests.support.cluster import Cluster, Object, path
from tests.support.manifests import claim, claim_template, config, gpu_request, mig_request, pod, request
from tests.support.workload import LOOK, Workspace, sees_exactly

DRIVER = "gpu.nvidia.com"
CONFIG = {"apiVersion": "resource.nvidia.com/v1beta1", "kind": "GpuConfig"}
SLICED_CLASS = "sliced.example.com"


def sliced(interval: str) -> Object:
    return {**CONFIG, "sharing": {"strategy": "TimeSlicing", "timeSlicingConfig": {"interval": interval}}}


def using(body: Object, *references: Object) -> Object:
    """The pod with a container for each of the given lists of claims."""
    (template,) = body["spec"]["containers"]
    body["spec"]["containers"] = [
        {**template, "name": f"c{number}", "resources": each} for number, each in enumerate(references)
    ]
    return body


def test_configs_and_requests_reach_the_right_containers(cluster: Cluster, space: Workspace) -> None:
    """Each container sees the requests that it names; a claim's config wins over its class's, for its request only."""
    cluster.apply(
        {
            "apiVersion": "resource.k8s.io/v1",
            "kind": "DeviceClass",
            "metadata": {"name": SLICED_CLASS},
            "spec": {
                "selectors": [{"cel": {"expression": f"device.driver == '{DRIVER}'"}}],
                "config": [config(DRIVER, sliced("Short"))],
            },
        }
    )
    gpu = "device.attributes['gpu.nvidia.com'].type == 'gpu'"
    requests = tuple(request(name, SLICED_CLASS, cel=gpu) for name in ("of-class", "of-claim"))
    body = using(
        pod("user", space.namespace, claims=("two",), command=LOOK),
        {"claims": [{"name": "c-two", "request": "of-class"}]},
        {"claims": [{"name": "c-two", "request": "of-claim"}]},
        {"claims": [{"name": "c-two"}]},
        {},
    )
    space.apply(
        claim("two", space.namespace, *requests, configs=(config(DRIVER, sliced("Medium"), ("of-claim",)),)), body
    )
    space.wait_running("user")
    devices = space.devices("two")
    assert [each.request for each in devices] == ["of-class", "of-claim"]
    sees_exactly(space.view("user", "c0"), devices[:1])
    sees_exactly(space.view("user", "c1"), devices[1:])
    sees_exactly(space.view("user", "c2"), devices)
    node = devices[0].node
    assert time_slices(cluster, node) == {devices[0].gpu: "Short", devices[1].gpu: "Medium"}
    space.delete("user")
    assert set(time_slices(cluster, node).values()) == {"Default"}
    cluster.delete(path("resource.k8s.io/v1", "deviceclasses", name=SLICED_CLASS))


def test_a_container_without_claims_sees_no_device(space: Workspace) -> None:
    """Beside containers of the same pod that do."""
    body = using(pod("user", space.namespace, templates=("mig",), command=LOOK), {"claims": [{"name": "t-mig"}]}, {})
    body["spec"]["containers"][1]["command"] = ["sh", "-c", f"find / -name '*nvidia*' -not -path '/proc/*'; {LOOK}"]
    space.apply(claim_template("mig", space.namespace, mig_request()), body)
    space.wait_running("user")
    sees_exactly(space.view("user", "c0"), space.devices(space.claim_of("user", "t-mig")))
    sees_exactly(space.view("user", "c1"), [])
    log = space.cluster.get(f"{space.pods('user')}/log?container=c1")["message"]
    assert "/dev/nvidia" not in log and "/usr/bin/nvidia-smi" not in log


def test_first_available_falls_back(space: Workspace) -> None:
    """No B200 is there, so the next alternative is taken; the container names the main request."""
    product = "device.attributes['gpu.nvidia.com'].productName.contains('B200')"
    alternatives = [gpu_request("b200"), mig_request("2g.20gb", "quarter"), mig_request("1g.10gb", "small")]
    alternatives[0]["exactly"]["selectors"] = [{"cel": {"expression": product}}]
    fallback = {
        "name": "device",
        "firstAvailable": [{"name": each["name"], **each["exactly"]} for each in alternatives],
    }
    body = using(
        pod("user", space.namespace, claims=("best",), command=LOOK),
        {"claims": [{"name": "c-best", "request": "device"}]},
    )
    space.apply(claim("best", space.namespace, fallback), body)
    space.wait_running("user")
    devices = space.devices("best")
    assert [(each.request, each.text("profile")) for each in devices] == [("device/quarter", "2g.20gb")]
    sees_exactly(space.view("user"), devices)


def test_match_attribute_keeps_slices_on_one_gpu(space: Workspace) -> None:
    """Two slices that must have one parentUUID, and two others that must not."""
    requests = (mig_request("1g.10gb", "small"), mig_request("3g.40gb", "large"))
    both = {"requests": ["small", "large"]}
    same = {**both, "matchAttribute": "gpu.nvidia.com/parentUUID"}
    other = {**both, "distinctAttribute": "gpu.nvidia.com/parentUUID"}
    space.apply(
        claim("same", space.namespace, *requests, constraints=(same,)),
        claim("other", space.namespace, *requests, constraints=(other,)),
        pod("user", space.namespace, claims=("same",), command=LOOK),
        pod("others-user", space.namespace, claims=("other",), command=LOOK),
    )
    space.wait_running("user", "others-user")
    for name, claim_name, gpus in (("user", "same", 1), ("others-user", "other", 2)):
        devices = space.devices(claim_name)
        assert len({each.gpu for each in devices}) == gpus
        sees_exactly(space.view(name), devices)


def extended(body: Object, *limits: Object) -> Object:
    return using(body, *({"limits": each} for each in limits))


def test_extended_resources_are_devices_without_claims(cluster: Cluster, space: Workspace) -> None:
    """Pods that name extended resources only: the implicit claim, its mapping to containers, and what they see."""
    gpu, mig = "nvidia.com/gpu", "nvidia.com/mig-1g.10gb"
    pods = {
        "one": ({gpu: "1"},),
        "several-containers": ({mig: "1"}, {gpu: "1", mig: "2"}, {}),
        "slices": ({mig: "2"},),
    }
    space.apply(
        *(extended(pod(name, space.namespace, command=LOOK), *limits) for name, limits in pods.items()),
    )
    space.wait_running(*pods)
    for name, limits in pods.items():
        status = cluster.get(space.pods(name))["status"]["extendedResourceClaimStatus"]
        devices = space.devices(status["resourceClaimName"])
        assert len(devices) == sum(int(count) for each in limits for count in each.values())
        for number, each in enumerate(limits):
            mappings = [entry for entry in status["requestMappings"] if entry["containerName"] == f"c{number}"]
            assert {entry["resourceName"] for entry in mappings} == set(each)
            names = {entry["requestName"] for entry in mappings}
            sees_exactly(space.view(name, f"c{number}"), [device for device in devices if device.request in names])
    space.delete(*pods)
    cluster.wait(space.claims(), "the implicit claims are gone", lambda seen: not seen["items"])


@pytest.mark.parametrize("resource", ["nvidia.com/gpu", "deviceclass.resource.kubernetes.io/mig.nvidia.com"])
def test_an_extended_resource_of_an_init_container_is_shared_with_the_containers(
    space: Workspace, resource: str
) -> None:
    """As with other resources, what init containers ask for is not added to what containers ask for."""
    body = extended(pod("user", space.namespace, command=LOOK), {resource: "1"})
    first = dict(body["spec"]["containers"][0], name="first", command=["sh", "-c", "nvidia-smi -L; echo seen"])
    body["spec"]["initContainers"] = [first]
    space.apply(body)
    space.wait_running("user")
    status = space.cluster.get(space.pods("user"))["status"]["extendedResourceClaimStatus"]
    devices = space.devices(status["resourceClaimName"])
    assert len(devices) == 1
    sees_exactly(space.view("user"), devices)
    assert space.view("user", "first").gpus == {devices[0].gpu}
    assert json.dumps(status["requestMappings"]).count(resource) == 2
