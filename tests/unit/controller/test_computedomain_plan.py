"""What becomes of a ComputeDomain: the planner against a cluster in memory."""

from dataclasses import replace

import pytest
from computedomain_world import SETTINGS, UID, World, make_domain
from hypothesis import given, settings
from hypothesis import strategies as st

from api.clique import Moment
from controller.computedomain.actions import (
    Create,
    Delete,
    DropFinalizer,
    MakeCertificates,
    Plan,
    Situation,
    WriteBinding,
    WriteMembership,
)
from controller.computedomain.check import UnsafePlan, check_plan
from controller.computedomain.plan import plan_domain
from controller.computedomain.state import ABSENT_AFTER_S, OVERDUE_S, Binding, Clique, Phase, Ref, Settings, Template
from controller.computedomain.status import find_condition


def _condition(world: World, kind: str) -> tuple[str, str]:
    assert world.domain is not None
    found = find_condition(world.domain.status, kind)
    return found["status"], found["reason"]


def _indexes(world: World) -> dict[str, tuple[str, int]]:
    return {
        member.node: (clique.membership.clique_id, member.index)
        for clique in world.cliques.values()
        for member in clique.membership.members
    }


def _formed(*nodes: str, **changes: object) -> World:
    world = World(domain=make_domain(**changes))
    for node in nodes:
        world.add_claim(node)
    world.converge()
    return world


def test_a_new_domain_has_its_template_and_says_that_it_is_idle() -> None:
    world = _formed()
    assert list(world.templates) == ["channel"]
    assert not world.pods and not world.cliques and not world.secrets
    assert _condition(world, "Ready") == ("False", "Idle")


def test_a_domain_forms_around_the_nodes_whose_claims_are_allocated() -> None:
    world = _formed("n1", "n0")
    assert sorted(pod.node for pod in world.pods.values()) == ["n0", "n1"]
    assert _condition(world, "Ready") == ("True", "Connected")
    assert world.domain is not None and world.domain.status["progress"] == "2/2"
    (clique,) = world.cliques.values()
    assert all(member.released and member.address for member in clique.membership.members)


def test_formation_never_takes_back_what_it_said() -> None:
    world = _formed("n0", "n1")
    assert world.statuses == sorted(world.statuses)  # NotReady sorts before Ready: no way back
    assert len(world.statuses) <= 2


def test_the_first_allocated_node_gets_the_lowest_index() -> None:
    world = World()
    world.add_claim("n2")
    world.now += 1
    world.add_claim("n0")
    world.converge()
    assert _indexes(world) == {"n2": ("f.0", 0), "n0": ("f.0", 1)}


def test_one_domain_over_two_cliques_is_two_imex_domains() -> None:
    world = _formed("n0", "m0")
    assert _indexes(world) == {"n0": ("f.0", 0), "m0": ("f.1", 0)}
    assert len(world.secrets) == 2
    assert _condition(world, "Ready") == ("True", "Connected")


def test_a_node_without_fabric_is_a_ready_member_without_a_daemon() -> None:
    world = _formed("plain", "n0")
    assert [pod.node for pod in world.pods.values()] == ["n0"]
    assert _condition(world, "Ready") == ("True", "Connected")
    assert world.domain is not None
    assert "have no NVLink fabric" in find_condition(world.domain.status, "DaemonsReady")["message"]


def test_two_pods_of_the_domain_on_one_node_share_its_daemon() -> None:
    world = _formed("n0", "n0", "n1")
    assert len(world.pods) == 2


def test_a_claim_from_another_namespace_makes_no_member_and_is_told() -> None:
    world = World()
    world.add_claim("n0", namespace="intruder")
    plan = world.plan()
    assert not plan.members.members
    assert {(report.regarding.kind, report.reason) for report in plan.reports} == {
        ("ResourceClaim", "ForeignComputeDomain"),
        ("Pod", "ForeignComputeDomain"),
    }
    assert all("train" not in report.note for report in plan.reports)
    world.converge()
    assert not world.pods


