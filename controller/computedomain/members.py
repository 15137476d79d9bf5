"""Who belongs to a ComputeDomain: from claims, the fabric and what was decided before. Pure; O(members)."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from api.clique import KEY_ATTRIBUTE, is_late
from api.clique import Member as StoredMember
from controller.computedomain.clocks import find_lost_s
from controller.computedomain.objects import uses_tls
from controller.computedomain.state import (
    ABSENT_AFTER_S,
    ChannelClaim,
    Clique,
    DaemonPod,
    Domain,
    Member,
    Members,
    Observation,
    Phase,
    Settings,
    Standing,
)
from controller.computedomain.waiting import is_left


@dataclass(slots=True)
class _Sorted:
    """Claims, by what they are to the domain."""

    accepted: list[ChannelClaim] = field(default_factory=list)
    refused: list[ChannelClaim] = field(default_factory=list)


def plan_members(seen: Observation, settings: Settings) -> Members:
    """Decide the members, their cliques and indexes.

    A node is a member while it holds an accepted claim. It keeps its index for as long as it stays in its clique; a new
    one gets the lowest free index, earlier allocations first.
    """
    domain = seen.domain
    if domain is None:
        return Members()
    stored = _stored_positions(seen.cliques)
    claims = _sort_claims(domain, seen)
    if domain.deleted_at is not None and domain.force:
        return Members(refused=tuple(claims.refused))
    by_clique, left_out = _find_cliques(seen, claims.accepted, stored)
    plain = [Member(node, "", -1, ready=True, released=True) for node in sorted(by_clique.pop("", []))]
    indexes, crowded = _place(seen, settings, by_clique, stored)
    standing = _find_standing(domain, seen, claims.accepted, indexes)
    occupied = _find_occupied(seen, standing)
    placed = _build_members(seen, settings, indexes, occupied, _find_given_up(seen, claims.accepted))
    members = (*_hold(domain, standing, _release(domain, placed, len(plain))), *plain)
    released = {member.node for member in members if member.released}
    return Members(
        members=members,
        left_out={**left_out, **crowded},
        holders=tuple(claims.accepted) if domain.deleted_at is not None else (),
        refused=tuple(claims.refused),
        waiting=tuple(claim for claim in claims.accepted if claim.node not in released),
        standing=standing,
        occupied=occupied,
    )


def _find_standing(
    domain: Domain, seen: Observation, accepted: Iterable[ChannelClaim], indexes: Mapping[str, Mapping[str, int]]
) -> Standing | None:
    nodes = frozenset(node for placed in indexes.values() for node in placed)
    if not nodes:
        return None
    since = min(claim.allocated.at for claim in accepted)
    stored = [member for clique in seen.cliques if not clique.terminating for member in clique.membership.members]
    held = frozenset(member.node for member in stored if _holds_node(domain, member))
    return Standing(str(domain.ref), domain.ref.uid, since, nodes, held & nodes)


def _holds_node(domain: Domain, member: StoredMember | Member) -> bool:
    """With releasePolicy Connected a node may give its channel out as soon as its daemon's address is stored."""
    return member.holds_node or (member.released if domain.wait_for_all else member.address != "")


def _find_occupied(seen: Observation, own: Standing | None) -> dict[str, str]:
    """The nodes that are for another domain now, and for which."""
    if own is None:
        return {}
    first = dict.fromkeys(sorted(own.nodes), own)
    for rival in seen.rivals:
        for node in rival.nodes & own.nodes:
            if rival.rank(node) < first[node].rank(node):
                first[node] = rival
    return {node: standing.name for node, standing in first.items() if standing is not own}


def _hold(domain: Domain, standing: Standing | None, members: Iterable[Member]) -> list[Member]:
    held = standing.held if standing else frozenset()
    return [replace(member, holds_node=member.node in held or _holds_node(domain, member)) for member in members]


