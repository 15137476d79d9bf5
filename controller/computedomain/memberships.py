"""What the ComputeDomainCliques of a domain are to say, and when: one write tells of many changes. Pure."""

from collections.abc import Mapping
from typing import Final

from api.clique import Member as StoredMember
from api.clique import Membership, clique_object_name
from api.ref import Ref
from controller.computedomain.actions import Action, Create, WriteMembership
from controller.computedomain.objects import Json, build_clique, build_membership
from controller.computedomain.state import (
    GATHER_ADDRESSES_S,
    GATHER_READINESS_S,
    GATHER_WORDS_S,
    Clique,
    Domain,
    Member,
    Members,
    Observation,
    Settings,
)
from controller.computedomain.waiting import find_abandoned

NOW: Final = ("", 0.0)


def group_by_clique(members: Members) -> dict[str, list[Member]]:
    """Those that have a place in an IMEX domain."""
    by_clique: dict[str, list[Member]] = {}
    for member in members.members:
        if member.index >= 0:
            by_clique.setdefault(member.clique_id, []).append(member)
    return by_clique


def plan_memberships(
    seen: Observation,
    domain: Domain,
    members: Members,
    current: Mapping[str, Clique],
    settings: Settings,
) -> tuple[list[Action], list[str], list[float]]:
    """The writes that are due, the names of those that wait for others, and for how many seconds each."""
    abandoned = find_abandoned(seen, members)
    actions: list[Action] = []
    held: list[str] = []
    wakes: list[float] = []
    for clique_id, placed in sorted(group_by_clique(members).items()):
        name = clique_object_name(seen.uid, clique_id)
        clique = current.get(name)
        if clique is None:
            body = build_clique(domain, clique_id, placed, settings)
            actions.append(Create(Ref("ComputeDomainClique", settings.namespace, name), body))
            continue
        if clique.terminating:
            continue  # its name is taken until the garbage collector is done
        stored = clique.membership
        wanted = build_membership(domain, placed, stored.max_nodes, stored.authorities, abandoned.get(clique_id, ()))
        change = _find_change(stored, placed, domain, wanted)
        if change is None:
            continue
        kind, window_s = change
        # Each kind has its own time: words that have waited for long must not hurry the first address.
        held_s = seen.held_s.get(f"{name} {kind}", 0.0)
        if held_s < window_s:
            held.append(f"{name} {kind}")
            wakes.append(window_s - held_s)
        else:
            actions.append(WriteMembership(clique.ref, clique.resource_version, wanted))
    return actions, held, wakes


def _find_change(stored: Membership, members: list[Member], domain: Domain, wanted: Json) -> tuple[str, float] | None:
    """What has changed, and how many seconds it may wait for others to come with it; None: nothing has.

    Who leaves or is lost, a claim that is given up, the loss of an address, and another key, is told at once. A member
    that joins is of no use to the others before it has an address; an address waits for those that are still coming, a
    readiness likewise. So the last of them never waits, and one write tells of many.
    """
    frame = (domain.ref.name, domain.ref.namespace, wanted["draining"])
    if (stored.domain_name, stored.domain_namespace, stored.draining) != frame:
        return NOW
    abandoned = tuple(wanted["abandonedClaims"])
    if not set(abandoned) <= set(stored.abandoned):
        return NOW
    after = {member.node: member for member in members}
    pairs = [(old, after.get(old.node)) for old in stored.members]
    if any(new is None or new.index != old.index or old.address not in ("", new.address) for old, new in pairs):
        return NOW
    if any(new is not None and (new.absent, new.public_key) != (old.absent, old.public_key) for old, new in pairs):
        return NOW
    changed = [(old, new) for old, new in pairs if new is not None and _entry(old) != _entry(new)]
    known = {old.node: old.address for old in stored.members}
    if any(member.address != known.get(member.node, "") for member in members):
        return NOW if all(member.address for member in members) else ("addresses", GATHER_ADDRESSES_S)
    if any((old.ready, old.released) != (new.ready, new.released) for old, new in changed):
        return NOW if all(member.ready for member in members) else ("readiness", GATHER_READINESS_S)
    other = changed or len(after) > len(pairs) or abandoned != stored.abandoned
    return ("words", GATHER_WORDS_S) if other else None


def _entry(member: StoredMember | Member) -> tuple[str, bool, bool, str, bool]:
    return member.address, member.ready, member.released, member.message, member.holds_node
