"""What a ComputeDomain makes of lost daemons, nodes and objects: the planner against a cluster in memory."""

from dataclasses import replace

import pytest
from computedomain_world import World, condition, formed, indexes

from controller.computedomain.actions import (
    Delete,
    WriteMembership,
)
from controller.computedomain.state import ABSENT_AFTER_S, Phase


def test_a_lost_daemon_is_replaced_and_keeps_its_index() -> None:
    world = formed("n0", "n1")
    before = indexes(world)
    world.lose_pod(next(name for name, pod in world.pods.items() if pod.node == "n0"))
    plan = world.plan()
    assert any(isinstance(action, WriteMembership) for action in plan.actions), "the others are told at once"
    world.converge()
    assert indexes(world) == before
    assert len(world.pods) == 2
    assert condition(world, "Ready") == ("True", "Connected")


@pytest.mark.parametrize("behind_s", [0, 3600])
def test_a_daemon_that_keeps_failing_is_replaced_at_a_bounded_rate(behind_s: float) -> None:
    """Also where the controller's clock is behind the API server's."""
    world = formed("n0", "n1")
    name = next(iter(world.pods))
    world.pods[name] = replace(world.pods[name], phase=Phase.FINISHED, created_at=world.now + behind_s)
    plan = world.plan()
    assert not any(isinstance(action, Delete) for action in plan.actions)
    assert plan.wake_after_s is not None and plan.wake_after_s <= 10.0
    world.now += 10.0
    assert any(isinstance(action, Delete) for action in world.plan().actions)


def test_a_node_that_moved_to_another_rack_gets_its_new_clique() -> None:
    world = formed("n0", "n1")
    world.fabric["n0"] = "f.1"
    world.converge()
    assert indexes(world) == {"n0": ("f.1", 0), "n1": ("f.0", 1)}
    assert {pod.node: pod.clique_id for pod in world.pods.values()} == {"n0": "f.1", "n1": "f.0"}


def test_a_node_whose_plugin_is_away_keeps_its_place() -> None:
    world = formed("n0", "n1")
    before = indexes(world)
    del world.fabric["n0"]
    world.converge()
    assert indexes(world) == before


def test_a_node_whose_gpus_are_unwell_keeps_its_place_and_its_daemon() -> None:
    world = formed("n0", "n1")
    before, pods = indexes(world), set(world.pods)
    world.fabric["n0"] = ""
    world.converge()
    assert (indexes(world), set(world.pods)) == (before, pods)
    world.end_claims("n0")
    world.converge()
    world.add_claim("n0")
    world.converge()
    assert "n0" not in indexes(world), "with new pods it is what it says it is"


def _absent(world: World) -> set[str]:
    return {m.node for clique in world.cliques.values() for m in clique.membership.members if m.absent}


@pytest.mark.parametrize("behind_s", [0, 3600])
def test_a_node_that_is_lost_keeps_its_place_and_nobody_waits_for_it(behind_s: float) -> None:
    """Also where the controller's clock is behind that of who has found out."""
    world = formed("n0", "n1", "n2")
    before = indexes(world)
    world.lose_node("n0", at=world.now + behind_s)
    world.converge()
    assert not _absent(world), "it may be a moment only"
    wake_s = world.plan().wake_after_s
    assert wake_s is not None and wake_s <= ABSENT_AFTER_S
    world.now += ABSENT_AFTER_S
    assert any(isinstance(action, WriteMembership) for action in world.plan().actions), "the others are told at once"
    world.converge()
    assert _absent(world) == {"n0"}
    assert indexes(world) == before
    lost = [m for clique in world.cliques.values() for m in clique.membership.members if m.node == "n0"]
    assert lost[0].address, "where it is found when it comes back"
    assert condition(world, "Degraded") == ("True", "MemberLost")
    assert condition(world, "Ready") == ("True", "Connected"), "two were wanted, and two are connected"
    world.find_node("n0")
    world.converge()
    assert not _absent(world)
    assert condition(world, "Degraded") == ("False", "AsExpected")


def test_a_daemon_that_is_not_connected_on_a_node_that_lives_is_waited_for() -> None:
    world = formed("n0", "n1")
    name = next(iter(world.pods))
    world.pods[name] = replace(world.pods[name], phase=Phase.RUNNING)
    world.now += 10 * ABSENT_AFTER_S
    for action in world.plan().actions:
        world.apply(action)
    assert not _absent(world)


def test_with_release_policy_all_nodes_a_lost_node_is_not_counted_and_not_waited_for() -> None:
    world = formed("n0", "n1", "n2", wait_for_all=True)
    world.lose_node("n0")
    world.now += ABSENT_AFTER_S
    world.converge()
    released = {m.node for clique in world.cliques.values() for m in clique.membership.members if m.released}
    assert released == {"n1", "n2"}


def test_a_clique_that_somebody_deleted_is_made_again_with_new_daemons() -> None:
    world = formed("n0", "n1")
    world.cliques.clear()
    world.converge()
    assert len(world.cliques) == 1 and len(world.pods) == 2
    owners = {clique.ref.uid for clique in world.cliques.values()}
    assert {pod.owner_uid for pod in world.pods.values()} == owners
