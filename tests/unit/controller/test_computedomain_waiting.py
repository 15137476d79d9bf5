"""Pods that are deleted while they wait for their channel: their nodes are told not to wait."""

from dataclasses import replace

import pytest
from computedomain_world import World, condition, indexes, make_domain

from api.clique import Moment
from api.ref import Ref
from controller.computedomain.actions import WriteStatus
from controller.computedomain.report import SLOW_S
from controller.computedomain.state import ABSENT_AFTER_S, Phase
from controller.computedomain.status import find_condition
from controller.computedomain.waiting import FOLLOW_AFTER_S


def _waiting(*nodes: str) -> World:
    """Their daemons run, but never connect."""
    world = World(domain=make_domain(num_nodes=len(nodes)))
    for node in nodes:
        world.add_claim(node, f"claim-{node}")
    for _ in range(10):
        for action in world.plan().actions:
            world.apply(action)
        world.step_cluster()
        world.pods = {name: replace(pod, phase=Phase.RUNNING) for name, pod in world.pods.items()}
        world.now += 0.3
    return world


def _act(world: World) -> None:
    for action in world.plan().actions:
        world.apply(action)


def _abandoned(world: World) -> list[str]:
    """Names of the claims that nodes are told not to wait for."""
    names = {claim.ref.uid: name for name, claim in world.claims.items()}
    return sorted(names[uid] for clique in world.cliques.values() for uid in clique.membership.abandoned)


@pytest.mark.parametrize("behind_s", [0, 3600])
def test_pods_are_looked_at_only_when_they_have_waited_for_a_while(behind_s: float) -> None:
    """Also where the controller's clock is behind that of who allocated their claims."""
    world = World()
    world.add_claim("n0", "claim-n0")
    claim = world.claims["claim-n0"]
    world.claims["claim-n0"] = replace(claim, allocated=Moment(world.now + behind_s, is_known=True))
    plan = world.plan()
    assert not plan.follow_pods
    assert plan.wake_after_s is not None and plan.wake_after_s <= FOLLOW_AFTER_S
    world.now += FOLLOW_AFTER_S
    assert world.plan().follow_pods


def test_nobody_is_looked_at_once_all_channels_are_released() -> None:
    world = World()
    world.add_claim("n0")
    world.add_claim("n1")
    world.converge()
    world.now += FOLLOW_AFTER_S
    assert not world.plan().follow_pods


def test_the_node_of_a_pod_that_is_deleted_while_it_waits_is_told_at_once() -> None:
    world = _waiting("n0", "n1")
    world.leaving = {"uid-of-pod-claim-n0"}
    _act(world)
    assert _abandoned(world) == ["claim-n0"]
    assert not [action for action in world.plan().actions if "Clique" in type(action).__name__]


def test_a_claim_is_waited_for_while_one_of_its_pods_may_run() -> None:
    world = _waiting("n0", "n1")
    claim = world.claims["claim-n0"]
    world.claims["claim-n0"] = replace(claim, pods=(*claim.pods, Ref("Pod", "team", "other", "other")))
    world.leaving = {"uid-of-pod-claim-n0"}
    _act(world)
    assert _abandoned(world) == []
    world.leaving = {"uid-of-pod-claim-n0", "other"}
    _act(world)
    assert _abandoned(world) == ["claim-n0"]


def test_a_pod_on_a_node_for_which_there_is_no_place_is_let_go_too() -> None:
    world = _waiting("n0", "n1", "n2", "n3")
    world.leaving = {"uid-of-pod-claim-n3"}
    _act(world)
    assert _abandoned(world) == ["claim-n3"]


def test_a_pod_that_has_its_channel_is_not_let_go() -> None:
    world = World()
    world.add_claim("n0", "claim-n0")
    world.add_claim("n1", "claim-n1")
    world.converge()
    world.leaving = {"uid-of-pod-claim-n0"}
    world.converge()
    assert _abandoned(world) == []


