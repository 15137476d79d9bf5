"""What becomes of a ComputeDomain while its pods come and go: the planner against a cluster in memory."""

from dataclasses import replace

import pytest
from computedomain_world import (
    DEFAULTS,
    SETTINGS,
    UID,
    World,
    certificate,
    condition,
    formed,
    indexes,
    make_domain,
)

from api.ref import Ref
from controller.computedomain.actions import (
    Create,
    WriteBinding,
    WriteMembership,
)
from controller.computedomain.plan import plan_domain
from controller.computedomain.report import PODS_TOLD
from controller.computedomain.state import Binding, Phase, Template
from controller.computedomain.status import find_condition


def test_a_new_domain_has_its_template_and_says_that_it_is_idle() -> None:
    world = formed()
    assert list(world.templates) == ["channel"]
    assert not world.pods and not world.cliques
    assert condition(world, "Ready") == ("False", "Idle")


def test_a_domain_forms_around_the_nodes_whose_claims_are_allocated() -> None:
    world = formed("n1", "n0")
    assert sorted(pod.node for pod in world.pods.values()) == ["n0", "n1"]
    assert condition(world, "Ready") == ("True", "Connected")
    assert world.domain is not None and world.domain.status["progress"] == "2/2"
    (clique,) = world.cliques.values()
    assert all(member.released and member.address for member in clique.membership.members)


def test_formation_never_takes_back_what_it_said() -> None:
    world = formed("n0", "n1")
    assert world.statuses == sorted(world.statuses)  # NotReady sorts before Ready: no way back
    assert len(world.statuses) <= 2


def test_the_first_allocated_node_gets_the_lowest_index() -> None:
    world = World()
    world.add_claim("n2")
    world.now += 1
    world.add_claim("n0")
    world.converge()
    assert indexes(world) == {"n2": ("f.0", 0), "n0": ("f.0", 1)}


def test_one_domain_over_two_cliques_is_two_imex_domains() -> None:
    world = formed("n0", "m0")
    assert indexes(world) == {"n0": ("f.0", 0), "m0": ("f.1", 0)}
    members = [member for clique in world.cliques.values() for member in clique.membership.members]
    assert all(member.certificate == certificate(world.keys[member.node], member.index) for member in members)
    assert condition(world, "Ready") == ("True", "Connected")


def test_a_node_without_fabric_is_a_ready_member_without_a_daemon() -> None:
    world = formed("plain", "n0")
    assert [pod.node for pod in world.pods.values()] == ["n0"]
    assert condition(world, "Ready") == ("True", "Connected")
    assert world.domain is not None
    assert "have no NVLink fabric" in find_condition(world.domain.status, "DaemonsReady")["message"]


def test_two_pods_of_the_domain_on_one_node_share_its_daemon() -> None:
    world = formed("n0", "n0", "n1")
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


def test_however_many_claims_are_refused_a_plan_tells_a_few_and_those_of_its_own_namespace_first() -> None:
    """Else Events of other domains would be dropped for them."""
    world = formed("n0")
    for number in range(1000):
        world.add_claim("n0", f"foreign-{number}", namespace="elsewhere")
    world.now += 1
    world.delete_domain()
    world.now += 1
    world.add_claim("n0", "late")
    refused = [report.regarding for report in world.plan().reports if report.kind == "Warning"]
    assert [str(regarding) for regarding in refused[:2]] == ["team/late", "team/pod-late"]
    assert len(refused) == 2 * PODS_TOLD


def test_a_full_clique_leaves_the_latest_node_out_and_says_so() -> None:
    world = World()
    for node in ("n0", "n1", "n2", "n3"):
        world.add_claim(node)
        world.now += 1
    world.converge()
    assert "n3" not in indexes(world)
    assert condition(world, "Degraded") == ("True", "NodesLeftOut")
    assert condition(world, "Ready") == ("True", "Connected")
    world.end_claims("n0")
    world.converge()
    assert indexes(world)["n3"] == ("f.0", 0)
    assert condition(world, "Degraded") == ("False", "AsExpected")