def _find_cliques(
    seen: Observation, claims: Iterable[ChannelClaim], stored: Mapping[str, tuple[str, int]]
) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Nodes by clique ("": without fabric), earlier allocations first; and those whose clique nobody knows."""
    by_clique: dict[str, list[str]] = {}
    unknown: dict[str, str] = {}
    for node in dict.fromkeys(claim.node for claim in claims):
        clique = seen.fabric.get(node)
        if not clique and node in stored:
            clique = stored[node][0]  # a node loses its fabric no earlier than its pods: its GPUs are unwell
        if clique is None:
            unknown[node] = f"node {node} publishes no compute-domain.nvidia.com devices"
        else:
            by_clique.setdefault(clique, []).append(node)
    return by_clique, unknown


def _place(
    seen: Observation,
    settings: Settings,
    by_clique: Mapping[str, list[str]],
    stored: Mapping[str, tuple[str, int]],
) -> tuple[dict[str, dict[str, int]], dict[str, str]]:
    """The indexes in each clique by node; and the nodes for which a clique has no place, with words."""
    limits = _stored_limits(seen.cliques)
    indexes: dict[str, dict[str, int]] = {}
    crowded: dict[str, str] = {}
    for clique, nodes in sorted(by_clique.items()):
        limit = limits.get(clique, settings.max_nodes_per_imex_domain)
        indexes[clique] = _assign_indexes(clique, nodes, stored, limit)
        for node in nodes:
            if node not in indexes[clique]:
                crowded[node] = f"NVLink clique {clique} has its {limit} nodes: no place for {node}"
    return indexes, crowded


def _build_members(
    seen: Observation,
    settings: Settings,
    indexes: Mapping[str, Mapping[str, int]],
    occupied: Mapping[str, str],
    given_up: frozenset[str],
) -> tuple[Member, ...]:
    """By clique and index. On a node that is for another domain it has no daemon, even if there is one yet."""
    pods = _current_pods(seen)
    stored = {clique.membership.clique_id: clique for clique in seen.cliques if not clique.terminating}
    members: list[Member] = []
    for clique_id, placed in indexes.items():
        clique = stored.get(clique_id)
        encrypts = settings.tls if clique is None else uses_tls(clique, settings)
        before = {member.node: member for member in clique.membership.members} if clique else {}
        for node, index in sorted(placed.items(), key=lambda item: item[1]):
            member = Member(node, clique_id, index, None if node in occupied else pods.get((node, clique_id)))
            if encrypts:
                member = _identify(member, seen, before.get(node))
            members.append(
                _build_member(
                    member,
                    seen,
                    occupied.get(node),
                    given_up=node in given_up,
                    keyless=encrypts and not member.public_key,
                )
            )
    return tuple(members)


def _identify(member: Member, seen: Observation, stored: StoredMember | None) -> Member:
    """The key that its node publishes now, and the certificate for it that is stored.

    A node that publishes nothing for a while has the key that it had.
    """
    key = seen.keys.get(member.node) or (stored.public_key if stored else "")
    if stored is None or (stored.public_key, stored.index) != (key, member.index):
        return replace(member, public_key=key)
    return replace(member, public_key=key, certificate=stored.certificate)


def _sort_claims(domain: Domain, seen: Observation) -> _Sorted:
    """A claim counts when its namespace is the domain's and the domain did not begin to end before it came."""
    out = _Sorted()
    known = _known_nodes(seen)
    for claim in sorted(seen.claims, key=lambda claim: (claim.allocated.at, claim.node, claim.ref.name)):
        foreign = claim.ref.namespace != domain.ref.namespace
        on_member = claim.node in known or seen.fabric.get(claim.node) == ""
        late = domain.deleted_at is not None and is_late(claim.allocated, domain.deleted_at, on_member=on_member)
        (out.refused if foreign or late else out.accepted).append(claim)
    return out


def _known_nodes(seen: Observation) -> set[str]:
    """Where the domain has been, whatever has become of its membership since.

    An earlier installation's is in another namespace. It may as well be a stranger's: all that it can do is to let a
    claim of the domain's own namespace in. Of a membership that somebody deleted the daemons' claims are left.
    """
    members = {member.node for clique in (*seen.cliques, *seen.strays) for member in clique.membership.members}
    return members | {claim.node for claim in seen.daemon_claims if not claim.terminating}


def _stored_positions(cliques: Iterable[Clique]) -> dict[str, tuple[str, int]]:
    """Clique and index by node, as the ComputeDomainCliques say now."""
    return {
        member.node: (clique.membership.clique_id, member.index)
        for clique in cliques
        if not clique.terminating
        for member in clique.membership.members
    }


def _stored_limits(cliques: Iterable[Clique]) -> dict[str, int]:
    """A clique keeps the limit that it began with: with another node list every nvidia-imex would be started anew."""
    return {clique.membership.clique_id: clique.membership.max_nodes for clique in cliques if not clique.terminating}


