"""The kubelet and the plugin on one real node: the rows "Kubelet/plugin" of the upstream DRA node suite.

The plugin runs as a plain process, so that it can be killed, paused and restarted; the kubelet is the real one.
"""

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.support.cluster import Cluster, Object, path, wait_until
from tests.support.hardware import Simulator
from tests.support.manifests import claim, claim_template, gpu_request, mig_request, pod
from tests.support.plugin import BARE_NODE, NodePlugin

REGISTER_S = 60.0
RETRY_S = 120.0  # the kubelet tries again 60 to 90 s after a failed preparation
CREATE = "nvmlDeviceCreateGpuInstanceWithPlacement"
DESTROY = "nvmlGpuInstanceDestroy"


@pytest.fixture
def simulator(cluster: Cluster) -> Iterator[Simulator]:
    hardware = Simulator(cluster, BARE_NODE)
    hardware.work()
    yield hardware
    hardware.work()


class Bench:
    """What the tests below do again and again on the bare node."""

    def __init__(self, cluster: Cluster, namespace: str) -> None:
        self.cluster, self.namespace = cluster, namespace

    def pods(self, name: str = "") -> str:
        return path("v1", "pods", namespace=self.namespace, name=name or None)

    def claims(self, name: str = "") -> str:
        return path("resource.k8s.io/v1", "resourceclaims", namespace=self.namespace, name=name or None)

    def start_mig_pod(self, name: str = "user", **options: Any) -> None:
        """A pod on the bare node with a claim of its own for one MIG slice."""
        self.cluster.apply(
            [
                claim_template("mig", self.namespace, mig_request()),
                pod(name, self.namespace, templates=("mig",), node=BARE_NODE, **options),
            ]
        )

    def wait_running(self, name: str = "user", patience_s: float = RETRY_S) -> Object:
        return self.cluster.wait(
            self.pods(name), f"{name} runs", lambda seen: seen["status"].get("phase") == "Running", patience_s
        )

    def wait_event(self, name: str, text: str, patience_s: float = 60.0) -> None:
        def seen() -> bool:
            events = self.cluster.list(path("v1", "events", namespace=self.namespace))
            return any(text in event.get("message", "") and event["involvedObject"]["name"] == name for event in events)

        wait_until(f"an event of {name} says {text!r}", seen, patience_s)

    def delete_pod(self, name: str = "user", patience_s: float = RETRY_S, **options: Any) -> None:
        self.cluster.delete(self.pods(name), **options)
        self.cluster.wait_gone(self.pods(name), patience_s)

    def slices(self, node: str = BARE_NODE) -> list[Object]:
        where = path("resource.k8s.io/v1", "resourceslices")
        return self.cluster.list(where, fieldSelector=f"spec.nodeName={node},spec.driver=gpu.nvidia.com")

    def slice_identities(self) -> list[tuple[str, str]]:
        return sorted((each["metadata"]["name"], each["metadata"]["resourceVersion"]) for each in self.slices())

    def wait_published(self) -> None:
        def complete() -> bool:
            found = self.slices()
            return bool(found) and len(found) == found[0]["spec"]["pool"]["resourceSliceCount"]

        wait_until("the node's slices are complete", complete)


@pytest.fixture
def bench(cluster: Cluster, namespace: str) -> Bench:
    return Bench(cluster, namespace)


def stays(what: str, holds: Callable[[], bool], for_s: float) -> None:
    """Fails as soon as it does not hold."""
    until = time.monotonic() + for_s
    while time.monotonic() < until:
        assert holds(), f"did not stay: {what}"
        time.sleep(0.5)


def test_registers_again_after_kubelet_restart(cluster: Cluster, plugin: NodePlugin) -> None:
    """A kubelet that comes back finds the plugin again within 60 s."""
    with plugin.running():
        cluster.run("kill", BARE_NODE, "kubelet")
        cluster.run("start", BARE_NODE, "kubelet")
        plugin.wait_logged("registered", REGISTER_S, count=2)
        cluster.wait_node(BARE_NODE)


def test_registers_again_after_plugin_restart(plugin: NodePlugin) -> None:
    """A plugin that was killed and comes back is registered again."""
    with plugin.running():
        plugin.kill()
        plugin.start()
        plugin.wait_logged("registered", REGISTER_S)


