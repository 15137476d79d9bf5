"""How a ComputeDomain ends, and what outlived one: the planner against a cluster in memory."""

from dataclasses import replace

import pytest
from computedomain_world import SETTINGS, UID, World, condition, formed, indexes

from api.clique import Membership, Moment
from api.ref import Ref
from controller.computedomain.actions import (
    Create,
    Delete,
    DropFinalizer,
    Plan,
    Situation,
)
from controller.computedomain.check import UnsafePlan, check_plan
from controller.computedomain.objects import DAEMON_GRACE_S
from controller.computedomain.state import OVERDUE_S, Clique, Template
from controller.computedomain.status import find_condition


def test_a_deleted_domain_in_use_drains_and_names_who_holds_it() -> None:
    world = formed("n0", "n1")
    world.delete_domain()
    world.converge()
    assert world.domain is not None
    assert condition(world, "Draining") == ("True", "ClaimsInUse")
    assert "pod-n0" in find_condition(world.domain.status, "Draining")["message"]
    assert not world.templates, "no new claim can be made"
    assert len(world.pods) == 2, "running jobs keep their daemons"
    assert all(clique.membership.draining for clique in world.cliques.values())
    world.claims.clear()
    world.converge()
    assert world.domain is None and not world.pods and not world.cliques


def test_a_template_that_nvidias_controller_made_goes_with_the_domain_that_was_taken_over() -> None:
    world = formed("n0", "n1")
    world.templates = {name: replace(each, has_finalizer=True) for name, each in world.templates.items()}
    world.delete_domain()
    world.converge()
    assert not world.templates, "no new claim can be made"
    assert world.domain is not None, "it is in use"
    world.templates["late"] = Template(Ref("ResourceClaimTemplate", "team", "late", "u"), UID, has_finalizer=True)
    world.claims.clear()
    world.converge()
    assert not world.templates and world.domain is None


def test_a_draining_domain_takes_no_new_nodes() -> None:
    world = formed("n0", "n1")
    world.delete_domain()
    world.now += 5
    world.add_claim("n2")
    world.converge()
    assert "n2" not in indexes(world)
    world.end_claims("n0")
    world.end_claims("n1")
    world.converge()
    assert world.domain is None, "a claim that was refused holds nothing"


def test_force_does_not_wait_for_anybody() -> None:
    world = formed("n0", "n1")
    world.delete_domain()
    assert world.domain is not None
    world.domain = replace(world.domain, force=True)
    world.converge()
    assert world.domain is None and not world.pods


@pytest.mark.parametrize(("node", "holds"), [("n0", True), ("plain", True), ("n2", False)])
def test_where_nobody_says_when_a_claim_was_allocated_it_counts_on_a_node_that_is_a_member(
    node: str, holds: bool
) -> None:
    world = formed("n0", "n1")
    world.add_claim(node, "undated")
    undated = replace(world.claims["undated"], allocated=Moment(world.now, is_known=False))
    world.delete_domain()
    world.claims = {"undated": undated}
    members = world.plan().members
    assert [claim.ref.name for claim in members.holders] == (["undated"] if holds else [])
    assert [claim.ref.name for claim in members.refused] == ([] if holds else ["undated"])


def _drain_undated() -> World:
    """Its jobs run on; the API server does not say when their claims were allocated."""
    world = formed("n0", "n1")
    undated = Moment(world.now, is_known=False)
    world.claims = {name: replace(claim, allocated=undated) for name, claim in world.claims.items()}
    world.delete_domain()
    world.converge()
    assert condition(world, "Draining") == ("True", "ClaimsInUse")
    return world


@pytest.mark.parametrize("all_at_once", [True, False])
def test_jobs_keep_a_deleted_domain_whose_driver_is_installed_anew_in_another_namespace(all_at_once: bool) -> None:
    world = _drain_undated()
    world.settings = replace(world.settings, namespace="anew")
    world.cliques = {f"old {name}": clique for name, clique in world.cliques.items()}
    world.pods.clear()
    world.daemon_claims.clear()
    if not all_at_once:
        for action in world.plan().actions[:1]:
            world.apply(action)
    world.converge()
    assert world.domain is not None
    assert condition(world, "Draining") == ("True", "ClaimsInUse")
    assert {clique.ref.namespace for clique in world.cliques.values()} == {"anew"}
    assert {pod.node for pod in world.pods.values()} == {"n0", "n1"}


def test_jobs_keep_a_deleted_domain_whose_membership_somebody_deletes() -> None:
    world = _drain_undated()
    world.cliques.clear()
    world.converge()
    assert world.domain is not None
    assert condition(world, "Draining") == ("True", "ClaimsInUse")
    assert indexes(world).keys() == {"n0", "n1"}


def test_nodes_are_told_when_the_domain_was_deleted() -> None:
    world = formed("n0", "n1")
    assert [clique.membership.deleted_at for clique in world.cliques.values()] == [None]
    world.delete_domain()
    world.converge()
    assert world.domain is not None
    (told,) = [clique.membership.deleted_at for clique in world.cliques.values()]
    assert told == pytest.approx(world.domain.deleted_at, abs=1.0)