def test_a_full_clique_leaves_the_latest_node_out_and_says_so() -> None:
    world = World()
    for node in ("n0", "n1", "n2", "n3"):
        world.add_claim(node)
        world.now += 1
    world.converge()
    assert "n3" not in _indexes(world)
    assert _condition(world, "Degraded") == ("True", "NodesLeftOut")
    assert _condition(world, "Ready") == ("True", "Connected")
    world.end_claims("n0")
    world.converge()
    assert _indexes(world)["n3"] == ("f.0", 0)
    assert _condition(world, "Degraded") == ("False", "AsExpected")


def test_of_nineteen_nodes_of_a_clique_the_last_waits_for_a_place_by_default() -> None:
    nodes = [f"r{number:02}" for number in range(19)]
    world = World(domain=make_domain(num_nodes=18), settings=Settings("driver", "partita:dev"))
    world.fabric = dict.fromkeys(nodes, "f.0")
    for node in nodes:
        world.add_claim(node)
        world.now += 1
    world.converge()
    assert {node: index for node, (_, index) in _indexes(world).items()} == {n: i for i, n in enumerate(nodes[:18])}
    assert len(world.pods) == 18
    assert _condition(world, "Ready") == ("True", "Connected")
    assert _condition(world, "Degraded") == ("True", "NodesLeftOut")
    world.now += 10
    assert [report.regarding.name for report in world.plan().reports] == [
        claim.pods[0].name for claim in world.claims.values() if claim.node == "r18"
    ]
    world.end_claims("r07")
    world.converge()
    assert _indexes(world)["r18"] == ("f.0", 7)


def test_another_limit_touches_no_clique_that_there_is() -> None:
    world = _formed("n0", "n1")
    wider = replace(SETTINGS, max_nodes_per_imex_domain=9)
    assert not plan_domain(world.observe(), wider).actions
    for node in ("n2", "n3"):
        world.add_claim(node)
    assert plan_domain(world.observe(), wider).members.left_out.keys() == {"n3"}


@pytest.mark.parametrize("tls", [True, False])
def test_a_daemon_that_is_replaced_is_as_its_domain_was_formed_whatever_the_settings_are_now(tls: bool) -> None:
    formed = replace(SETTINGS, tls=tls, node_list="names" if tls else "addresses")
    changed = replace(SETTINGS, tls=not tls, node_list="addresses" if tls else "names")
    world = World(settings=formed)
    for node in ("n0", "n1"):
        world.add_claim(node)
    world.converge()
    world.settings = changed
    assert not world.plan().actions
    for name in list(world.pods):
        world.lose_pod(name)
    (pod, _) = [action.body for action in world.plan().actions if isinstance(action, Create)]
    assert ("volumes" in pod["spec"]) is tls
    (container,) = pod["spec"]["containers"]
    environment = {entry["name"]: entry.get("value") for entry in container["env"]}
    assert environment["IMEX_NODE_LIST"] == formed.node_list


def test_a_daemon_asks_for_nothing_that_its_job_may_hold() -> None:
    world = World()
    world.add_claim("n0")
    made: list[Create] = []
    while not (made := [a for a in world.plan().actions if isinstance(a, Create) and a.ref.kind == "Pod"]):
        for action in world.plan().actions:
            world.apply(action)
    (container,) = made[0].body["spec"]["containers"]
    assert set(container["resources"]) == {"claims"}


def test_a_node_whose_devices_are_not_published_is_waited_for_by_name() -> None:
    world = World()
    world.add_claim("unknown")
    world.converge()
    assert world.domain is not None
    assert _condition(world, "Ready") == ("False", "NodesLeftOut")
    assert "node unknown" in find_condition(world.domain.status, "Ready")["message"]


def test_a_foreign_template_of_that_name_is_a_condition_and_is_left_alone() -> None:
    world = World()
    world.templates["channel"] = Template(Ref("ResourceClaimTemplate", "team", "channel", "theirs"), "")
    world.converge()
    assert _condition(world, "Ready") == ("False", "TemplateConflict")
    assert world.templates["channel"].ref.uid == "theirs"
    del world.templates["channel"]
    world.converge()
    assert world.templates["channel"].domain_uid == UID
    assert _condition(world, "Degraded") == ("False", "AsExpected")