def test_is_registered_once_get_info_is_answered(cluster: Cluster, plugin: NodePlugin, bench: Bench) -> None:
    """While GetInfo gets no answer the driver is not registered; once it does, it is."""
    before = len(cluster.run("logs", BARE_NODE, "kubelet"))
    cluster.run("pause", BARE_NODE, "kubelet")
    plugin.start()
    try:
        plugin.wait_logged("serving")
        plugin.signal("STOP")
    finally:
        cluster.run("resume", BARE_NODE, "kubelet")
    wait_until(
        "the kubelet reports the failed registration",
        lambda: "RegisterPlugin error" in cluster.run("logs", BARE_NODE, "kubelet")[before:],
    )
    assert not any(line.get("msg") == "registered" for line in plugin.lines())
    plugin.signal("CONT")
    plugin.wait_logged("registered", REGISTER_S)


def test_pod_created_while_kubelet_is_down_runs_after_its_restart(
    cluster: Cluster, plugin: NodePlugin, bench: Bench
) -> None:
    """A pod that was bound to a node without kubelet starts when the kubelet is back."""
    with plugin.running():
        bench.wait_published()
        cluster.run("kill", BARE_NODE, "kubelet")
        bench.start_mig_pod()
        cluster.wait(bench.pods("user"), "user is bound", lambda seen: seen["spec"].get("nodeName"))
        cluster.run("start", BARE_NODE, "kubelet")
        bench.wait_running()
        bench.delete_pod()


def test_pod_waits_as_long_as_prepare_blocks(
    plugin: NodePlugin, bench: Bench, simulator: Simulator, cluster: Cluster
) -> None:
    """While hardware takes its time the pod stays Pending, and it runs when the hardware is done."""
    with plugin.running():
        bench.wait_published()
        simulator.slow(CREATE, 65_000)
        bench.start_mig_pod()
        cluster.wait(bench.pods("user"), "user is bound", lambda seen: seen["spec"].get("nodeName"))
        stays("Pending", lambda: cluster.get(bench.pods("user"))["status"]["phase"] == "Pending", 60.0)
        simulator.work()
        bench.wait_running(patience_s=180.0)
        bench.delete_pod()


def test_prepare_fails_then_succeeds(plugin: NodePlugin, bench: Bench, simulator: Simulator) -> None:
    """A preparation that the hardware refused is tried again, and the pod runs."""
    with plugin.running():
        bench.wait_published()
        simulator.fail(CREATE, "unknown")
        bench.start_mig_pod()
        bench.wait_event("user", "Failed to prepare dynamic resources")
        simulator.work()
        bench.wait_running(patience_s=180.0)
        bench.delete_pod()


def test_unprepare_fails_then_succeeds(
    plugin: NodePlugin, bench: Bench, simulator: Simulator, cluster: Cluster
) -> None:
    """A pod stays terminating while its slice cannot be destroyed, and goes once it can."""
    with plugin.running():
        bench.wait_published()
        bench.start_mig_pod()
        bench.wait_running()
        simulator.fail(DESTROY, "unknown")
        cluster.delete(bench.pods("user"))
        plugin.wait_logged("claim_not_unprepared")
        assert cluster.find(bench.pods("user")) is not None
        simulator.work()
        cluster.wait_gone(bench.pods("user"), RETRY_S)
        assert simulator.instances() == []


def test_prepare_is_retried_across_kubelet_restart(
    cluster: Cluster, plugin: NodePlugin, bench: Bench, simulator: Simulator
) -> None:
    """A kubelet that restarts after a failed preparation prepares the claim again."""
    with plugin.running():
        bench.wait_published()
        simulator.fail(CREATE, "unknown")
        bench.start_mig_pod()
        plugin.wait_logged("claim_not_prepared")
        cluster.run("kill", BARE_NODE, "kubelet")
        simulator.work()
        cluster.run("start", BARE_NODE, "kubelet")
        bench.wait_running()
        bench.delete_pod()


def test_unprepare_is_retried_across_kubelet_restart(
    cluster: Cluster, plugin: NodePlugin, bench: Bench, simulator: Simulator
) -> None:
    """A kubelet that restarts while a claim cannot be unprepared tries again until it can."""
    with plugin.running():
        bench.wait_published()
        bench.start_mig_pod()
        bench.wait_running()
        simulator.fail(DESTROY, "unknown")
        cluster.delete(bench.pods("user"))
        plugin.wait_logged("claim_not_unprepared")
        cluster.run("kill", BARE_NODE, "kubelet")
        simulator.work()
        cluster.run("start", BARE_NODE, "kubelet")
        cluster.wait_gone(bench.pods("user"), RETRY_S)
        assert simulator.instances() == []