def _end_with_a_lost_node(*, force: bool) -> World:
    """Until all is done that needs no kubelet of n0."""
    world = formed("n0", "n1")
    world.lose_node("n0")
    if not force:
        world.claims.clear()
    world.delete_domain()
    assert world.domain is not None
    world.domain = replace(world.domain, force=force)
    for _ in range(20):
        for action in world.plan().actions:
            world.apply(action)
        world.step_cluster()
        world.now += 0.3
    return world


@pytest.mark.parametrize("force", [False, True])
def test_a_domain_that_cannot_end_says_for_what_it_waits(force: bool) -> None:
    world = _end_with_a_lost_node(force=force)
    assert [pod.node for pod in world.pods.values()] == ["n0"]
    assert condition(world, "Ready") == ("False", "CleaningUp")
    assert world.domain is not None
    (pod,) = world.pods.values()
    message = find_condition(world.domain.status, "Draining")["message"]
    assert f"daemon pod {pod.ref} on node n0" in message


@pytest.mark.parametrize(("force", "patience_s"), [(False, OVERDUE_S), (True, 0.0)])
def test_a_daemon_whose_node_is_dead_holds_its_domain_for_a_while_only(force: bool, patience_s: float) -> None:
    world = _end_with_a_lost_node(force=force)
    (pod,) = world.pods.values()
    wake_s = world.plan().wake_after_s
    assert wake_s is not None and wake_s <= DAEMON_GRACE_S + patience_s
    world.now += wake_s - 1
    assert not world.plan().actions
    world.now += 1
    assert world.plan().actions == (Delete(pod.ref, at_once=True),)
    world.converge()
    assert world.domain is None and not world.pods


def test_an_end_that_takes_a_moment_writes_no_status() -> None:
    world = formed("n0", "n1")
    said = len(world.statuses)
    world.claims.clear()
    world.delete_domain()
    world.converge()
    assert world.domain is None
    assert len(world.statuses) == said


def test_a_node_that_was_dead_gets_a_daemon_again_when_the_one_before_is_overdue() -> None:
    world = formed("n0", "n1")
    world.lose_node("n0")
    world.end_claims("n0")
    for action in world.plan().actions:
        world.apply(action)
    (old,) = [pod for pod in world.pods.values() if pod.terminating]
    world.add_claim("n0")
    world.converge()
    assert [pod.terminating for pod in world.pods.values()] == [False, False]
    assert old.ref.uid not in [pod.ref.uid for pod in world.pods.values()]


def test_what_outlived_its_domain_is_removed_after_a_moment() -> None:
    world = formed("n0", "n1")
    world.domain = None
    first = world.plan()
    assert first.situation is Situation.GONE and not first.actions and first.wake_after_s
    world.converge()
    assert not world.pods and not world.cliques and not world.templates


def test_leftovers_of_an_installation_in_another_namespace_go() -> None:
    world = formed("n0", "n1")
    (clique,) = world.cliques.values()
    old = Clique(Ref("ComputeDomainClique", "elsewhere", "old", "old-uid"), "v", clique.membership)
    world.cliques["old"] = old
    world.converge()
    assert "old" not in world.cliques and len(world.cliques) == 1
    assert len(world.pods) == 2


def test_a_membership_in_a_strangers_namespace_that_does_not_go_holds_nobody_up() -> None:
    """Whoever may make one may give it a finalizer of theirs."""
    world = formed("n0", "n1")
    (clique,) = world.cliques.values()
    theirs = Ref("ComputeDomainClique", "stranger", f"{UID}.x", "theirs")
    world.cliques["theirs"] = Clique(theirs, "v", clique.membership, terminating=True)
    world.claims.clear()
    world.delete_domain()
    world.converge()
    assert world.domain is None and list(world.cliques) == ["theirs"]


def test_a_membership_in_another_namespace_goes_before_the_domain_does() -> None:
    world = formed()
    elsewhere = Ref("ComputeDomainClique", "elsewhere", f"{UID}.f.0", "old")
    world.cliques["old"] = Clique(elsewhere, "v", Membership(f"{UID}.f.0", UID, "", "", "f.0", 18, False, ()))
    world.delete_domain()
    world.templates.clear()
    assert [type(action) for action in world.plan().actions] == [Delete, DropFinalizer]


def test_a_plan_for_something_that_ends_makes_nothing() -> None:
    world = formed("n0", "n1")
    bad = Plan(Situation.ENDING, ((Create(Ref("Pod", "driver", "x"), {}),),))
    with pytest.raises(UnsafePlan, match="that ends"):
        check_plan(bad, world.observe(), SETTINGS)


def test_the_finalizer_stays_while_anything_is_left() -> None:
    world = formed("n0", "n1")
    assert world.domain is not None
    bad = Plan(Situation.ENDING, ((DropFinalizer(world.domain.ref),),))
    with pytest.raises(UnsafePlan, match="finalizer"):
        check_plan(bad, world.observe(), SETTINGS)