def test_a_lost_daemon_is_replaced_and_keeps_its_index() -> None:
    world = _formed("n0", "n1")
    before = _indexes(world)
    world.lose_pod(next(name for name, pod in world.pods.items() if pod.node == "n0"))
    plan = world.plan()
    assert any(isinstance(action, WriteMembership) for action in plan.actions), "the others are told at once"
    world.converge()
    assert _indexes(world) == before
    assert len(world.pods) == 2
    assert _condition(world, "Ready") == ("True", "Connected")


def test_a_daemon_that_keeps_failing_is_replaced_at_a_bounded_rate() -> None:
    world = _formed("n0", "n1")
    name = next(iter(world.pods))
    world.pods[name] = replace(world.pods[name], phase=Phase.FINISHED, created_at=world.now)
    plan = world.plan()
    assert not any(isinstance(action, Delete) for action in plan.actions)
    assert plan.wake_after_s is not None and plan.wake_after_s <= 10.0
    world.now += 10.0
    assert any(isinstance(action, Delete) for action in world.plan().actions)


def test_a_node_that_moved_to_another_rack_gets_its_new_clique() -> None:
    world = _formed("n0", "n1")
    world.fabric["n0"] = "f.1"
    world.converge()
    assert _indexes(world) == {"n0": ("f.1", 0), "n1": ("f.0", 1)}
    assert {pod.node: pod.clique_id for pod in world.pods.values()} == {"n0": "f.1", "n1": "f.0"}


def test_a_node_whose_plugin_is_away_keeps_its_place() -> None:
    world = _formed("n0", "n1")
    before = _indexes(world)
    del world.fabric["n0"]
    world.converge()
    assert _indexes(world) == before


def test_a_node_whose_gpus_are_unwell_keeps_its_place_and_its_daemon() -> None:
    world = _formed("n0", "n1")
    before, pods = _indexes(world), set(world.pods)
    world.fabric["n0"] = ""
    world.converge()
    assert (_indexes(world), set(world.pods)) == (before, pods)
    world.end_claims("n0")
    world.converge()
    world.add_claim("n0")
    world.converge()
    assert "n0" not in _indexes(world), "with new pods it is what it says it is"


def _absent(world: World) -> set[str]:
    return {m.node for clique in world.cliques.values() for m in clique.membership.members if m.absent}


def test_a_node_that_is_lost_keeps_its_place_and_nobody_waits_for_it() -> None:
    world = _formed("n0", "n1", "n2")
    before = _indexes(world)
    world.lose_node("n0")
    world.converge()
    assert not _absent(world), "it may be a moment only"
    wake_s = world.plan().wake_after_s
    assert wake_s is not None and wake_s <= ABSENT_AFTER_S
    world.now += ABSENT_AFTER_S
    assert any(isinstance(action, WriteMembership) for action in world.plan().actions), "the others are told at once"
    world.converge()
    assert _absent(world) == {"n0"}
    assert _indexes(world) == before
    lost = [m for clique in world.cliques.values() for m in clique.membership.members if m.node == "n0"]
    assert lost[0].address, "where it is found when it comes back"
    assert _condition(world, "Degraded") == ("True", "MemberLost")
    assert _condition(world, "Ready") == ("True", "Connected"), "two were wanted, and two are connected"
    world.find_node("n0")
    world.converge()
    assert not _absent(world)
    assert _condition(world, "Degraded") == ("False", "AsExpected")


def test_a_daemon_that_is_not_connected_on_a_node_that_lives_is_waited_for() -> None:
    world = _formed("n0", "n1")
    name = next(iter(world.pods))
    world.pods[name] = replace(world.pods[name], phase=Phase.RUNNING)
    world.now += 10 * ABSENT_AFTER_S
    for action in world.plan().actions:
        world.apply(action)
    assert not _absent(world)


def test_with_release_policy_all_nodes_a_lost_node_is_not_counted_and_not_waited_for() -> None:
    world = _formed("n0", "n1", "n2", wait_for_all=True)
    world.lose_node("n0")
    world.now += ABSENT_AFTER_S
    world.converge()
    released = {m.node for clique in world.cliques.values() for m in clique.membership.members if m.released}
    assert released == {"n1", "n2"}


