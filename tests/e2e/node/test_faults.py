"""What dies in the middle of claims: everything converges, pods run or end, nothing leaks, nothing is held twice."""

from collections.abc import Callable
from contextlib import ExitStack
from itertools import zip_longest
from typing import Any

import pytest

from kubeletplugin.settings import CRASH_STEPS
from tests.support.bench import Bench, stays
from tests.support.cluster import Cluster, wait_until
from tests.support.hardware import Simulator
from tests.support.plugin import BARE_NODE

PREPARE_STEPS = CRASH_STEPS[: CRASH_STEPS.index("done") + 1]
UNPREPARE_STEPS = CRASH_STEPS[len(PREPARE_STEPS) :]
CREATE = "nvmlDeviceCreateGpuInstanceWithPlacement"
DESTROY = "nvmlGpuInstanceDestroy"
SLICE, WHOLE = "slice", "whole"


def start_both(bench: Bench, **options: Any) -> None:
    """A pod with a MIG slice of one GPU, and one with all of the other."""
    bench.start_mig_pod(SLICE, **options)
    bench.start_gpu_pod(WHOLE, **options)


def check_both(bench: Bench) -> None:
    """Both run, each sees its device alone, and the node holds that and nothing else."""
    bench.wait_running(SLICE, WHOLE)
    assert bench.see(SLICE).count("MIG 1g.10gb") == 1
    assert "MIG" not in bench.see(WHOLE)
    assert bench.see(WHOLE).count("GPU ") == 1
    assert len(bench.simulator.instances()) == 1
    assert sorted(bench.records().values()) == ["completed", "completed"]
    assert len(bench.cdi_files()) == 2


# The plugin


@pytest.mark.parametrize(("preparing", "unpreparing"), list(zip_longest(PREPARE_STEPS, UNPREPARE_STEPS)))
def test_plugin_that_dies_in_the_middle_goes_on_after_its_restart(
    bench: Bench, preparing: str, unpreparing: str | None
) -> None:
    """Killed right after a durable step, and after another when claims are given back: pods run, then end; no trace."""
    bench.plugin.restart(PARTITA_CRASH_AFTER=preparing)
    bench.plugin.wait_registered()
    start_both(bench)
    assert bench.plugin.wait_ended() == 137
    bench.plugin.start()
    check_both(bench)
    if unpreparing is None:
        bench.delete_pod(SLICE, WHOLE)
    else:
        bench.plugin.restart(PARTITA_CRASH_AFTER=unpreparing)
        bench.plugin.wait_registered()
        bench.ask_to_delete(SLICE, WHOLE)
        assert bench.plugin.wait_ended() == 137
        bench.plugin.start()
        bench.wait_gone(SLICE, WHOLE)
    bench.wait_clean()


def test_plugin_that_is_killed_in_the_middle_of_a_hardware_call_finishes_after_its_restart(
    bench: Bench, simulator: Simulator
) -> None:
    """A GPU instance without compute instance, which nobody wrote down, is found and undone."""
    simulator.slow("nvmlGpuInstanceCreateComputeInstance", 20_000)
    start_both(bench)
    wait_until("the GPU instance is made", simulator.instances)
    bench.plugin.kill()
    simulator.work()
    bench.plugin.start()
    check_both(bench)
    bench.delete_pod(SLICE, WHOLE)
    bench.wait_clean()


# Around it


def kubelet(cluster: Cluster) -> None:
    cluster.run("kill", BARE_NODE, "kubelet")
    cluster.run("start", BARE_NODE, "kubelet")


def containerd(cluster: Cluster) -> None:
    cluster.run("kill", BARE_NODE, "containerd")
    cluster.run("start", BARE_NODE, "containerd")


def api_server(cluster: Cluster) -> None:
    cluster.run("kill", "control-plane", "apiserver")
    cluster.run("start", "control-plane", "apiserver")
    wait_until("the API server answers", lambda: cluster.get("/version"))


def etcd(cluster: Cluster) -> None:
    cluster.run("kill", "control-plane", "etcd")
    cluster.run("start", "control-plane", "etcd")
    wait_until("the API server is ready", lambda: cluster.kubectl("get", "--raw", "/readyz") == "ok")


