"""The rows "Kubelet/plugin" that wait for the kubelet's long intervals: they run on several nodes at once.

Each test is one row; the first of them starts all rows, which share three nodes; that of two drivers has its own.
"""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from queue import Queue

import pytest

from tests.e2e.kubelet.two_drivers import block_one_and_fail_the_other, fabric_bench
from tests.support.bench import Bench, open_bench, stays
from tests.support.cluster import Cluster, wait_until
from tests.support.hardware import Simulator
from tests.support.plugin import SPARE_NODES, NodePlugin

CREATE = "nvmlDeviceCreateGpuInstanceWithPlacement"
Row = Callable[[Bench], None]


def wait_while_prepare_blocks(bench: Bench) -> None:
    bench.simulator.slow(CREATE, 64_000)
    bench.start_mig_pod()
    bench.wait_bound()
    stays("Pending", lambda: bench.cluster.get(bench.pods("user"))["status"]["phase"] == "Pending", 60.0)
    bench.wait_event("user", "Failed to prepare dynamic resources")
    bench.simulator.work()
    bench.wait_running()
    bench.delete_pod("user")


def force_delete_without_kubelet(bench: Bench) -> None:
    bench.start_mig_pod()
    bench.wait_running()
    bench.restart_kubelet(lambda: bench.ask_to_delete("user", gracePeriodSeconds=0))
    bench.wait_clean()


def hang(bench: Bench) -> None:
    bench.start_mig_pod("first")
    bench.wait_running("first")
    with bench.plugin.stopped():
        before = bench.slice_identities()
        bench.ask_to_delete("first")
        bench.start_mig_pod("second")
        bench.wait_bound("second")

        def nothing_happens() -> bool:
            second = bench.cluster.get(bench.pods("second"))["status"]["phase"]
            return "first" in bench.pod_names() and second == "Pending" and bench.slice_identities() == before

        stays("both wait", nothing_happens, 10.0)
    bench.wait_gone("first")
    bench.wait_running("second")
    bench.delete_pod("second")
    assert bench.holdings() == {}


def be_away_for_long(bench: Bench) -> None:
    bench.start_mig_pod()
    bench.wait_running()
    bench.plugin.kill()
    bench.ask_to_delete("user")
    wait_until("the slices are wiped", lambda: bench.slices() == [])
    stays("no slices", lambda: bench.slices() == [], 5.0)
    assert bench.cluster.find(bench.pods("user")) is not None
    bench.plugin.start()
    bench.wait_gone("user")
    bench.wait_published()
    assert bench.holdings() == {}


def stop(bench: Bench) -> None:
    bench.plugin.stop()
    wait_until("the slices are gone", lambda: bench.slices() == [])
    stays("no slices", lambda: bench.slices() == [], 5.0)


def restart_soon(bench: Bench) -> None:
    before = bench.slice_identities()
    bench.plugin.kill()
    time.sleep(5.0)
    bench.plugin.start()
    bench.plugin.wait_registered()
    stays("the same slices", lambda: bench.slice_identities() == before, 35.0)


ROWS: tuple[Row, ...] = (
    block_one_and_fail_the_other,
    wait_while_prepare_blocks,
    force_delete_without_kubelet,
    be_away_for_long,
    restart_soon,
    stop,
    hang,
)


@pytest.fixture(scope="module")
def play(cluster: Cluster, running_plugin: NodePlugin) -> Iterator[Callable[[Row], None]]:
    """Waits for the end of a row, and raises what went wrong in it; asked once more, it plays it anew."""
    spares = [NodePlugin(cluster, node) for node in SPARE_NODES]
    free: Queue[NodePlugin] = Queue()
    for plugin in (running_plugin, *spares):
        free.put(plugin)

    def run(row: Row) -> None:
        if row is block_one_and_fail_the_other:
            with fabric_bench(cluster) as bench:
                return row(bench)
        plugin = free.get()
        try:
            plugin.ensure()
            bench = open_bench(cluster, plugin, Simulator(cluster, plugin.node))
            try:
                bench.wait_published()
                row(bench)
            finally:
                bench.sweep()
        finally:
            free.put(plugin)

    cluster.get("/version")  # the connection to the API is made before several threads use it
    with ThreadPoolExecutor(free.qsize() + 1) as workers:
        begun = {row: workers.submit(run, row) for row in ROWS}
        yield lambda row: (begun.pop(row, None) or workers.submit(run, row)).result()
    for plugin in spares:
        plugin.kill()


def test_pod_waits_as_long_as_prepare_blocks(play: Callable[[Row], None]) -> None:
    """While the hardware takes its time the pod stays Pending for a minute, and it runs when the hardware is done."""
    play(wait_while_prepare_blocks)


def test_pod_that_is_force_deleted_while_kubelet_is_down_is_unprepared(play: Callable[[Row], None]) -> None:
    """A kubelet that finds a prepared claim without its pod gives it back, with its next look at all claims."""
    play(force_delete_without_kubelet)


def test_a_plugin_that_hangs_is_waited_for(play: Callable[[Row], None]) -> None:
    """Its socket lives and nobody answers: slices stay, one pod cannot end and another not start until it goes on."""
    play(hang)


@pytest.mark.timeout(900)
def test_of_two_drivers_one_is_blocked_and_the_other_fails_then_both_are_prepared_and_unprepared(
    play: Callable[[Row], None],
) -> None:
    """The pod waits for both, over a restart of the kubelet, runs when both can be had, and gives both back."""
    play(block_one_and_fail_the_other)


def test_slices_of_a_plugin_that_died_are_wiped_and_unprepare_works_after(play: Callable[[Row], None]) -> None:
    """The kubelet wipes the slices of a plugin that was killed, they stay away; back again, it gives the claim back."""
    play(be_away_for_long)


def test_slices_of_a_plugin_that_was_stopped_are_removed(play: Callable[[Row], None]) -> None:
    """The kubelet removes the slices of a plugin that left, and they stay away."""
    play(stop)


def test_plugin_that_restarts_soon_keeps_identical_slices(play: Callable[[Row], None]) -> None:
    """A restart of five seconds changes no slice object, also after the kubelet's grace of 30 s."""
    play(restart_soon)
