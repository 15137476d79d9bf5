"""Installing, upgrading, refusing and removing the chart on a real cluster."""

import base64
import json
import re
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest
import yaml

from tests.support.chart import CHART, Release
from tests.support.cluster import ROOT, Cluster, CommandFailed, Object, path, wait_until

SLICES = path("resource.k8s.io/v1", "resourceslices")
CLASSES = path("resource.k8s.io/v1", "deviceclasses")
SLICE_WIPE_S = 90.0  # kubelet removes the slices of a driver that has been away for 30 s


def a_slice(name: str, node: str | None, driver: str = "gpu.nvidia.com", pool: str = "n1") -> Object:
    where: Object = {"nodeName": node} if node else {"allNodes": True}
    return {
        "apiVersion": "resource.k8s.io/v1",
        "kind": "ResourceSlice",
        "metadata": {"name": name},
        "spec": {
            "driver": driver,
            "pool": {"name": pool, "generation": 1, "resourceSliceCount": 1},
            **where,
            "devices": [],
        },
    }


class PluginIdentity:
    """Requests with a token of the plugin's account, as a thief of that token would make them."""

    def __init__(self, release: Release, node: str | None) -> None:
        pod = release.pods()[node]["metadata"]["name"] if node else None
        bound = ["--bound-object-kind=Pod", f"--bound-object-name={pod}"] if pod else []
        account = "partita-kubelet-plugin"
        kubectl = release.cluster.kubectl
        self._token = kubectl("create", "token", account, "--namespace", release.namespace, *bound).strip()
        (cluster,) = (each["cluster"] for each in yaml.safe_load(release.cluster.kubeconfig.read_text())["clusters"])
        self._server = cluster["server"]
        authority = base64.b64decode(cluster["certificate-authority-data"]).decode()
        self._trust = ssl.create_default_context(cadata=authority)

    def request(self, method: str, where: str, body: Object | None = None) -> tuple[int, str]:
        """HTTP code, and the message where the server refused."""
        call = urllib.request.Request(self._server + where, json.dumps(body).encode() if body else None, method=method)
        call.add_header("Authorization", f"Bearer {self._token}")
        call.add_header("Content-Type", "application/json")
        try:
            with urllib.request.urlopen(call, context=self._trust, timeout=30) as answer:
                return answer.status, ""
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)["message"]


def test_a_plugin_writes_the_slices_of_its_own_node(release: Release) -> None:
    plugin = PluginIdentity(release, "n1")
    assert plugin.request("POST", SLICES, a_slice("own", "n1")) == (201, "")
    assert plugin.request("DELETE", f"{SLICES}/own") == (200, "")


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (a_slice("foreign", "n2"), 'the kubelet plugin on node "n1" may write the ResourceSlices of that node only'),
        (a_slice("everywhere", None), "not those of the whole cluster"),
        (a_slice("victim", "n1", pool="n2"), 'may write slices of the pool of that name only, not of "n2"'),
        (a_slice("other", "n1", "gpu.example.com"), 'publishes no devices of driver "gpu.example.com"'),
    ],
)
def test_a_plugin_may_not_create_slices_that_are_not_its_own(release: Release, body: Object, reason: str) -> None:
    code, message = PluginIdentity(release, "n1").request("POST", SLICES, body)
    assert code == 403
    assert reason in message


def test_a_plugin_may_neither_change_nor_delete_slices_of_another_node(cluster: Cluster, release: Release) -> None:
    foreign = next(each for each in release.slices() if each["spec"].get("nodeName") == "n2")
    where = f"{SLICES}/{foreign['metadata']['name']}"
    plugin = PluginIdentity(release, "n1")
    assert plugin.request("DELETE", where)[0] == 403
    changed = {**foreign, "metadata": {**foreign["metadata"], "labels": {"stolen": "yes"}}}
    assert plugin.request("PUT", where, changed)[0] == 403
    assert cluster.get(where)["metadata"]["uid"] == foreign["metadata"]["uid"]


def test_a_token_that_is_bound_to_no_pod_may_write_no_slice(release: Release) -> None:
    code, message = PluginIdentity(release, None).request("POST", SLICES, a_slice("unbound", "n1"))
    assert code == 403
    assert "is bound to no node" in message


@pytest.mark.parametrize("where", ["/api/v1/nodes", "/api/v1/secrets", "/api/v1/pods"])
def test_a_plugin_may_not_list_what_it_does_not_need(release: Release, where: str) -> None:
    assert PluginIdentity(release, "n1").request("GET", where)[0] == 403


def test_a_user_who_may_edit_a_namespace_may_make_compute_domains_there(cluster: Cluster, release: Release) -> None:
    def may(namespace: str) -> str:
        asked = ("create", "computedomains.resource.nvidia.com", "--as=jane", f"--namespace={namespace}")
        try:
            return cluster.kubectl("auth", "can-i", *asked).strip()
        except CommandFailed:
            return "no"

    cluster.kubectl("create", "rolebinding", "jane", "--clusterrole=edit", "--user=jane", "--namespace=default")
    try:
        wait_until("the role is aggregated", lambda: may("default") == "yes")
        assert may("kube-system") == "no"
    finally:
        cluster.kubectl("delete", "rolebinding", "jane", "--namespace=default")


def test_a_second_release_is_refused(release: Release) -> None:
    with pytest.raises(CommandFailed, match=r"DeviceClass \S+ belongs to partita"):
        Release(release.cluster, "second", "other").helm("install", "second", str(CHART), "--create-namespace")
    assert Release(release.cluster, "second").left() == []