def test_when_the_claim_has_gone_nothing_is_left_of_it() -> None:
    world = _waiting("n0", "n1")
    world.leaving = {"uid-of-pod-claim-n0"}
    _act(world)
    world.end_claims("n0")
    world.converge()
    assert _abandoned(world) == []
    assert [member.node for clique in world.cliques.values() for member in clique.membership.members] == ["n1"]


def _absent(world: World) -> set[str]:
    """Nodes that the others are told not to wait for."""
    return {m.node for clique in world.cliques.values() for m in clique.membership.members if m.absent}


def test_a_node_that_died_before_it_was_connected_is_waited_for_until_its_pods_are_being_deleted() -> None:
    """Its daemon was not ready before, so nothing tells of the death until Kubernetes gives up the pods."""
    world = _waiting("n0", "n1")
    before = indexes(world)
    world.now += 10 * ABSENT_AFTER_S
    _act(world)
    assert _absent(world) == set()
    world.give_up_pods("n1")
    _act(world)
    assert _absent(world) == {"n1"}
    assert indexes(world) == before
    world.now += ABSENT_AFTER_S
    _act(world)
    assert condition(world, "Degraded") == ("True", "MemberLost")


def test_a_node_with_a_pod_that_may_yet_start_is_waited_for() -> None:
    world = _waiting("n0", "n1")
    world.give_up_pods("n1")
    world.add_claim("n1")
    _act(world)
    assert _absent(world) == set()


def test_a_node_that_is_connected_after_all_is_not_called_absent() -> None:
    world = _waiting("n0", "n1")
    world.give_up_pods("n1")
    _act(world)
    world.converge()
    assert _absent(world) == set()
    assert condition(world, "Ready") == ("True", "Connected")


def test_pods_that_are_deleted_and_gone_at_once_leave_no_word_in_the_status() -> None:
    """On a node that lives; the domain forms on without it."""
    world = _waiting("n0", "n1", "n2")
    world.give_up_pods("n2")
    _act(world)
    world.now += 1.0
    world.end_claims("n2")
    world.converge()
    assert condition(world, "Degraded") == ("False", "AsExpected")
    told = [find_condition(each.status, "Degraded")["reason"] for each in world.writes if isinstance(each, WriteStatus)]
    assert "MemberLost" not in told


def test_a_node_whose_claim_is_of_pods_that_nobody_names_is_waited_for_and_the_claim_is_told_why() -> None:
    """It is reserved for a PodGroup; other pods of the namespace are being deleted."""
    world = _waiting("n0", "n1")
    claim = world.claims["claim-n0"]
    world.claims["claim-n0"] = replace(claim, pods=())
    world.leaving = {"somebody"}
    world.now += 10.0
    plan = world.plan()
    assert {report.regarding.kind for report in plan.reports if report.reason == "WaitingForComputeDomain"} == {
        "Pod",
        "ResourceClaim",
    }
    _act(world)
    assert _abandoned(world) == [] and _absent(world) == set()
    world.converge()
    assert condition(world, "Ready") == ("True", "Connected")


def test_where_nobody_says_when_a_claim_was_allocated_its_pod_has_waited_since_we_know_of_it() -> None:
    """Kubernetes 1.35 and older: the claim of a pod that was Pending for an hour is an hour old."""
    world = World()
    world.add_claim("n0", "claim-n0")
    claim = world.claims["claim-n0"]
    world.claims["claim-n0"] = replace(claim, allocated=Moment(world.now - 3600, is_known=False))
    plan = world.plan()
    assert not plan.reports and not plan.follow_pods
    assert plan.wake_after_s is not None and plan.wake_after_s <= FOLLOW_AFTER_S
    world.now += FOLLOW_AFTER_S
    assert world.plan().follow_pods
    world.now += SLOW_S
    assert [report.reason for report in world.plan().reports] == ["WaitingForComputeDomain"]