def test_a_node_that_leaves_loses_its_daemon_and_the_rest_stays() -> None:
    world = _formed("n0", "n1")
    world.end_claims("n0")
    world.converge()
    assert [pod.node for pod in world.pods.values()] == ["n1"]
    assert _indexes(world) == {"n1": ("f.0", 1)}


def test_when_the_last_pod_ends_the_domain_is_idle_again() -> None:
    world = _formed("n0", "n1")
    world.claims.clear()
    world.converge()
    assert not world.pods and not world.cliques and not world.secrets and not world.daemon_claims
    assert _condition(world, "Ready") == ("False", "Idle")
    assert list(world.templates) == ["channel"]


def test_an_elastic_domain_is_ready_with_nobody_and_with_whoever_is_there() -> None:
    world = _formed(num_nodes=0)
    assert _condition(world, "Ready") == ("True", "Idle")
    world.add_claim("n0")
    world.converge()
    assert _condition(world, "Ready") == ("True", "Connected")


def test_a_node_that_joins_a_ready_domain_does_not_take_its_readiness() -> None:
    world = _formed("n0", "n1")
    said = len(world.statuses)
    world.add_claim("n2")
    world.converge()
    assert set(world.statuses[said:]) <= {"Ready"}


def test_with_release_policy_all_nodes_nobody_is_released_before_everybody_is_connected() -> None:
    world = World(domain=make_domain(wait_for_all=True))
    world.add_claim("n0")
    world.converge()
    assert not any(m.released for clique in world.cliques.values() for m in clique.membership.members)
    world.add_claim("n1")
    world.converge()
    assert all(m.released for clique in world.cliques.values() for m in clique.membership.members)


def test_what_waiting_pods_are_told_does_not_change_with_every_node_that_comes() -> None:
    """Else every one of them would be written to every pod and into the membership."""
    world = World(domain=make_domain(wait_for_all=True, num_nodes=4))
    notes = set()
    for node in ("n0", "n1", "n2"):
        world.add_claim(node)
        world.converge()
        world.now += 10.0
        notes |= {report.note for report in world.plan().reports if report.reason == "WaitingForComputeDomain"}
    assert len(notes) == 1


def test_a_deleted_domain_in_use_drains_and_names_who_holds_it() -> None:
    world = _formed("n0", "n1")
    world.delete_domain()
    world.converge()
    assert world.domain is not None
    assert _condition(world, "Draining") == ("True", "ClaimsInUse")
    assert "pod-n0" in find_condition(world.domain.status, "Draining")["message"]
    assert not world.templates, "no new claim can be made"
    assert len(world.pods) == 2, "running jobs keep their daemons"
    assert all(clique.membership.draining for clique in world.cliques.values())
    world.claims.clear()
    world.converge()
    assert world.domain is None and not world.pods and not world.cliques and not world.secrets


def test_a_draining_domain_takes_no_new_nodes() -> None:
    world = _formed("n0", "n1")
    world.delete_domain()
    world.now += 5
    world.add_claim("n2")
    world.converge()
    assert "n2" not in _indexes(world)
    world.end_claims("n0")
    world.end_claims("n1")
    world.converge()
    assert world.domain is None, "a claim that was refused holds nothing"


def test_force_does_not_wait_for_anybody() -> None:
    world = _formed("n0", "n1")
    world.delete_domain()
    assert world.domain is not None
    world.domain = replace(world.domain, force=True)
    world.converge()
    assert world.domain is None and not world.pods


@pytest.mark.parametrize(("node", "holds"), [("n0", True), ("plain", True), ("n2", False)])
def test_where_nobody_says_when_a_claim_was_allocated_it_counts_on_a_node_that_is_a_member(
    node: str, holds: bool
) -> None:
    world = _formed("n0", "n1")
    world.add_claim(node, "undated")
    undated = replace(world.claims["undated"], allocated=Moment(world.now, is_known=False))
    world.delete_domain()
    world.claims = {"undated": undated}
    members = world.plan().members
    assert [claim.ref.name for claim in members.holders] == (["undated"] if holds else [])
    assert [claim.ref.name for claim in members.refused] == ([] if holds else ["undated"])


