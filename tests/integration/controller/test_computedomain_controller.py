"""The controller of ComputeDomains itself: who leads, what it writes, and what it does when it is refused or alone."""

import asyncio
import signal
from datetime import datetime
from pathlib import Path

import pytest

from api.client import Client, Conflict
from api.nesting import allow_deep_objects
from api.ref import Ref
from controller.computedomain.actions import AddFinalizer
from controller.computedomain.execute import Executor
from tests.support.cluster import ApiError, Cluster, Object, path, wait_until
from tests.support.computedomain import (
    DOMAINS,
    NAMESPACE,
    RELEASE,
    UID_LABEL,
    Controller,
    Kubelets,
    build_domain,
)
from tests.support.domain_controller_world import World, condition, controller, kubelets, world

__all__ = ["controller", "kubelets", "world"]


LEASE = path("coordination.k8s.io/v1", "leases", namespace=NAMESPACE, name=f"{RELEASE}-partita-controller")
LEASE_S = 15.0


def hand_over(cluster: Cluster, leader: Controller, standby: Controller, how: signal.Signals) -> float:
    """Seconds from the leader's last sign of life until the standby led, as they are written in the Lease."""
    standby.wait_standing_by()
    alive = cluster.get(LEASE)["spec"]["renewTime"]
    leader.signal(how)
    if how == signal.SIGKILL:
        leader.wait()
        alive = cluster.get(LEASE)["spec"]["renewTime"]  # it may have renewed once more
    standby.wait_leading()
    leads = cluster.get(LEASE)["spec"]["acquireTime"]
    return (datetime.fromisoformat(leads) - datetime.fromisoformat(alive)).total_seconds()


def test_a_standby_goes_on_with_half_a_plan_soon_after_a_clean_stop_and_after_a_kill_when_the_lease_has_run_out(
    world: World, prepared: Cluster, kubelets: Kubelets, tmp_path: Path
) -> None:
    """With the lease times that are the default: within 20 s of what the killed one has said last."""
    first, second, third = (Controller(prepared, tmp_path / f"{name}.log") for name in ("first", "second", "third"))
    try:
        first.start().wait_leading()
        second.start()
        world.create(build_domain("handover", 2))
        kubelets.ready = False
        world.start_workers("cd-a", "cd-b")
        wait_until("daemons are there", lambda: len(world.daemons()) == 2)
        assert hand_over(prepared, first, second, signal.SIGTERM) < LEASE_S, "it need not run out"
        assert first.wait() == 0
        kubelets.ready = True
        world.wait_ready(2)
        third.start()
        kubelets.ready = False
        world.start_workers("cd-c")
        wait_until("another daemon is there", lambda: len(world.daemons()) == 3)
        assert LEASE_S <= hand_over(prepared, second, third, signal.SIGKILL) < 20
        kubelets.ready = True
        world.wait_ready(3)
        world.end_workers()
        world.wait_reason("Idle")
        assert third.stop() == 0
    finally:
        for each in (first, second, third):
            each.stop(signal.SIGKILL)


def test_what_anybody_may_write_into_a_claim_holds_nobody_up(
    world: World, prepared: Cluster, kubelets: Kubelets, tmp_path: Path
) -> None:
    """10 KiB of a config for whatever driver, nested as deep as that goes: listed when it starts, and watched."""
    allow_deep_objects()  # for ourselves
    nested: list[Object] = [{"a": 1}]
    for _ in range(5000):
        nested = [nested]  # type: ignore[list-item]
    opaque = {"driver": "driver.example.com", "parameters": {"a": nested}}
    request = {"name": "r", "exactly": {"deviceClassName": "none.example.com"}}
    spec = {"devices": {"requests": [request], "config": [{"opaque": opaque}]}}
    where = path("resource.k8s.io/v1", "resourceclaims", namespace=world.namespace)
    templates = path("resource.k8s.io/v1", "resourceclaimtemplates", namespace=world.namespace)
    world.cluster.create(where, {"metadata": {"name": "deep"}, "spec": spec})
    controller = Controller(prepared, tmp_path / "controller.log").start()
    try:
        controller.wait_leading()
        world.cluster.create(where, {"metadata": {"name": "deeper"}, "spec": spec})
        world.cluster.create(templates, {"metadata": {"name": "deepest"}, "spec": {"spec": spec}})
        world.form("unmoved", "cd-a")
        assert controller.stop() == 0
    finally:
        controller.stop(signal.SIGKILL)
        for name in ("deep", "deeper"):
            world.cluster.delete(f"{where}/{name}")
        world.cluster.delete(f"{templates}/deepest")


def test_the_spec_cannot_be_changed(world: World, controller: Controller) -> None:
    world.create(build_domain("fixed", 2))
    with pytest.raises(ApiError, match=r"A computeDomain\.spec is immutable"):
        world.cluster.patch(f"{world.domains}/fixed", {"spec": {"numNodes": 3}})


