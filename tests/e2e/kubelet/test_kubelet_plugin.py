"""The kubelet and the plugin on one real node: the rows "Kubelet/plugin" of the upstream DRA node suite.

The plugin runs as a plain process, so that it can be killed, stopped and restarted; the kubelet is the real one. Rows
that take long are in test_kubelet_waits.py, a claim that is replaced by one of the same name in
tests/e2e/driver/test_preparing.py. Rows that cannot apply here, and why:

- "Notify fails, then works": the plugin has nothing that could make it refuse a notification.
- "DRA socket appears only after registration; one common socket": the plugin serves its DRA socket before it creates
  its registration socket, always two of them.
- "listener closed underneath": a socket file that somebody removes is put back instead of ending the process.
- "shareID": NVIDIA's GPUs are offered whole or as slices, none of which is allocated to several claims at a time.
"""

import time
from contextlib import ExitStack

import pytest

from tests.support.bench import Bench, stays
from tests.support.cluster import Cluster, Object, path, wait_until
from tests.support.hardware import Simulator
from tests.support.manifests import claim, gpu_request, pod
from tests.support.plugin import BARE_NODE, FABRIC_NODE, NodePlugin

REGISTER_S = 60.0
CREATE = "nvmlDeviceCreateGpuInstanceWithPlacement"
DESTROY = "nvmlGpuInstanceDestroy"
REGISTRY = "/var/lib/kubelet/plugins_registry"


# Registration


def test_registers_again_after_kubelet_restart(bench: Bench) -> None:
    """A kubelet that comes back finds the plugin again within 60 s."""
    bench.restart_kubelet()
    bench.plugin.wait_logged("registered", REGISTER_S)


def test_registers_again_after_plugin_restart(plugin: NodePlugin) -> None:
    """A plugin that was killed and comes back is registered again."""
    plugin.restart()
    plugin.wait_logged("registered", REGISTER_S)


def test_dead_registration_sockets_delay_nobody_and_their_removal_leaves_the_new_one_registered(
    cluster: Cluster, bench: Bench
) -> None:
    """A plugin that was killed again and again leaves no socket behind, and its successor prepares claims at once."""
    for _ in range(4):
        bench.plugin.restart()
        bench.plugin.wait_logged("serving")
    bench.plugin.wait_logged("registered", REGISTER_S)
    assert len(cluster.in_node(BARE_NODE, "ls", REGISTRY).split()) == 1
    time.sleep(3.0)  # longer than the kubelet takes to see that the old names are gone
    bench.start_mig_pod()
    bench.wait_running(patience_s=60.0)
    assert not any("Failed to prepare" in message for message in bench.events("user"))
    bench.delete_pod("user")


def test_is_registered_once_get_info_is_answered(cluster: Cluster, plugin: NodePlugin) -> None:
    """While GetInfo gets no answer the driver is not registered; once it does, it is."""
    plugin.kill()
    before = len(cluster.run("logs", BARE_NODE, "kubelet"))
    with ExitStack() as standing_still:
        cluster.run("pause", BARE_NODE, "kubelet")
        try:
            plugin.start()
            plugin.wait_logged("serving")
            standing_still.enter_context(plugin.stopped())
        finally:
            cluster.run("resume", BARE_NODE, "kubelet")
        wait_until(
            "the kubelet reports the failed registration",
            lambda: "RegisterPlugin error" in cluster.run("logs", BARE_NODE, "kubelet")[before:],
        )
        assert not plugin.logged("registered")
    plugin.wait_logged("registered", REGISTER_S)


@pytest.mark.parametrize(
    "socket",
    [f"{REGISTRY}/gpu.nvidia.com-*", "/var/lib/kubelet/plugins/gpu.nvidia.com/dra.sock"],
    ids=["registry", "dra"],
)
def test_socket_that_was_removed_comes_back(cluster: Cluster, bench: Bench, socket: str) -> None:
    """Somebody cleans the kubelet's directories: the plugin puts its socket back, and claims are prepared."""
    cluster.in_node(BARE_NODE, "sh", "-c", f"rm {socket}")
    bench.plugin.wait_logged("socket_removed")
    if "registry" in socket:
        bench.plugin.wait_logged("registered", REGISTER_S)
    wait_until("the socket is back", lambda: cluster.in_node(BARE_NODE, "sh", "-c", f"ls {socket}"))
    bench.start_mig_pod()
    bench.wait_running()
    bench.delete_pod("user")


