"""The rows "Kubelet/plugin" that wait for the kubelet's long intervals: they run on several nodes at once.

Each test is one row; the first of them starts all rows, which share three nodes.
"""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from queue import Queue

import pytest

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


ROWS: tuple[Row, ...] = (wait_while_prepare_blocks, force_delete_without_kubelet, be_away_for_long, restart_soon, stop)


@pytest.fixture(scope="module")
def rows(cluster: Cluster, running_plugin: NodePlugin) -> Iterator[dict[Row, Future[None]]]:
    """What comes of each row."""
    spares = [NodePlugin(cluster, node) for node in SPARE_NODES]
    free: Queue[NodePlugin] = Queue()
    for plugin in (running_plugin, *spares):
        free.put(plugin)

    def run(row: Row) -> None:
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
    with ThreadPoolExecutor(free.qsize()) as workers:
        yield {row: workers.submit(run, row) for row in ROWS}
    for plugin in spares:
        plugin.kill()


def test_pod_waits_as_long_as_prepare_blocks(rows: dict[Row, Future[None]]) -> None:
    """While the hardware takes its time the pod stays Pending for a minute, and it runs when the hardware is done."""
    rows[wait_while_prepare_blocks].result()


def test_pod_that_is_force_deleted_while_kubelet_is_down_is_unprepared(rows: dict[Row, Future[None]]) -> None:
    """A kubelet that finds a prepared claim without its pod gives it back, with its next look at all claims."""
    rows[force_delete_without_kubelet].result()


def test_slices_of_an_unresponsive_plugin_are_wiped_and_unprepare_works_after(rows: dict[Row, Future[None]]) -> None:
    """The kubelet wipes the slices of a plugin that was killed, they stay away; back again, it gives the claim back."""
    rows[be_away_for_long].result()


def test_slices_of_a_plugin_that_was_stopped_are_removed(rows: dict[Row, Future[None]]) -> None:
    """The kubelet removes the slices of a plugin that left, and they stay away."""
    rows[stop].result()


def test_plugin_that_restarts_soon_keeps_identical_slices(rows: dict[Row, Future[None]]) -> None:
    """A restart of five seconds changes no slice object, also after the kubelet's grace of 30 s."""
    rows[restart_soon].result()