def test_a_write_of_finalizers_that_loses_a_race_is_a_conflict_and_no_refusal(world: World) -> None:
    """Somebody else writes between our look and our write."""
    made = world.cluster.create(world.domains, build_domain("raced", 1))["metadata"]
    ref = Ref("ComputeDomain", world.namespace, "raced", made["uid"])

    class Late(Client):
        async def get(self, path: str) -> Object:
            seen = await super().get(path)
            await self.patch(path, {"metadata": {"annotations": {"theirs": "1"}}})
            return seen

    async def scenario() -> None:
        async with await Late.connect(str(world.cluster.kubeconfig)) as client:
            await Executor(client, lambda *_: None, lambda _: None).execute(AddFinalizer(ref))

    with pytest.raises(Conflict):
        asyncio.run(scenario())
    assert "finalizers" not in world.cluster.get(f"{world.domains}/raced")["metadata"]


def test_what_an_earlier_installation_left_in_another_namespace_goes(
    world: World, controller: Controller, kubelets: Kubelets
) -> None:
    elsewhere = {
        "metadata": {"name": "gone-uid.fabric.0", "labels": {UID_LABEL: "gone-uid"}},
        "domainName": "gone",
        "domainNamespace": world.namespace,
    }
    where = path(DOMAINS, "computedomaincliques", namespace=world.namespace)
    left = world.cluster.create(where, {"apiVersion": DOMAINS, "kind": "ComputeDomainClique", **elsewhere})
    owner = {
        "apiVersion": DOMAINS,
        "kind": "ComputeDomainClique",
        "name": left["metadata"]["name"],
        "uid": left["metadata"]["uid"],
    }
    owned = path("v1", "configmaps", namespace=world.namespace)
    world.cluster.create(owned, {"metadata": {"name": "old-imex", "ownerReferences": [owner]}})
    world.cluster.wait_gone(f"{where}/gone-uid.fabric.0")
    world.cluster.wait_gone(f"{owned}/old-imex")


def test_a_membership_that_somebody_holds_in_a_namespace_of_theirs_does_not_hold_the_domain(
    world: World, controller: Controller
) -> None:
    world.create(build_domain("held", 1))
    theirs = {
        "apiVersion": DOMAINS,
        "kind": "ComputeDomainClique",
        "metadata": {"name": f"{world.uid}.x", "labels": {UID_LABEL: world.uid}, "finalizers": ["example.com/mine"]},
    }
    where = path(DOMAINS, "computedomaincliques", namespace="default")
    world.cluster.create(where, theirs)
    try:
        world.cluster.delete(f"{world.domains}/held")
        world.cluster.wait_gone(f"{world.domains}/held")
    finally:
        world.cluster.patch(f"{where}/{world.uid}.x", {"metadata": {"finalizers": None}})
    world.cluster.wait_gone(f"{where}/{world.uid}.x")


def test_forming_costs_few_writes_and_the_status_goes_one_way(
    world: World, controller: Controller, kubelets: Kubelets
) -> None:
    """Counted by the API server: at most 8 writes and 2 for each node, in one clique; Events and leases not counted."""
    claims = path("resource.k8s.io/v1", "resourceclaims", namespace=NAMESPACE)
    wait_until("what earlier tests left is gone", lambda: not world.cluster.list(claims))
    before = len(controller.writes())
    world.form("cheap", "cd-a", "cd-b")
    writes = [
        write for write in controller.writes()[before:] if f"/{world.namespace}/" in write.uri or NAMESPACE in write.uri
    ]
    told = "\n".join(f"{entry.verb} {entry.uri} {entry.code}" for entry in writes)
    assert 8 <= len(writes) <= 8 + 2 * 2, told
    assert all(entry.code < 300 for entry in writes), f"nothing is refused, nothing conflicts:\n{told}"


def test_a_formation_outlives_the_death_of_the_api_server(
    world: World, prepared: Cluster, kubelets: Kubelets, tmp_path: Path
) -> None:
    patient = {"LEASE_DURATION": "2m", "LEASE_RENEW_DEADLINE": "100s"}
    controller = Controller(prepared, tmp_path / "controller.log", options=patient).start()
    try:
        controller.wait_leading()
        world.create(build_domain("outage", 2))
        kubelets.ready = False
        world.start_workers("cd-a", "cd-b")
        wait_until("daemons are there", lambda: len(world.daemons()) == 2)
        with prepared.without("control-plane", "apiserver"):
            kubelets.ready = True
        world.wait_ready(2)
        world.end_workers()
        world.wait_reason("Idle")
        wait_until("nothing of the formation is left", lambda: not world.leftovers())
        assert controller.stop() == 0
    finally:
        controller.stop(signal.SIGKILL)


def test_what_the_api_server_refuses_is_told_in_its_words_and_tried_again(
    world: World, controller: Controller, kubelets: Kubelets
) -> None:
    quotas = path("v1", "resourcequotas", namespace=NAMESPACE)
    world.cluster.create(quotas, {"metadata": {"name": "none"}, "spec": {"hard": {"pods": "0"}}})
    try:
        counted = f"{quotas}/none"
        world.cluster.wait(counted, "the quota is counted", lambda quota: "hard" in quota.get("status", {}))
        world.create(build_domain("refused", 1))
        world.start_workers("cd-a")
        domain = world.wait_reason("ActionFailed")
        assert "exceeded quota" in condition(domain, "Degraded")["message"]
    finally:
        world.cluster.delete(f"{quotas}/none")
    domain = world.wait_ready(1)
    assert condition(domain, "Degraded")["status"] == "False"