def test_a_second_release_that_is_allowed_leaves_the_first_ones_classes_alone(release: Release) -> None:
    flags = ("--create-namespace", "--set", "allowOtherDriver=true", "--dry-run=server")
    rendered = Release(release.cluster, "second", "other").helm("install", "second", str(CHART), *flags)
    assert "kind: DaemonSet" in rendered
    assert "kind: DeviceClass" not in rendered


def test_nodes_with_simulated_hardware_say_so(cluster: Cluster, release: Release) -> None:
    for name in release.nodes():
        assert cluster.get(path("v1", "nodes", name=name))["metadata"]["labels"]["partita/simulated"] == "h100"


@pytest.fixture
def holder(cluster: Cluster, release: Release) -> Iterator[str]:
    """The name of a pod that holds a MIG slice."""
    sample = str(ROOT / "deployments/samples/mig-by-memory.yaml")
    cluster.kubectl("apply", "--filename", sample)
    cluster.wait_pod("mig-by-memory")
    yield "mig-by-memory"
    cluster.kubectl("delete", "--filename", sample, "--wait")


def test_an_upgrade_changes_neither_slices_nor_what_a_running_pod_holds(
    cluster: Cluster, release: Release, holder: str
) -> None:
    before = {each["metadata"]["name"]: each["metadata"]["resourceVersion"] for each in release.slices()}
    seen = cluster.in_pod(holder, "nvidia-smi", "-L")
    pods = {node: pod["metadata"]["uid"] for node, pod in release.pods().items()}
    release.install(logVerbosity="6")
    replaced = {node: pod["metadata"]["uid"] for node, pod in release.pods().items()}
    assert replaced.keys() == pods.keys() and not set(replaced.values()) & set(pods.values())
    assert {each["metadata"]["name"]: each["metadata"]["resourceVersion"] for each in release.slices()} == before
    assert cluster.in_pod(holder, "nvidia-smi", "-L") == seen


def test_after_an_upgrade_claims_are_still_prepared_and_released(cluster: Cluster, release: Release) -> None:
    release.install(logVerbosity="4")
    sample = str(ROOT / "deployments/samples/gpu-by-memory.yaml")
    cluster.kubectl("apply", "--filename", sample)
    cluster.wait_pod("gpu-by-memory")
    cluster.kubectl("delete", "--filename", sample, "--wait")
    cluster.wait_gone(path("v1", "pods", namespace="default", name="gpu-by-memory"))


def test_an_uninstalled_release_leaves_nothing(cluster: Cluster, release: Release) -> None:
    release.uninstall()
    wait_until("all of the release is gone", lambda: not release.left())
    wait_until("kubelet has removed the slices", lambda: not release.slices(), SLICE_WIPE_S)
    for name in release.nodes():
        assert "partita/simulated" not in cluster.get(path("v1", "nodes", name=name))["metadata"]["labels"]
        assert cluster.in_node(name, "ls", "/var/lib/kubelet/plugins_registry").split() == []
        assert ".sock" not in cluster.in_node(name, "ls", "/var/lib/kubelet/plugins/gpu.nvidia.com")
        assert cluster.in_node(name, "ls", "/var/run/cdi").split() == []
    release.install()


def test_a_class_of_somebody_else_is_a_reason_to_refuse(cluster: Cluster, release: Release) -> None:
    release.uninstall()
    foreign = {"apiVersion": "resource.k8s.io/v1", "kind": "DeviceClass", "metadata": {"name": "mig.nvidia.com"}}
    cluster.create(CLASSES, {**foreign, "spec": {}})
    try:
        with pytest.raises(CommandFailed, match=r"DeviceClass mig\.nvidia\.com belongs to somebody else"):
            release.install()
    finally:
        cluster.delete(f"{CLASSES}/mig.nvidia.com")
        release.install()


@pytest.mark.parametrize("resource", ["nvidia.com/gpu", "nvidia.com/mig-1g.10gb"])
def test_a_device_plugin_that_offers_the_same_gpus_is_a_reason_to_refuse(
    cluster: Cluster, release: Release, resource: str
) -> None:
    offered = {"status": {"capacity": {resource: "8"}}}
    node = path("v1", "nodes", name="n1")
    cluster.patch(f"{node}/status", offered)
    try:
        with pytest.raises(CommandFailed, match=f"node n1 already offers {re.escape(resource)}"):
            release.install()
    finally:
        cluster.patch(f"{node}/status", {"status": {"capacity": {resource: None}}})


def test_a_node_with_a_real_driver_gets_no_simulated_hardware(cluster: Cluster, release: Release) -> None:
    release.uninstall()
    library = "/run/nvidia/driver/usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1"
    empty = ("find", "/run/nvidia/driver", "-mindepth", "1", "-delete")
    cluster.in_node("n2", *empty)
    cluster.in_node("n2", "sh", "-c", f"mkdir -p $(dirname {library}) && echo real > {library}")
    try:
        with pytest.raises(CommandFailed):
            release.helm("install", "partita", str(CHART), "--set", "simulator.profile=h100", "--wait", "--timeout=10s")
        pod = release.pods()["n2"]["metadata"]["name"]
        logs = ("logs", "--namespace", release.namespace, pod, "--container", "simulated-hardware")
        assert "is a real NVIDIA library; simulated hardware is refused here" in cluster.kubectl(*logs)
        assert "real" in cluster.in_node("n2", "cat", library)
    finally:
        release.uninstall()
        cluster.in_node("n2", *empty)
        release.install()