@pytest.mark.parametrize("restart", [False, True], ids=["kubelet-up", "kubelet-restarted"])
def test_force_deleted_pod_is_unprepared(
    cluster: Cluster, plugin: NodePlugin, bench: Bench, simulator: Simulator, restart: bool
) -> None:
    """A pod that was removed from the API by force gives its slice back."""
    with plugin.running():
        bench.wait_published()
        bench.start_mig_pod()
        bench.wait_running()
        if restart:
            cluster.run("kill", BARE_NODE, "kubelet")
        cluster.delete(bench.pods("user"), gracePeriodSeconds=0)
        if restart:
            cluster.run("start", BARE_NODE, "kubelet")
        wait_until("the slice is destroyed", lambda: simulator.instances() == [], RETRY_S)


def test_pod_deleted_while_kubelet_is_down_is_not_prepared_again(
    cluster: Cluster, plugin: NodePlugin, bench: Bench, simulator: Simulator
) -> None:
    """Nothing is prepared for a pod that went while the kubelet was away, and nothing stays of what was half done."""
    with plugin.running():
        bench.wait_published()
        simulator.fail(CREATE, "unknown")
        bench.start_mig_pod()
        plugin.wait_logged("claim_not_prepared")
        cluster.run("kill", BARE_NODE, "kubelet")
        cluster.delete(bench.pods("user"), gracePeriodSeconds=0)
        cluster.wait_gone(bench.pods("user"))
        simulator.work()
        cluster.run("start", BARE_NODE, "kubelet")
        cluster.wait_node(BARE_NODE)
        stays("nothing is made", lambda: simulator.instances() == [], 10.0)
        assert not any(line.get("msg") == "claim_prepared" for line in plugin.lines())


def test_service_that_restarts_loses_its_slices_meanwhile_and_unprepares_after(
    cluster: Cluster, plugin: NodePlugin, bench: Bench, simulator: Simulator
) -> None:
    """The kubelet wipes the slices of a plugin that is away for long; back again, it publishes and unprepares."""
    with plugin.running():
        bench.wait_published()
        bench.start_mig_pod()
        bench.wait_running()
        plugin.kill()
        wait_until("the slices are wiped", lambda: bench.slices() == [])
        stays("no slices", lambda: bench.slices() == [], 5.0)
        cluster.delete(bench.pods("user"))
        plugin.start()
        cluster.wait_gone(bench.pods("user"), RETRY_S)
        bench.wait_published()
        assert simulator.instances() == []


def test_registration_socket_that_was_removed_comes_back(cluster: Cluster, plugin: NodePlugin) -> None:
    """Somebody cleans the kubelet's registry directory: the plugin registers again."""
    with plugin.running():
        cluster.in_node(BARE_NODE, "sh", "-c", "rm /var/lib/kubelet/plugins_registry/gpu.nvidia.com*")
        plugin.wait_logged("registered", REGISTER_S, count=2)


def test_all_calls_share_one_connection(cluster: Cluster, plugin: NodePlugin, bench: Bench) -> None:
    """Preparing, unpreparing and the health stream go over one connection of the kubelet."""
    with plugin.running():
        bench.wait_published()
        for name in ("first", "second"):
            bench.start_mig_pod(name)
            bench.wait_running(name)
            bench.delete_pod(name)
        table = cluster.in_node(BARE_NODE, "cat", "/proc/net/unix")
        # A connected stream socket of the server's side carries the path; the listener has the flag 00010000.
        connected = [line for line in table.splitlines() if line.endswith("/dra.sock") and " 00000000 " in line]
        assert len(connected) == 1


