"""Every interruption and every history of a ComputeDomain ends in order."""

from collections.abc import Callable
from dataclasses import replace
from itertools import count

from computedomain_world import SETTINGS, World, certificate, condition, formed, indexes
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.computedomain.plan import plan_domain
from controller.computedomain.state import Phase


def _assert_settled(world: World) -> None:
    """What must be true whenever nothing changes any more, whatever happened before."""
    assert not plan_domain(world.observe(), SETTINGS).actions
    if world.domain is None:
        assert not (world.pods or world.cliques or world.daemon_claims or world.templates)
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
    assert set(indexes(world)) == with_daemon
    owner = {m.node: c.ref.uid for c in world.cliques.values() for m in c.membership.members}
    assert {claim.node: claim.owner_uid for claim in world.daemon_claims.values()} == owner
    assert {pod.node: pod.owner_uid for pod in world.pods.values()} == owner
    for clique in world.cliques.values():
        for member in clique.membership.members:
            assert member.certificate == certificate(world.keys[member.node], member.index)


def _act(world: World, cut: int, is_done: Callable[[World], bool]) -> int:
    """Carries out so many actions, fewer where it is done before, and says how many; then another leader begins."""
    acted = 0
    while acted < cut and not is_done(world):
        for action in world.plan().actions[: cut - acted]:
            world.apply(action)
            acted += 1
        world.step_cluster()
        world.now += 0.2
    world.held.clear()  # the next leader remembers nothing
    return acted


def test_a_formation_cut_after_any_action_is_finished_later() -> None:
    def is_done(world: World) -> bool:
        return bool(world.domain and world.domain.status) and condition(world, "Ready") == ("True", "Connected")

    for cut in count():
        world = World()
        world.add_claim("n0")
        world.add_claim("m0")
        acted = _act(world, cut, is_done)
        world.converge()
        _assert_settled(world)
        assert is_done(world)
        if acted < cut:
            break
    assert cut > 10, "there was something to cut"


def test_a_tear_down_cut_after_any_action_is_finished_later() -> None:
    for cut in count():
        world = formed("n0", "m0")
        world.claims.clear()
        world.delete_domain()
        acted = _act(world, cut, lambda world: world.domain is None)
        world.converge()
        _assert_settled(world)
        assert world.domain is None
        if acted < cut:
            break
    assert cut > 5, "there was something to cut"


_NODES = st.sampled_from(["n0", "n1", "n2", "n3", "m0", "m1", "plain"])


_EVENTS = st.one_of(
    st.tuples(st.just("claim"), _NODES),
    st.tuples(st.just("end"), _NODES),
    st.tuples(st.just("lose"), st.integers(0, 5)),
    st.tuples(st.just("fail"), st.integers(0, 5)),
    st.tuples(st.just("move"), _NODES),
    st.tuples(st.just("another key"), _NODES),
    st.tuples(st.just("die"), _NODES),
    st.tuples(st.just("come back"), _NODES),
    st.tuples(st.just("give up"), _NODES),
    st.tuples(st.just("act"), st.integers(0, 9)),
    st.tuples(st.just("cluster"), st.just(0)),
    st.tuples(st.just("drop"), st.sampled_from(["cliques", "templates", "daemon_claims"])),
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
        case ("another key", str(node)):
            world.keys[node] += "'"
        case ("die", str(node)):
            world.lose_node(node)
        case ("come back", str(node)):
            world.find_node(node)
        case ("give up", str(node)):
            world.give_up_pods(node)
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
        now = indexes(world)
        for node, position in now.items():
            assert known.get(node, position) == position
        known = now
