"""Several ComputeDomains whose pods are on the same nodes: each node serves one, and one of them goes on."""

from collections.abc import Callable

import pytest
from computedomain_world import World, condition, make_domain
from hypothesis import given, settings
from hypothesis import strategies as st

from api.ref import Ref
from controller.computedomain.state import Phase
from controller.computedomain.status import find_condition


def make_worlds(count: int, **changes: object) -> list[World]:
    """Domains of one cluster, that want two nodes each."""
    worlds = []
    for number in range(count):
        ref = Ref("ComputeDomain", "team", f"train-{number}", f"d{number}")
        worlds.append(World(domain=make_domain(ref=ref, **changes), uid=f"d{number}"))
    for world in worlds:
        world.rivals = [other for other in worlds if other is not world]
    return worlds


def turn(worlds: list[World]) -> bool:
    """The controller looks at each once, and the cluster goes one step on; True when something changed."""
    changed = False
    for world in worlds:
        actions = world.plan().actions
        for action in actions:
            world.apply(action)
        changed |= bool(actions or world.gathers)
    stepped = [world.step_cluster() for world in worlds]
    pass_time(worlds, 0.2)
    return changed or any(stepped) or any(pod.terminating for world in worlds for pod in world.pods.values())


def pass_time(worlds: list[World], seconds: float) -> None:
    now = max(world.now for world in worlds) + seconds
    for world in worlds:
        world.now = now


def settle(worlds: list[World]) -> None:
    for _ in range(300):
        if not turn(worlds):
            return
    raise AssertionError("no end in sight")


def daemons(world: World) -> set[str]:
    return {pod.node for pod in world.pods.values()}


def released(world: World) -> set[str]:
    return {member.node for clique in world.cliques.values() for member in clique.membership.members if member.released}


@pytest.mark.parametrize("turns", [0, 1, 2, 3, 5])
def test_of_two_domains_that_want_the_same_nodes_at_once_one_gets_them_all_and_the_other_its_turn(turns: int) -> None:
    """The scheduler gives each of them a node first, and the controller acts on that before it sees the rest."""
    first, second = worlds = make_worlds(2, wait_for_all=True)
    for world, node in ((first, "n0"), (second, "n1"), (first, "n1"), (second, "n0")):
        world.add_claim(node)
        for _ in range(turns):
            turn(worlds)
        pass_time(worlds, 0.01)
    settle(worlds)
    assert released(first) == daemons(first) == {"n0", "n1"}
    assert not daemons(second) and not second.daemon_claims
    assert condition(second, "Ready") == ("False", "NodeOccupied")
    assert second.domain is not None
    assert "ComputeDomain team/train-0" in find_condition(second.domain.status, "Ready")["message"]
    first.claims.clear()
    settle(worlds)
    assert released(second) == daemons(second) == {"n0", "n1"}
    assert condition(second, "Ready") == ("True", "Connected")


@pytest.mark.parametrize("wait_for_all", [True, False])
def test_a_domain_in_use_keeps_a_node_whose_daemon_it_loses_while_an_older_one_waits(wait_for_all: bool) -> None:
    older, user = worlds = make_worlds(2, wait_for_all=wait_for_all)
    older.add_claim("n2")
    pass_time(worlds, 1.0)
    for node in ("n0", "n1"):
        user.add_claim(node)
    settle(worlds)
    pass_time(worlds, 1.0)
    older.add_claim("n0")
    settle(worlds)
    assert daemons(older) == {"n2"}
    for world in worlds:
        world.held.clear()  # the next controller remembers nothing
    for name in list(user.pods):
        user.lose_pod(name)
    user.daemon_claims.clear()
    settle(worlds)
    assert released(user) == daemons(user) == {"n0", "n1"}
    assert daemons(older) == {"n2"}
    user.end_claims("n0")
    settle(worlds)
    assert daemons(older) == {"n0", "n2"}


def test_a_domain_makes_its_daemon_when_that_of_another_has_left_and_says_so_meanwhile() -> None:
    """Its pod would be looked at too early by the scheduler, and perhaps not again for minutes."""
    first, second = worlds = make_worlds(2)
    first.add_claim("n0")
    settle(worlds)
    second.add_claim("n0")
    first.claims.clear()
    for world in worlds:
        for action in world.plan().actions:
            world.apply(action)
    assert daemons(first) == {"n0"} and not second.daemon_claims
    assert [member.message for member in second.plan().members.members] == [
        f"node n0 is being left by the daemon of another ComputeDomain, driver/{name}" for name in first.daemon_claims
    ]
    settle(worlds)
    assert not first.pods and daemons(second) == {"n0"}


def test_a_node_for_which_a_clique_has_no_place_is_not_kept_from_another_domain() -> None:
    first, second = worlds = make_worlds(2)
    for node in ("n0", "n1", "n2", "n3"):
        first.add_claim(node)
        pass_time(worlds, 1.0)
    settle(worlds)
    second.add_claim("n3")
    settle(worlds)
    assert daemons(first) == {"n0", "n1", "n2"} and daemons(second) == {"n3"}


