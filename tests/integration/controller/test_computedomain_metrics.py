"""What the controller tells monitors: what it counts, and whether it is alive and ready."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cluster import Cluster, path, wait_until
from tests.support.computedomain import DOMAINS, Controller, Kubelets, build_domain
from tests.support.domain_controller_world import World, kubelets, world
from tests.support.scrape import Metrics, free_port, get, scrape

__all__ = ["kubelets", "world"]

LABELS = {
    "partita_controller_actions_total": frozenset({"action"}),
    "partita_controller_reconcile_seconds": frozenset(),
    "nvidia_dra_compute_domain_info": frozenset({"status"}),
    "partita_controller_leading": frozenset(),
    "partita_controller_queue": frozenset(),
}


class Observed:
    """A controller, and the port on which it tells of itself."""

    def __init__(self, cluster: Cluster, log: Path) -> None:
        self.port = free_port()
        self.controller = Controller(cluster, log, options={"HTTP_ENDPOINT": f"127.0.0.1:{self.port}"})

    def metrics(self) -> Metrics:
        return scrape(self.port, "nvidia_dra_", "partita_")

    def is_ready(self) -> bool:
        return get(self.port, "/readyz") == (200, "ok\n")


@pytest.fixture
def leader(prepared: Cluster, tmp_path: Path) -> Iterator[Observed]:
    it = Observed(prepared, tmp_path / "leader.log")
    it.controller.start()
    try:
        it.controller.wait_leading()
        yield it
        assert it.controller.stop() == 0
    finally:
        it.controller.stop(signal.SIGKILL)


def test_domains_are_counted_by_status_and_what_was_done_for_them_by_kind(
    world: World, leader: Observed, kubelets: Kubelets
) -> None:
    world.form("counted", "cd-a", "cd-b")
    waiting = World(world.cluster, world.namespace)
    waiting.create(build_domain("waiting", 2))

    def counted() -> Metrics | None:
        now = leader.metrics()
        stored = [
            domain.get("status", {}).get("status") for domain in world.cluster.list(path(DOMAINS, "computedomains"))
        ]
        expected = {"Ready": stored.count("Ready"), "NotReady": len(stored) - stored.count("Ready")}
        settled = now.value("partita_controller_queue") == 0 and min(expected.values()) > 0
        return now if settled and now.by("status", "nvidia_dra_compute_domain_info") == expected else None

    now = wait_until("domains are counted as they are stored", counted)
    done = now.by("action", "partita_controller_actions_total")
    assert set(done) >= {"AddFinalizer", "Create", "WriteMembership", "WriteStatus"}
    assert done["Create"] >= 7, "two templates, a ComputeDomainClique, two daemons and their claims"
    assert (now.value("partita_controller_reconcile_seconds_count") or 0) >= 2
    assert now.labels == LABELS


def test_a_standby_is_ready_and_says_that_it_does_not_lead(prepared: Cluster, leader: Observed, tmp_path: Path) -> None:
    standby = Observed(prepared, tmp_path / "standby.log")
    standby.controller.start()
    try:
        standby.controller.wait_standing_by()
        for each, leads in ((leader, 1.0), (standby, 0.0)):
            wait_until("it is ready", each.is_ready)
            assert get(each.port, "/healthz") == (200, "ok\n")
            assert each.metrics().value("partita_controller_leading") == leads
        assert leader.controller.stop() == 0
        standby.controller.wait_leading()
        assert standby.metrics().value("partita_controller_leading") == 1.0
        wait_until("it is ready as a leader", standby.is_ready)
        assert standby.controller.stop() == 0
    finally:
        standby.controller.stop(signal.SIGKILL)