def test_slices_are_published_without_a_kubelet_too(cluster: Cluster, bench: Bench) -> None:
    """A plugin whose kubelet is away publishes all the same, after a moment's patience."""
    bench.plugin.kill()

    def start_and_look() -> None:
        for each in bench.slices():
            cluster.delete(path("resource.k8s.io/v1", "resourceslices", name=each["metadata"]["name"]))
        bench.plugin.start()
        bench.wait_published()
        assert not bench.plugin.logged("registered")

    bench.restart_kubelet(start_and_look)
    bench.plugin.wait_logged("registered", REGISTER_S)


# Preparing


def test_pod_created_while_kubelet_is_down_runs_after_its_restart(cluster: Cluster, bench: Bench) -> None:
    """A pod that was bound to a node without kubelet starts when the kubelet is back."""

    def create() -> None:
        bench.start_mig_pod()
        bench.wait_bound()

    bench.restart_kubelet(create)
    bench.wait_running()
    bench.delete_pod("user")


def test_prepare_fails_then_succeeds(bench: Bench, simulator: Simulator) -> None:
    """A preparation that the hardware refused is tried again, and the pod runs; nothing is left of the attempts."""
    simulator.fail(CREATE, "unknown")
    bench.start_mig_pod()
    bench.wait_event("user", "Failed to prepare dynamic resources")
    assert bench.holdings() == {}
    bench.plugin.wait_logged("claim_not_prepared", count=2)
    simulator.work()
    bench.wait_running()
    bench.delete_pod("user")


def test_prepare_is_retried_across_kubelet_restart(cluster: Cluster, bench: Bench, simulator: Simulator) -> None:
    """A kubelet that restarts after a failed preparation prepares the claim again."""
    simulator.fail(CREATE, "unknown")
    bench.start_mig_pod()
    bench.plugin.wait_logged("claim_not_prepared")
    bench.restart_kubelet(simulator.work)
    bench.wait_running()
    bench.delete_pod("user")


def test_unprepare_fails_then_succeeds(bench: Bench, simulator: Simulator, cluster: Cluster) -> None:
    """A pod stays terminating while its slice cannot be destroyed, and goes once it can."""
    bench.start_mig_pod()
    bench.wait_running()
    simulator.fail(DESTROY, "unknown")
    bench.ask_to_delete("user")
    bench.plugin.wait_logged("claim_not_unprepared", count=2)
    assert cluster.find(bench.pods("user")) is not None
    simulator.work()
    bench.wait_gone("user")
    assert bench.holdings() == {}


def test_unprepare_is_retried_across_kubelet_restart(cluster: Cluster, bench: Bench, simulator: Simulator) -> None:
    """A kubelet that restarts while a claim cannot be unprepared tries again until it can."""
    bench.start_mig_pod()
    bench.wait_running()
    simulator.fail(DESTROY, "unknown")
    bench.ask_to_delete("user")
    bench.plugin.wait_logged("claim_not_unprepared")
    bench.restart_kubelet(simulator.work)
    bench.wait_gone("user")
    bench.wait_clean()


def test_pod_deleted_while_kubelet_is_down_is_not_prepared_again(
    cluster: Cluster, bench: Bench, simulator: Simulator
) -> None:
    """Nothing is prepared for a pod that went while the kubelet was away, and nothing stays of what was half done."""
    simulator.fail(CREATE, "unknown")
    bench.start_mig_pod()
    bench.plugin.wait_logged("claim_not_prepared")

    def delete() -> None:
        bench.delete_pod("user", gracePeriodSeconds=0)
        simulator.work()
        bench.plugin.mark()

    bench.restart_kubelet(delete)
    bench.plugin.wait_logged("registered", REGISTER_S)
    stays("nothing is made", lambda: simulator.instances() == [], 8.0)
    assert not bench.plugin.logged("claim_prepared"), "it was prepared again"
    assert not bench.plugin.logged("claim_not_prepared"), "it was tried again"


def test_force_deleted_pod_is_unprepared(bench: Bench) -> None:
    """A pod that was removed from the API by force gives its slice back."""
    bench.start_mig_pod()
    bench.wait_running()
    bench.ask_to_delete("user", gracePeriodSeconds=0)
    bench.wait_clean()


# Connections, metrics


def test_all_calls_share_one_connection(cluster: Cluster, bench: Bench) -> None:
    """Preparing, unpreparing and the health stream go over one connection of the kubelet."""
    for name in ("first", "second"):
        bench.start_mig_pod(name)
        bench.wait_running(name)
        bench.delete_pod(name)
    # Columns of the table: flags (00010000 where it listens), state (03 where connected), and the server's path, which
    # is the hidden one that was bound.
    rows = [line.split() for line in cluster.in_node(BARE_NODE, "cat", "/proc/net/unix").splitlines()[1:]]
    listening = {row[-1] for row in rows if row[3] == "00010000" and "/plugins/gpu.nvidia.com/" in row[-1]}
    connected = [row for row in rows if row[3] == "00000000" and row[5] == "03" and row[-1] in listening]
    assert (len(listening), len(connected)) == (1, 1)