def test_of_nineteen_nodes_of_a_clique_the_last_waits_for_a_place_by_default() -> None:
    nodes = [f"r{number:02}" for number in range(19)]
    world = World(domain=make_domain(num_nodes=18), settings=DEFAULTS)
    world.fabric = dict.fromkeys(nodes, "f.0")
    for node in nodes:
        world.add_claim(node)
        world.now += 1
    world.converge()
    assert {node: index for node, (_, index) in indexes(world).items()} == {n: i for i, n in enumerate(nodes[:18])}
    assert len(world.pods) == 18
    assert condition(world, "Ready") == ("True", "Connected")
    assert condition(world, "Degraded") == ("True", "NodesLeftOut")
    world.now += 10
    assert [report.regarding.name for report in world.plan().reports] == [
        claim.pods[0].name for claim in world.claims.values() if claim.node == "r18"
    ]
    world.end_claims("r07")
    world.converge()
    assert indexes(world)["r18"] == ("f.0", 7)


def test_another_limit_touches_no_clique_that_there_is() -> None:
    world = formed("n0", "n1")
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
    assert "volumes" not in pod["spec"]
    (clique,) = world.cliques.values()
    assert [bool(member.certificate) for member in clique.membership.members] == [tls, tls]
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
    assert condition(world, "Ready") == ("False", "NodesLeftOut")
    assert "node unknown" in find_condition(world.domain.status, "Ready")["message"]


def test_a_foreign_template_of_that_name_is_a_condition_and_is_left_alone() -> None:
    world = World()
    world.templates["channel"] = Template(Ref("ResourceClaimTemplate", "team", "channel", "theirs"), "")
    world.converge()
    assert condition(world, "Ready") == ("False", "TemplateConflict")
    assert world.templates["channel"].ref.uid == "theirs"
    del world.templates["channel"]
    world.converge()
    assert world.templates["channel"].domain_uid == UID
    assert condition(world, "Degraded") == ("False", "AsExpected")


def test_a_node_that_leaves_loses_its_daemon_and_the_rest_stays() -> None:
    world = formed("n0", "n1")
    world.end_claims("n0")
    world.converge()
    assert [pod.node for pod in world.pods.values()] == ["n1"]
    assert indexes(world) == {"n1": ("f.0", 1)}


def test_when_the_last_pod_ends_the_domain_is_idle_again() -> None:
    world = formed("n0", "n1")
    world.claims.clear()
    world.converge()
    assert not world.pods and not world.cliques and not world.daemon_claims
    assert condition(world, "Ready") == ("False", "Idle")
    assert list(world.templates) == ["channel"]


def test_an_elastic_domain_is_ready_with_nobody_and_with_whoever_is_there() -> None:
    world = formed(num_nodes=0)
    assert condition(world, "Ready") == ("True", "Idle")
    world.add_claim("n0")
    world.converge()
    assert condition(world, "Ready") == ("True", "Connected")


def test_a_node_that_joins_a_ready_domain_does_not_take_its_readiness() -> None:
    world = formed("n0", "n1")
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


def test_a_node_with_another_key_gets_a_certificate_for_it_at_once_and_the_others_keep_theirs() -> None:
    world = formed("n0", "n1")
    world.keys["n1"] = "another"
    (write,) = world.plan().actions
    assert isinstance(write, WriteMembership)
    entries = {entry["nodeName"]: (entry["publicKey"], entry["certificate"]) for entry in write.fields["daemons"]}
    assert entries == {"n0": ("key of n0", certificate("key of n0", 0)), "n1": ("another", "")}
    del world.keys["n0"]  # its slices are gone for a while
    world.converge()
    (clique,) = world.cliques.values()
    assert [member.public_key for member in clique.membership.members] == ["key of n0", "another"]


def test_a_node_without_a_key_is_named_and_gets_its_certificate_when_it_publishes_one() -> None:
    world = World()
    del world.keys["n1"]
    for node in ("n0", "n1"):
        world.add_claim(node)
    for _ in range(3):
        for action in world.plan().actions:
            world.apply(action)
    (clique,) = world.cliques.values()
    (without,) = [member for member in clique.membership.members if not member.certificate]
    assert without.node == "n1" and "node n1 publishes no imexPublicKey" in without.message
    world.keys["n1"] = "late"
    for action in world.plan().actions:
        world.apply(action)
    (clique,) = world.cliques.values()
    assert clique.membership.members[1].certificate == certificate("late", 1)


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
