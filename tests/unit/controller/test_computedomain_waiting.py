"""Pods that are deleted while they wait for their channel: their nodes are told not to wait."""

from dataclasses import replace

from computedomain_world import World, make_domain

from controller.computedomain.state import Phase, Ref
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


def test_pods_are_looked_at_only_when_they_have_waited_for_a_while() -> None:
    world = World()
    world.add_claim("n0")
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