def test_kubelet_counts_claims_in_use(cluster: Cluster, bench: Bench) -> None:
    """The kubelet's own metric shows the claim while the pod runs, and not after."""

    def in_use() -> float:
        text = cluster.kubectl("get", "--raw", f"/api/v1/nodes/{BARE_NODE}/proxy/metrics")
        rows = [row for row in text.splitlines() if row.startswith("dra_resource_claims_in_use{")]
        return sum(float(row.split()[-1]) for row in rows if "gpu.nvidia.com" in row)

    bench.start_mig_pod()
    bench.wait_running()
    wait_until("one claim is in use", lambda: in_use() == 1)
    bench.delete_pod("user")
    wait_until("no claim is in use", lambda: in_use() == 0)


# Slices


def test_kubelet_that_starts_wipes_its_nodes_slices_only_and_the_plugin_publishes_again(
    cluster: Cluster, bench: Bench
) -> None:
    """At its start a kubelet removes its node's slices, no other's; the plugin, still there, publishes them anew."""
    foreign = foreign_slice(cluster)
    before = {name for name, _ in bench.slice_identities()}
    bench.restart_kubelet()

    def anew() -> bool:
        now = {name for name, _ in bench.slice_identities()}
        return bool(now) and not now & before

    wait_until("the slices are other objects", anew)
    bench.wait_published()
    assert cluster.find(foreign) is not None
    cluster.delete(foreign)


def foreign_slice(cluster: Cluster) -> str:
    """A slice of the other node; its path."""
    spec = {
        "driver": "gpu.nvidia.com",
        "nodeName": FABRIC_NODE,
        "pool": {"name": "foreign", "generation": 1, "resourceSliceCount": 1},
    }
    body = {"apiVersion": "resource.k8s.io/v1", "kind": "ResourceSlice", "metadata": {"name": "foreign"}, "spec": spec}
    where = path("resource.k8s.io/v1", "resourceslices")
    if cluster.find(f"{where}/foreign") is None:
        cluster.create(where, body)
    return f"{where}/foreign"


# Health


def health_of(seen: Object) -> set[str]:
    statuses = seen["status"].get("containerStatuses", [])
    entries = [entry for status in statuses for entry in status.get("allocatedResourcesStatus", [])]
    return {resource.get("health", "") for entry in entries for resource in entry.get("resources", [])}


def wait_health(bench: Bench, health: str, *names: str, patience_s: float = 60.0) -> None:
    for name in names or ("user",):
        where, what = bench.pods(name), f"{name} is {health}"
        bench.cluster.wait(where, what, lambda seen: health_of(seen) == {health}, patience_s)


def test_health_of_a_gpu_reaches_the_pods_that_use_it(cluster: Cluster, bench: Bench, simulator: Simulator) -> None:
    """Healthy, Unhealthy when their GPU falls off the bus, Healthy again when it is back; on the other GPU Healthy."""
    users = {"left": "whole", "right": "whole", "other": "rest"}
    cluster.apply([claim(name, bench.namespace, gpu_request()) for name in ("whole", "rest")])
    cluster.apply([pod(name, bench.namespace, claims=(of,), node=BARE_NODE) for name, of in users.items()])
    bench.wait_running(*users)
    wait_health(bench, "Healthy", *users)
    minor = int(bench.allocated("whole")[0]["device"].removeprefix("gpu-"))
    simulator.inject("lost", "--gpu", str(minor))
    wait_health(bench, "Unhealthy", "left", "right")
    wait_health(bench, "Healthy", "other")
    time.sleep(4.0)  # no GPU is reset faster than the plugin looks twice at the hardware, every 3 s
    simulator.inject("lost", "--gpu", str(minor), "--off")
    wait_health(bench, "Healthy", *users)
    bench.delete_pod(*users)


def test_health_is_unknown_while_the_plugin_is_away(bench: Bench) -> None:
    """Without the plugin nobody knows the health; with it, it is known again."""
    bench.start_mig_pod()
    bench.wait_running()
    wait_health(bench, "Healthy")
    bench.plugin.kill()
    wait_health(bench, "Unknown", patience_s=120.0)
    bench.plugin.start()
    bench.plugin.wait_registered()
    wait_health(bench, "Healthy")
    bench.delete_pod("user")