def test_nodes_are_told_when_the_domain_was_deleted() -> None:
    world = _formed("n0", "n1")
    assert [clique.membership.deleted_at for clique in world.cliques.values()] == [None]
    world.delete_domain()
    world.converge()
    assert world.domain is not None
    (told,) = [clique.membership.deleted_at for clique in world.cliques.values()]
    assert told == pytest.approx(world.domain.deleted_at, abs=1.0)


def _end_with_a_lost_node(*, force: bool) -> World:
    """Until all is done that needs no kubelet of n0."""
    world = _formed("n0", "n1")
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
    assert _condition(world, "Ready") == ("False", "CleaningUp")
    assert world.domain is not None
    (pod,) = world.pods.values()
    message = find_condition(world.domain.status, "Draining")["message"]
    assert f"daemon pod {pod.ref} on node n0" in message


@pytest.mark.parametrize(("force", "patience_s"), [(False, OVERDUE_S), (True, 0.0)])
def test_a_daemon_whose_node_is_dead_holds_its_domain_for_a_while_only(force: bool, patience_s: float) -> None:
    world = _end_with_a_lost_node(force=force)
    (pod,) = world.pods.values()
    wake_s = world.plan().wake_after_s
    assert wake_s is not None and world.now + wake_s == pytest.approx(pod.ends_by + patience_s)
    world.now = pod.ends_by + patience_s - 1
    assert not world.plan().actions
    world.now += 1
    assert world.plan().actions == (Delete(pod.ref, at_once=True),)
    world.converge()
    assert world.domain is None and not world.pods


def test_an_end_that_takes_a_moment_writes_no_status() -> None:
    world = _formed("n0", "n1")
    said = len(world.statuses)
    world.claims.clear()
    world.delete_domain()
    world.converge()
    assert world.domain is None
    assert len(world.statuses) == said


def test_a_node_that_was_dead_gets_a_daemon_again_when_the_one_before_is_overdue() -> None:
    world = _formed("n0", "n1")
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
    world = _formed("n0", "n1")
    world.domain = None
    first = world.plan()
    assert first.situation is Situation.GONE and not first.actions and first.wake_after_s
    world.converge()
    assert not world.pods and not world.cliques and not world.templates and not world.secrets


def test_leftovers_of_an_installation_in_another_namespace_go() -> None:
    world = _formed("n0", "n1")
    (clique,) = world.cliques.values()
    old = Clique(Ref("ComputeDomainClique", "elsewhere", "old", "old-uid"), "v", clique.membership)
    world.cliques["old"] = old
    world.converge()
    assert "old" not in world.cliques and len(world.cliques) == 1
    assert len(world.pods) == 2


def test_a_clique_that_somebody_deleted_is_made_again_with_new_daemons() -> None:
    world = _formed("n0", "n1")
    world.cliques.clear()
    world.converge()
    assert len(world.cliques) == 1 and len(world.pods) == 2
    owners = {clique.ref.uid for clique in world.cliques.values()}
    assert {pod.owner_uid for pod in world.pods.values()} == owners
    assert {secret.owner_uid for secret in world.secrets.values()} == owners


def test_a_certificate_is_renewed_in_place_when_its_time_has_come() -> None:
    world = _formed("n0", "n1")
    wake_s = world.plan().wake_after_s
    assert wake_s is not None and wake_s > 0
    world.now += wake_s
    (renewal,) = world.plan().actions
    (secret,) = world.secrets.values()
    assert isinstance(renewal, MakeCertificates) and renewal.renew and renewal.ref == secret.ref


def test_formation_costs_two_writes_a_node_and_a_few_more() -> None:
    nodes = ["n0", "n1", "n2", "m0", "m1"]
    world = World(domain=make_domain(num_nodes=len(nodes)))
    for node in nodes:
        world.add_claim(node)
    world.converge()
    cliques = 2
    assert len(world.writes) <= 8 + 2 * len(nodes) + 4 * (cliques - 1)