@pytest.mark.parametrize("kill", [kubelet, containerd, api_server, etcd])
def test_what_dies_around_the_plugin_costs_no_claim(
    cluster: Cluster, bench: Bench, simulator: Simulator, kill: Callable[[Cluster], None]
) -> None:
    """Killed while claims are prepared and again while they are given back: the pods run, then end, without trace."""
    simulator.slow(CREATE, 3_000)
    simulator.slow(DESTROY, 3_000)
    # A container that was just being started when the kubelet or containerd died has failed: it is started again.
    start_both(bench, restartPolicy="Always")
    wait_until("a claim is begun", bench.records)
    kill(cluster)
    check_both(bench)
    bench.ask_to_delete(SLICE, WHOLE)
    kill(cluster)
    bench.wait_gone(SLICE, WHOLE)
    bench.wait_clean()


def test_node_that_is_cut_off_during_prepare_prepares_when_it_is_back(cluster: Cluster, bench: Bench) -> None:
    """Without the API server a claim cannot be read: the call waits for it, and the pod runs once it answers."""
    with ExitStack() as at_the_end:
        with bench.plugin.stopped():
            wait_called_twice(cluster, bench.start_mig_pod, lambda: bench.start_gpu_pod("other"))
            cluster.run("cut", BARE_NODE)
            at_the_end.callback(cluster.run, "heal", BARE_NODE)
        stays("nothing is prepared", lambda: bench.holdings() == {}, 5.0)
    bench.wait_running("user", "other")
    bench.delete_pod("user", "other")


def wait_called_twice(cluster: Cluster, *starts: Callable[[], None]) -> None:
    """Until the kubelet has read two claims and waits for the plugin, which is about to read them."""
    before = len(cluster.run("logs", BARE_NODE, "kubelet"))
    tell(cluster, 4)
    try:
        for start in starts:
            start()
        wait_until(
            "the kubelet calls the plugin twice",
            lambda: cluster.run("logs", BARE_NODE, "kubelet")[before:].count("Calling NodePrepareResources") == 2,
        )
    finally:
        tell(cluster, 0)


def tell(cluster: Cluster, verbosity: int) -> None:
    """The kubelet's log from now on."""
    where = f"/api/v1/nodes/{BARE_NODE}/proxy/debug/flags/v"
    cluster.kubectl("replace", "--raw", where, "--filename", "-", text=str(verbosity))


def test_power_cut_takes_the_slices_and_the_pods_come_back_with_theirs(cluster: Cluster, bench: Bench) -> None:
    """After a reboot, with another boot id, the slices are gone; the claims are rebuilt, and both pods run again."""
    boot = "/proc/sys/kernel/random/boot_id"
    before = cluster.in_node(BARE_NODE, "cat", boot)
    start_both(bench, restartPolicy="Always")
    check_both(bench)
    (old,) = bench.simulator.instances()
    cluster.run("poweroff", BARE_NODE)
    try:
        assert bench.simulator.instances() == []
    finally:
        cluster.run("poweron", BARE_NODE)
    assert cluster.in_node(BARE_NODE, "cat", boot) != before
    bench.plugin.kill()
    bench.plugin.start()
    bench.plugin.wait_registered()
    for name in (SLICE, WHOLE):
        where, what = bench.pods(name), f"{name} was restarted"
        cluster.wait(where, what, lambda seen: seen["status"]["containerStatuses"][0]["restartCount"] > 0, 180.0)
    check_both(bench)
    (new,) = bench.simulator.instances()
    assert new != old, "an instance's UUID is new at every creation"
    bench.delete_pod(SLICE, WHOLE)
    bench.wait_clean()


def test_lost_gpu_is_tainted_refused_and_given_back_without_being_asked(bench: Bench, simulator: Simulator) -> None:
    """Pods on a GPU that falls off the bus can end, no new pod gets it, and it is offered again when it is back."""
    bench.start_gpu_pod("first", "second")
    bench.wait_running("first", "second")
    minor = bench.allocated(bench.claim_of("first"))[0]["device"].removeprefix("gpu-")
    simulator.inject("lost", "--gpu", minor)

    def taints() -> list[object]:
        return [
            device["taints"]
            for name, device in bench.devices().items()
            if name == f"gpu-{minor}" and "taints" in device
        ]

    wait_until("the GPU is tainted", taints)
    bench.delete_pod("first")
    bench.start_gpu_pod("third")
    stays("third waits", lambda: "nodeName" not in bench.cluster.get(bench.pods("third"))["spec"], 4.0)
    simulator.inject("lost", "--gpu", minor, "--off")
    bench.wait_running("third")
    bench.delete_pod("second", "third")