def test_kubelet_counts_claims_in_use(cluster: Cluster, plugin: NodePlugin, bench: Bench) -> None:
    """The kubelet's own metric shows the claim while the pod runs, and not after."""

    def in_use() -> float:
        text = cluster.kubectl("get", "--raw", f"/api/v1/nodes/{BARE_NODE}/proxy/metrics")
        rows = [row for row in text.splitlines() if row.startswith("dra_resource_claims_in_use{")]
        return sum(float(row.split()[-1]) for row in rows if "gpu.nvidia.com" in row)

    with plugin.running():
        bench.wait_published()
        bench.start_mig_pod()
        bench.wait_running()
        wait_until("one claim is in use", lambda: in_use() == 1)
        bench.delete_pod()
        wait_until("no claim is in use", lambda: in_use() == 0)


def test_kubelet_that_starts_wipes_and_plugin_publishes_again(
    cluster: Cluster, plugin: NodePlugin, bench: Bench
) -> None:
    """At its start a kubelet removes its node's slices; the plugin, still there, publishes them anew."""
    with plugin.running():
        bench.wait_published()
        before = {name for name, _ in bench.slice_identities()}
        cluster.run("kill", BARE_NODE, "kubelet")
        cluster.run("start", BARE_NODE, "kubelet")

        def anew() -> bool:
            now = {name for name, _ in bench.slice_identities()}
            return bool(now) and not now & before

        wait_until("the slices are other objects", anew)
        bench.wait_published()


@pytest.mark.parametrize("how", ["TERM", "STOP"], ids=["service-stop", "unresponsive"])
def test_slices_of_a_plugin_that_is_gone_are_removed(plugin: NodePlugin, bench: Bench, how: str) -> None:
    """The kubelet removes the slices of a plugin that left, and they stay away."""
    with plugin.running():
        bench.wait_published()
        if how == "STOP":
            plugin.signal("KILL")
        else:
            plugin.signal(how)
        plugin.wait_ended()
        wait_until("the slices are gone", lambda: bench.slices() == [])
        stays("no slices", lambda: bench.slices() == [], 5.0)


def test_plugin_that_restarts_soon_keeps_identical_slices(plugin: NodePlugin, bench: Bench) -> None:
    """A restart of five seconds changes no slice object, also after the kubelet's grace of 30 s."""
    with plugin.running():
        bench.wait_published()
        before = bench.slice_identities()
        plugin.kill()
        time.sleep(5.0)
        plugin.start()
        plugin.wait_registered()
        stays("the same slices", lambda: bench.slice_identities() == before, 40.0)


def health_of(seen: Object) -> set[str]:
    statuses = seen["status"].get("containerStatuses", [])
    entries = [entry for status in statuses for entry in status.get("allocatedResourcesStatus", [])]
    return {resource.get("health", "") for entry in entries for resource in entry.get("resources", [])}


def wait_health(bench: Bench, health: str, name: str = "user", patience_s: float = 60.0) -> None:
    bench.cluster.wait(bench.pods(name), f"{name} is {health}", lambda seen: health_of(seen) == {health}, patience_s)


def test_health_of_a_gpu_reaches_the_pods_that_use_it(
    plugin: NodePlugin, bench: Bench, simulator: Simulator, cluster: Cluster
) -> None:
    """Three pods see Healthy; a critical XID makes it Unhealthy for those on that GPU, a reset Healthy again."""
    with plugin.running():
        bench.wait_published()
        cluster.apply(
            [
                claim("whole", bench.namespace, gpu_request()),
                *(pod(f"user{n}", bench.namespace, claims=("whole",), node=BARE_NODE) for n in range(3)),
            ]
        )
        for n in range(3):
            bench.wait_running(f"user{n}")
            wait_health(bench, "Healthy", f"user{n}")
        device = cluster.get(bench.claims("whole"))["status"]["allocation"]["devices"]["results"][0]["device"]
        minor = int(device.removeprefix("gpu-"))
        simulator.xid(minor, 48)
        for n in range(3):
            wait_health(bench, "Unhealthy", f"user{n}")
        for n in range(3):
            bench.delete_pod(f"user{n}")


def test_health_is_unknown_while_the_plugin_is_away(plugin: NodePlugin, bench: Bench, cluster: Cluster) -> None:
    """Without the plugin nobody knows the health; with it, it is known again."""
    with plugin.running():
        bench.wait_published()
        bench.start_mig_pod()
        bench.wait_running()
        wait_health(bench, "Healthy")
        plugin.kill()
        wait_health(bench, "Unknown", patience_s=120.0)
        plugin.start()
        plugin.wait_registered()
        wait_health(bench, "Healthy")
        bench.delete_pod()