@pytest.mark.parametrize("together", [True, False], ids=["all at once", "one after the other"])
def test_the_first_address_waits_for_the_others_however_long_words_and_joins_have_waited(together: bool) -> None:
    world = World()
    world.add_claim("n0")
    if together:
        world.add_claim("n1")
    for _ in range(4):
        for action in world.plan().actions:
            world.apply(action)
        if "n1" not in [claim.node for claim in world.claims.values()]:
            world.add_claim("n1")
    world.plan()  # the daemons' pods are starting, and n1 has joined: words that wait
    world.now += 1.9
    name = next(name for name, pod in world.pods.items() if pod.node == "n0")
    world.pods[name] = replace(world.pods[name], phase=Phase.RUNNING, address="10.0.0.1")
    assert not [action for action in world.plan().actions if isinstance(action, WriteMembership)]
    world.now += 0.2
    assert not [action for action in world.plan().actions if isinstance(action, WriteMembership)]
    world.now += 2.0
    assert [action for action in world.plan().actions if isinstance(action, WriteMembership)]


def test_a_plan_for_something_that_ends_makes_nothing() -> None:
    world = _formed("n0", "n1")
    bad = Plan(Situation.ENDING, ((Create(Ref("Pod", "driver", "x"), {}),),))
    with pytest.raises(UnsafePlan, match="that ends"):
        check_plan(bad, world.observe(), SETTINGS)


def test_the_finalizer_stays_while_anything_is_left() -> None:
    world = _formed("n0", "n1")
    assert world.domain is not None
    bad = Plan(Situation.ENDING, ((DropFinalizer(world.domain.ref),),))
    with pytest.raises(UnsafePlan, match="finalizer"):
        check_plan(bad, world.observe(), SETTINGS)


# --- every interruption, every history ---------------------------------------------------------------------------


def _assert_settled(world: World) -> None:
    """What must be true whenever nothing changes any more, whatever happened before."""
    assert not plan_domain(world.observe(), SETTINGS).actions
    if world.domain is None:
        assert not (world.pods or world.cliques or world.daemon_claims or world.secrets or world.templates)
        return
    positions = [
        (clique.membership.clique_id, member.index)
        for clique in world.cliques.values()
        for member in clique.membership.members
    ]
    assert len(set(positions)) == len(positions)
    members = plan_domain(world.observe(), SETTINGS).members.members
    with_daemon = {member.node for member in members if member.index >= 0}
    assert {pod.node for pod in world.pods.values()} == with_daemon
    assert set(_indexes(world)) == with_daemon
    owner = {m.node: c.ref.uid for c in world.cliques.values() for m in c.membership.members}
    assert {claim.node: claim.owner_uid for claim in world.daemon_claims.values()} == owner
    assert {pod.node: pod.owner_uid for pod in world.pods.values()} == owner
    assert {secret.owner_uid for secret in world.secrets.values()} == {c.ref.uid for c in world.cliques.values()}


@pytest.mark.parametrize("cut", range(14))
def test_a_formation_cut_after_any_action_is_finished_later(cut: int) -> None:
    world = World()
    world.add_claim("n0")
    world.add_claim("m0")
    done = 0
    while done < cut:
        actions = world.plan().actions
        for action in actions[: cut - done]:
            world.apply(action)
        done += max(len(actions), 1)
        world.step_cluster()
        world.now += 0.2
    world.held.clear()  # the next leader remembers nothing
    world.converge()
    _assert_settled(world)
    assert _condition(world, "Ready") == ("True", "Connected")


@pytest.mark.parametrize("cut", range(12))
def test_a_tear_down_cut_after_any_action_is_finished_later(cut: int) -> None:
    world = _formed("n0", "m0")
    world.claims.clear()
    world.delete_domain()
    done = 0
    while done < cut and world.domain is not None:
        actions = world.plan().actions
        for action in actions[: cut - done]:
            world.apply(action)
        done += max(len(actions), 1)
        world.step_cluster()
    world.held.clear()
    world.converge()
    _assert_settled(world)
    assert world.domain is None