def _assign_indexes(
    clique: str, nodes: Iterable[str], stored: Mapping[str, tuple[str, int]], max_nodes: int
) -> dict[str, int]:
    nodes = list(nodes)
    indexes = {node: stored[node][1] for node in nodes if node in stored and stored[node][0] == clique}
    taken = set(indexes.values())
    free = (index for index in range(max_nodes) if index not in taken)
    for node in nodes:
        if node not in indexes:
            index = next(free, None)
            if index is None:
                break
            indexes[node] = index
    return indexes


def _current_pods(seen: Observation) -> dict[tuple[str, str], DaemonPod]:
    """The daemon pods that count, by node and clique: alive, and made for the membership that there is now."""
    owners = {clique.ref.uid: clique.membership.clique_id for clique in seen.cliques if not clique.terminating}
    return {
        (pod.node, pod.clique_id): pod
        for pod in seen.pods
        if not pod.terminating and pod.phase is not Phase.FINISHED and owners.get(pod.owner_uid) == pod.clique_id
    }


def _find_given_up(seen: Observation, claims: Iterable[ChannelClaim]) -> frozenset[str]:
    """Nodes all of whose pods are being deleted and have not started.

    Where the kubelet lives they are gone in a moment. Of a node that died before its daemon was connected nothing else
    is heard: its daemon pod was not ready before, and is not ready now.
    """
    if not seen.leaving:
        return frozenset()
    awaited = {claim.node for claim in claims if not is_left(claim, seen.leaving)}
    return frozenset(claim.node for claim in claims) - awaited


def _build_member(member: Member, seen: Observation, occupant: str | None, *, given_up: bool, keyless: bool) -> Member:
    pod = member.pod
    ready = pod is not None and pod.phase is Phase.READY and pod.address != ""
    lost = pod is not None and pod.lost_at is not None and find_lost_s(seen, pod) >= ABSENT_AFTER_S
    message = "" if ready else _explain(member, seen, occupant, given_up=given_up, keyless=keyless)
    absent = lost or (given_up and not ready)
    return replace(member, ready=ready, released=ready, message=message, absent=absent)


def _explain(member: Member, seen: Observation, occupant: str | None, *, given_up: bool, keyless: bool) -> str:
    """What a member still lacks, in words."""
    node, pod, taken = member.node, member.pod, seen.taken.get(member.node)
    if given_up:
        return f"node {node} is not waited for: all its pods are being deleted, and have not started"
    if occupant is not None:
        return f"node {node} is used by ComputeDomain {occupant} until its pods end"
    if keyless:
        return (
            f"node {node} publishes no {KEY_ATTRIBUTE}, and so gets no certificate: its node plugin is older than the "
            "controller, or cannot keep a key (its log says why)"
        )
    if pod is None and taken is not None:
        return f"node {node} is being left by the daemon of another ComputeDomain, {taken}"
    if pod is None:
        return f"the daemon pod on {node} is being made"
    if pod.lost_at is not None:
        return f"node {node} is lost: Kubernetes hears nothing of it and of daemon pod {pod.ref}"
    if pod.message:
        return f"daemon pod {pod.ref}: {pod.message}"
    if pod.phase is Phase.PENDING:
        # For words only: anybody may make a claim for a domain that never was, and must not keep others off the node
        # by it. What really holds the node is its plugin's to know.
        leftover = seen.leftovers.get(node)
        return f"daemon pod {pod.ref} is starting" + (
            f"; claim {leftover} on {node} is of a ComputeDomain that is gone, and its containers may still have "
            "the node's channels"
            if leftover
            else ""
        )
    return f"daemon pod {pod.ref} is not connected to all its peers yet"


def _release(domain: Domain, members: tuple[Member, ...], without_fabric: int) -> tuple[Member, ...]:
    """With releasePolicy AllNodes nobody gets a channel before everybody is connected."""
    if not domain.wait_for_all:
        return members
    total = sum(not member.absent for member in members) + without_fabric
    ready = without_fabric + sum(member.ready for member in members)
    if total >= domain.num_nodes and ready == total:
        return members
    # No counts: every wording is written to the membership, and sent as an Event.
    message = "releasePolicy AllNodes: not all nodes are connected yet"
    return tuple(replace(member, released=False, message=message) if member.ready else member for member in members)