def test_a_domain_that_is_forced_to_end_keeps_no_node() -> None:
    first, second = worlds = make_worlds(2)
    first.add_claim("n0")
    settle(worlds)
    second.add_claim("n0")
    settle(worlds)
    assert not daemons(second)
    first.delete_domain()
    assert first.domain is not None
    first.domain = make_domain(ref=first.domain.ref, has_finalizer=True, deleted_at=first.now, force=True)
    settle(worlds)
    assert first.domain is None and daemons(second) == {"n0"}


def test_while_its_daemon_starts_a_domain_names_the_claim_that_a_domain_that_is_gone_has_left_there() -> None:
    """Its kubelet may be waiting for that. But anybody can make such a claim: it keeps no daemon off the node."""
    first, second = worlds = make_worlds(2)
    first.add_claim("n0")
    settle(worlds)
    first.domain = None
    settle(worlds)
    assert not first.pods and first.claims
    second.add_claim("n0")
    while not second.pods:
        for action in second.plan().actions:
            second.apply(action)
    (claim,), (daemon,) = first.claims.values(), second.pods.values()

    def told() -> list[str]:
        return [member.message for member in second.plan().members.members]

    starting = f"daemon pod {daemon.ref} is starting"
    assert told() == [
        f"{starting}; claim {claim.ref} on n0 is of a ComputeDomain that is gone, and its containers may still have "
        "the node's channels"
    ]
    first.claims.clear()
    assert told() == [starting]


_NODES = st.sampled_from(["n0", "n1", "m0"])
_WORLDS = st.integers(0, 2)
_EVENTS = st.one_of(
    st.tuples(st.just("claim"), _WORLDS, _NODES),
    st.tuples(st.just("end"), _WORLDS, _NODES),
    st.tuples(st.just("lose"), _WORLDS, _NODES),
    st.tuples(st.just("fail"), _WORLDS, _NODES),
    st.tuples(st.just("act"), _WORLDS, st.integers(0, 9)),
    st.tuples(st.just("cluster"), _WORLDS, st.just(0)),
    st.tuples(st.just("turn"), _WORLDS, st.just(0)),
    st.tuples(st.just("forget"), _WORLDS, st.just(0)),
)


def _happen(worlds: list[World], event: tuple[str, int, object]) -> None:
    world = worlds[event[1]]
    match event:
        case ("claim", _, str(node)):
            world.add_claim(node)
        case ("end", _, str(node)):
            world.end_claims(node)
        case ("lose", _, str(node)):
            world.pods = {name: pod for name, pod in world.pods.items() if pod.node != node}
        case ("fail", _, str(node)):
            world.finish_pods(node)
        case ("act", _, int(count)):
            for action in world.plan().actions[:count]:
                world.apply(action)
        case ("cluster", _, _):
            world.step_cluster()
        case ("turn", _, _):
            turn(worlds)
        case ("forget", _, _):
            world.held.clear()
    pass_time(worlds, 0.3)


def _find_served(world: World) -> set[str]:
    """Nodes whose plugin may give the channel out now: as `kubeletplugin.model.release` decides."""
    assert world.domain is not None
    if world.domain.wait_for_all:
        return released(world)
    connected = {(pod.node, pod.address) for pod in world.pods.values() if pod.phase is Phase.READY}
    members = [member for clique in world.cliques.values() for member in clique.membership.members]
    return {member.node for member in members if member.released or (member.node, member.address) in connected}


@pytest.mark.parametrize("wait_for_all", [True, False])
@settings(max_examples=300)
@given(events=st.lists(_EVENTS, max_size=40))
def test_whatever_comes_and_goes_a_node_serves_one_domain_and_pods_with_a_channel_keep_theirs(
    wait_for_all: bool, events: list[tuple[str, int, object]]
) -> None:
    worlds = make_worlds(3, wait_for_all=wait_for_all)
    using: list[set[str]] = [set(), set(), set()]
    steps: list[Callable[[], object]] = [lambda event=event: _happen(worlds, event) for event in events]  # type: ignore[misc]
    for step in [*steps, lambda: settle(worlds)]:
        step()
        for number, world in enumerate(worlds):
            nodes = {claim.node for claim in world.claims.values()}
            using[number] = (using[number] | _find_served(world)) & nodes
            running = {pod.node for pod in world.pods.values() if pod.phase is not Phase.PENDING}
            for other in range(3):
                assert other == number or not running & using[other], "a daemon beside another's pods"
    wanted = {claim.node for world in worlds for claim in world.claims.values()}
    served = [node for world in worlds for node in daemons(world)]
    assert sorted(served) == sorted(wanted), "every node that somebody wants serves one domain"