_NODES = st.sampled_from(["n0", "n1", "n2", "n3", "m0", "m1", "plain"])
_EVENTS = st.one_of(
    st.tuples(st.just("claim"), _NODES),
    st.tuples(st.just("end"), _NODES),
    st.tuples(st.just("lose"), st.integers(0, 5)),
    st.tuples(st.just("fail"), st.integers(0, 5)),
    st.tuples(st.just("move"), _NODES),
    st.tuples(st.just("die"), _NODES),
    st.tuples(st.just("come back"), _NODES),
    st.tuples(st.just("act"), st.integers(0, 9)),
    st.tuples(st.just("cluster"), st.just(0)),
    st.tuples(st.just("drop"), st.sampled_from(["cliques", "secrets", "templates", "daemon_claims"])),
    st.tuples(st.just("delete"), st.just(0)),
    st.tuples(st.just("forget"), st.just(0)),
)


def _happen(world: World, event: tuple[str, object]) -> None:
    match event:
        case ("claim", str(node)):
            world.add_claim(node)
        case ("end", str(node)):
            world.end_claims(node)
        case ("lose" | "fail" as what, int(number)):
            names = sorted(world.pods)
            if names:
                name = names[number % len(names)]
                if what == "lose":
                    world.lose_pod(name)
                else:
                    world.pods[name] = replace(world.pods[name], phase=Phase.FINISHED)
        case ("move", str(node)):
            world.fabric[node] = "f.1" if world.fabric[node] == "f.0" else "f.0"
        case ("die", str(node)):
            world.lose_node(node)
        case ("come back", str(node)):
            world.find_node(node)
        case ("act", int(count)):
            for action in world.plan().actions[:count]:
                world.apply(action)
        case ("cluster", _):
            world.step_cluster()
        case ("drop", str(kind)):
            getattr(world, kind).clear()
        case ("delete", _):
            world.delete_domain()
        case ("forget", _):
            world.held.clear()
    world.now += 0.3


@settings(max_examples=400)
@given(st.lists(_EVENTS, max_size=40))
def test_any_history_ends_in_order(events: list[tuple[str, object]]) -> None:
    """Claims, pods, racks and the controller come and go in any order, and nothing of it stays behind."""
    world = World()
    for event in events:
        _happen(world, event)
    world.converge()
    _assert_settled(world)
    world.claims.clear()
    world.delete_domain()
    world.converge()
    _assert_settled(world)
    assert world.domain is None


@settings(max_examples=200)
@given(st.lists(_EVENTS.filter(lambda event: event[0] not in ("drop", "move", "delete")), max_size=40))
def test_an_index_is_kept_for_as_long_as_its_node_is_a_member(events: list[tuple[str, object]]) -> None:
    world = World()
    known: dict[str, tuple[str, int]] = {}
    for event in events:
        _happen(world, event)
        now = _indexes(world)
        for node, position in now.items():
            assert known.get(node, position) == position
        known = now


class TestBinding:
    """Channels that were allocated with binding conditions: what the scheduler is told."""

    def bindings(self, world: World) -> dict[str, tuple[bool, bool]]:
        found = {claim.node: claim.binding for claim in world.claims.values()}
        return {node: (binding.formed, binding.failed) for node, binding in found.items() if binding}

    def add(self, world: World, *nodes: str) -> None:
        for node in nodes:
            world.add_claim(node, f"claim-{node}")
            claim = world.claims[f"claim-{node}"]
            world.claims[f"claim-{node}"] = replace(claim, binding=Binding("channel-0", node))

    def test_formed_when_the_whole_domain_is_connected_and_for_good(self) -> None:
        world = World()
        self.add(world, "n0")
        world.converge()
        assert self.bindings(world) == {"n0": (False, False)}
        self.add(world, "n1")
        world.converge()
        assert self.bindings(world) == {"n0": (True, False), "n1": (True, False)}
        world.end_claims("n1")
        world.converge()
        assert self.bindings(world) == {"n0": (True, False)}

    def test_a_node_for_which_there_is_no_place_is_a_failure(self) -> None:
        world = World(domain=make_domain(num_nodes=3))
        self.add(world, "n0", "n1", "n2", "n3")
        world.converge()
        assert self.bindings(world) == {node: (node != "n3", node == "n3") for node in ("n0", "n1", "n2", "n3")}

    def test_a_claim_without_binding_conditions_is_left_alone(self) -> None:
        world = World()
        world.add_claim("n0")
        world.add_claim("n1")
        world.converge()
        assert not [action for action in world.writes if isinstance(action, WriteBinding)]
