"""How domains grow, shrink and end, and what happens to running jobs meanwhile."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.e2e.computedomain.jobs import CONTROLLER, FORCE, PATIENCE_S, Driver, Space, condition
from tests.support.cluster import ApiError, CommandFailed, path, wait_until
from tests.support.hardware import Simulator

ELSEWHERE = "nvidia-dra-driver-gpu-2"


def test_a_deleted_domain_drains_its_jobs_keep_it_until_they_end_and_no_new_pod_gets_in(here: Space) -> None:
    job = here.job("train", 2)
    job.run(a="n1", b="n2")
    job.wait_ready(2)
    job.delete()
    message = job.wait_condition("Draining", "True", "ClaimsInUse")
    assert "(pod a)" in message
    assert "(pod b)" in message
    job.start(late="n3")
    here.wait_told("late", "resourceclaimtemplate .*not found|FailedResourceClaimCreation")
    job.share_all_ways("a", "b")
    here.end("a")
    job.wait("it waits for b alone", lambda domain: "(pod a)" not in condition(domain, "Draining")["message"])
    assert "OK" in job.check("b")
    here.end("b")
    here.cluster.wait_gone(job.place, PATIENCE_S)
    assert here.phase("late") == "Pending"


def test_the_force_annotation_ends_a_domain_under_its_pods(here: Space) -> None:
    job = here.job("train", 1)
    job.run(a="n1")
    job.wait_ready(1)
    job.delete()
    job.wait_condition("Draining", "True", "ClaimsInUse")
    here.cluster.patch(job.place, FORCE)
    here.cluster.wait_gone(job.place, PATIENCE_S)
    assert here.phase("a") == "Running"
    wait_until("the job can see it", lambda: "FAIL" in job.check("a"), PATIENCE_S)


def test_daemons_are_not_evicted_beside_their_jobs_and_their_budget_counts_them_as_healthy(here: Space) -> None:
    job = here.job("train", 2)
    job.run(a="n1", b="n3")
    job.wait_ready(2)
    ours = here.driver.namespace

    def are_counted() -> bool:
        (budget,) = here.cluster.list(path("policy/v1", "poddisruptionbudgets", namespace=ours))
        if all(budget["status"][each] == 2 for each in ("expectedPods", "desiredHealthy", "currentHealthy")):
            return True
        # The disruption controller learns of new kinds every 30 s, and then looks when something changes.
        touched = {"metadata": {"annotations": {"touched": budget["metadata"]["resourceVersion"]}}}
        here.cluster.patch(
            path("policy/v1", "poddisruptionbudgets", namespace=ours, name=budget["metadata"]["name"]), touched
        )
        return False

    wait_until("both daemons are counted", are_counted, PATIENCE_S)
    daemon = job.daemons()["n1"]["metadata"]["name"]
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": daemon, "namespace": ours}}
    with pytest.raises(ApiError, match="disruption budget") as refused:
        here.cluster.create(f"{path('v1', 'pods', namespace=ours, name=daemon)}/eviction", eviction)
    assert refused.value.status == 429


def test_an_elastic_domain_grows_and_shrinks_and_members_keep_their_indexes(here: Space) -> None:
    job = here.job("elastic")
    domain = job.wait_ready(0)
    assert condition(domain, "MembersKnown")["reason"] == "Elastic"
    job.run(a="n1")
    job.wait_ready(1)
    job.run(b="n2", c="n3")
    job.wait_ready(3)
    assert job.indexes() == {"n1": 0, "n2": 1, "n3": 0}
    job.share_all_ways("a", "b")
    here.end("a")
    job.wait_ready(2)
    assert job.indexes() == {"n2": 1, "n3": 0}
    assert set(job.daemons()) >= {"n2", "n3"}
    job.run(e="n1", d="n4")
    job.wait_ready(4)
    assert job.indexes() == {"n1": 0, "n2": 1, "n3": 0, "n4": 1}
    job.share_all_ways("e", "b")
    job.share_all_ways("c", "d")
    here.end("b", "c", "d", "e")
    job.wait_ready(0)
    wait_until("no daemon is left", lambda: not job.daemons(), PATIENCE_S)


def test_upgrades_do_not_touch_a_running_domain_and_its_older_daemons_take_newer_ones_in(here: Space) -> None:
    here.driver.load_as("older")
    here.driver.install(**{"image.tag": "older"})
    try:
        job = here.job("train", 2)
        job.run(a="n1", b="n2")
        job.wait_ready(2)
        before = {node: pod["metadata"]["uid"] for node, pod in job.daemons().items()}
    finally:
        here.driver.install()
    job.share_all_ways("a", "b")
    after = job.daemons()
    assert {node: pod["metadata"]["uid"] for node, pod in after.items()} == before
    assert all(pod["status"]["containerStatuses"][0]["restartCount"] == 0 for pod in after.values())
    job.run(c="n3")
    job.wait_ready(3)
    here.end("b")
    job.wait_ready(2)
    job.run(b="n2")
    job.wait_ready(3)
    images = {node: pod["spec"]["containers"][0]["image"].partition(":")[2] for node, pod in job.daemons().items()}
    assert images == {"n1": "older", "n2": "dev", "n3": "dev"}
    job.share_all_ways("a", "b")


def test_a_driver_that_is_installed_anew_elsewhere_takes_over_the_running_domain(here: Space) -> None:
    job = here.job("train", 2)
    job.run(a="n1", b="n2")
    job.wait_ready(2)
    first, second = here.driver, Driver(here.cluster, ELSEWHERE)
    first.uninstall()
    here.cluster.wait_gone(path("coordination.k8s.io/v1", "leases", namespace=first.namespace, name=CONTROLLER))
    second.install()
    here.driver = second
    try:
        wait_until("it has daemons there", lambda: len(job.daemons()) == 2, PATIENCE_S)
        job.wait_ready(2)
        job.share_all_ways("a", "b")
        pods = here.cluster.kubectl("get", "pods,computedomaincliques", "--namespace", first.namespace)
        assert pods.strip() == "", pods
    finally:
        here.end("a", "b")
        job.delete()
        here.cluster.wait_gone(job.place, PATIENCE_S)
        second.uninstall()
        here.driver = first
        first.install()


@contextmanager
def without_fabric(driver: Driver, node: str) -> Iterator[None]:
    """Its GPUs have no NVLink to other machines, and its plugin has found out."""
    hardware = Simulator(driver.cluster, node)
    try:
        hardware.inject("fabric", "--state", "not-supported")
        wait_until("the node offers channels of no clique", lambda: driver.cliques()[node] == "", PATIENCE_S)
        yield
    finally:
        hardware.inject("fabric", "--state", "completed")
        wait_until("it is in its clique again", lambda: driver.cliques()[node] != "", PATIENCE_S)


def test_on_a_node_without_fabric_pods_run_without_a_channel_and_the_domain_says_so(here: Space) -> None:
    with without_fabric(here.driver, "n4"):
        job = here.job("mixed", 2)
        job.run(c="n3", d="n4")
        domain = job.wait_ready(2)
        assert job.indexes() == {"n3": 0, "n4": -1}
        assert "1 nodes have no NVLink fabric" in condition(domain, "DaemonsReady")["message"]
        assert set(job.daemons()) == {"n3"}
        assert job.channels("c") == ["channel0"]
        assert job.channels("d") == []
        with pytest.raises(CommandFailed, match="there is no IMEX channel"):
            job.share("d", "c", wait_s=0)
        here.end("c", "d")
