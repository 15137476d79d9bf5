"""Every sample runs, and each of its containers sees the devices of its claim and no others."""

import re
from collections import Counter
from collections.abc import Iterator

import pytest
import yaml

from tests.support.chart import Release
from tests.support.cluster import ROOT, Cluster, Object, path, wait_until
from tests.support.workload import claims_of

SAMPLES = sorted((ROOT / "deployments/samples").glob("*.yaml"))
NAMESPACE = "samples"


@pytest.fixture(scope="module")
def running(cluster: Cluster, release: Release) -> Iterator[None]:
    """All samples at once, which two nodes with eight GPUs each have room for."""
    cluster.create(path("v1", "namespaces"), {"metadata": {"name": NAMESPACE}})
    account = path("v1", "serviceaccounts", namespace=NAMESPACE, name="default")
    wait_until("the namespace has its service account", lambda: cluster.find(account))
    for sample in SAMPLES:
        cluster.kubectl("apply", "--namespace", NAMESPACE, "--filename", str(sample))
    yield
    cluster.delete(path("v1", "namespaces", name=NAMESPACE))
    cluster.wait_gone(path("v1", "namespaces", name=NAMESPACE), 120.0)


def pods_of(sample: str) -> list[str]:
    documents = yaml.safe_load_all((ROOT / "deployments/samples" / sample).read_text())
    return [each["metadata"]["name"] for each in documents if each["kind"] == "Pod"]


def allocated(cluster: Cluster, pod: Object, container: Object) -> list[Object]:
    """The attributes of the devices that are allocated to this container, by name."""
    results = []
    for reference in claims_of(pod, container):
        claim = cluster.get(path("resource.k8s.io/v1", "resourceclaims", namespace=NAMESPACE, name=reference[0]))
        for result in claim["status"]["allocation"]["devices"]["results"]:
            if reference[1] in (None, result["request"].partition("/")[0]):
                results.append((result["pool"], result["device"]))
    devices = {
        (piece["spec"]["pool"]["name"], device["name"]): device["attributes"]
        for piece in cluster.list(path("resource.k8s.io/v1", "resourceslices"))
        for device in piece["spec"].get("devices", ())
    }
    return [devices[each] for each in results]


@pytest.mark.parametrize("sample", [sample.name for sample in SAMPLES])
def test_each_container_of_a_sample_sees_exactly_its_devices(cluster: Cluster, running: None, sample: str) -> None:
    for name in pods_of(sample):
        pod = cluster.wait_pod(name, namespace=NAMESPACE)
        for container in pod["spec"]["containers"]:
            devices = allocated(cluster, pod, container)
            assert devices, f"{name}: nothing is allocated to container {container['name']}"
            check_view(cluster, name, container["name"], devices)


def check_view(cluster: Cluster, pod: str, container: str, devices: list[Object]) -> None:
    listed = cluster.in_pod(pod, "nvidia-smi", "-L", namespace=NAMESPACE, container=container)
    slices = [each for each in devices if each["type"]["string"] == "mig"]
    gpus = {(each.get("parentUUID") or each["uuid"])["string"] for each in devices}
    assert set(re.findall(r"^GPU .*\(UUID: (GPU-\S+)\)", listed, re.MULTILINE)) == gpus
    profiles = Counter(each["profile"]["string"] for each in slices)
    assert Counter(re.findall(r"^  MIG (\S+)", listed, re.MULTILINE)) == profiles
    files = cluster.in_pod(pod, "find", "/dev", "-type", "c", namespace=NAMESPACE, container=container).split()
    assert len([file for file in files if re.fullmatch(r"/dev/nvidia\d+", file)]) == len(gpus)
    # A MIG device is opened through two capability nodes: its GPU instance's and its compute instance's.
    assert len([file for file in files if "/nvidia-caps/" in file]) == 2 * len(slices)


def test_pods_that_share_a_claim_see_one_gpu(cluster: Cluster, running: None) -> None:
    views = set()
    for name in pods_of("gpu-shared-by-pods.yaml"):
        cluster.wait_pod(name, namespace=NAMESPACE)
        views.add(cluster.in_pod(name, "nvidia-smi", "-L", namespace=NAMESPACE))
    assert len(views) == 1


def test_slices_that_must_be_on_one_gpu_are(cluster: Cluster, running: None) -> None:
    pod = cluster.wait_pod("mig-two-slices-of-one-gpu", namespace=NAMESPACE)
    parents = {
        device["parentUUID"]["string"]
        for container in pod["spec"]["containers"]
        for device in allocated(cluster, pod, container)
    }
    assert len(parents) == 1


def test_when_the_samples_are_deleted_nothing_of_them_is_left_on_the_nodes(
    cluster: Cluster, release: Release, running: None
) -> None:
    for sample in SAMPLES:
        cluster.kubectl("delete", "--namespace", NAMESPACE, "--filename", str(sample), "--wait")
    claims = path("resource.k8s.io/v1", "resourceclaims", namespace=NAMESPACE)
    wait_until("the claims are gone", lambda: not cluster.list(claims))
    for node in release.nodes():
        assert cluster.in_node(node, "ls", "/var/run/cdi").split() == []
        assert "MIG" not in cluster.in_node(node, "/run/nvidia/driver/usr/bin/nvidia-smi", "-L")
