"""The status of a ComputeDomain: one pass from what is seen to what people read. Pure.

Ready needs `numNodes` connected members, at least one. Further nodes that join do not take it away: it does not flap.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from controller.computedomain.objects import format_time
from controller.computedomain.state import ChannelClaim, Domain, Member, Members, Observation, Phase

NAMES_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Fact:
    """A condition before it has a time."""

    type: str
    holds: bool
    reason: str
    message: str = ""


@dataclass(frozen=True, slots=True)
class Trouble:
    """Something that a person should look at; the first one in the table below is told."""

    reason: str
    message: str


def build_status(seen: Observation, members: Members, domain: Domain) -> dict[str, Any]:
    """`status` as it should be stored; transition times are kept where nothing changed."""
    ready = sum(member.ready for member in members.members)
    total = len(members.members)
    facts = _build_facts(seen, members, domain)
    connected = next(fact for fact in facts if fact.type == "Ready").holds
    return {
        "status": "Ready" if connected else "NotReady",
        "nodes": [_build_node(member) for member in sorted(members.members, key=lambda member: member.node)],
        "conditions": [_build_condition(fact, seen.now, domain) for fact in facts],
        "observedGeneration": domain.generation,
        "memberNodes": total,
        "readyNodes": ready,
        "progress": f"{ready}/{domain.num_nodes or total}",
    }


def is_connected(members: Members, domain: Domain) -> bool:
    """As many members as are wanted are connected; an elastic domain without members waits for nobody."""
    ready = sum(member.ready for member in members.members)
    if not members.members:
        return domain.num_nodes == 0
    return ready >= max(domain.num_nodes, 1)


def find_condition(status: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = next((c for c in status.get("conditions") or [] if c.get("type") == kind), {})
    return found


def same_status(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """True when a write would change nothing. Fields that the API server defaulted count as what they default to."""
    return _comparable(stored) == _comparable(wanted)


def _comparable(status: Mapping[str, Any]) -> dict[str, Any]:
    defaults = {
        "nodes": [],
        "conditions": [],
        "observedGeneration": 0,
        "memberNodes": 0,
        "readyNodes": 0,
        "progress": "",
    }
    return {"status": "NotReady", **defaults, **status}


def _build_facts(seen: Observation, members: Members, domain: Domain) -> tuple[Fact, ...]:
    trouble = find_trouble(seen, members, domain)
    return (
        _ready_fact(seen, members, domain, trouble),
        _members_fact(members, domain),
        _daemons_fact(members),
        _peers_fact(members),
        _draining_fact(seen, members, domain),
        Fact("Degraded", True, trouble.reason, trouble.message) if trouble else Fact("Degraded", False, "AsExpected"),
    )


def find_trouble(seen: Observation, members: Members, domain: Domain) -> Trouble | None:
    """The first thing that is wrong, most fundamental first; None while things merely take their time."""
    foreign = [t for t in seen.templates if _is_wanted_name(t, domain) and t.domain_uid != seen.uid]
    if foreign:
        message = f"ResourceClaimTemplate {foreign[0].ref} exists and is not this domain's: delete it, or name another"
        return Trouble("TemplateConflict", message)
    if seen.failures:
        return Trouble("ActionFailed", seen.failures[0])
    if members.left_out:
        return Trouble("NodesLeftOut", _some(list(members.left_out.values())))
    occupied = [member.message for member in members.members if member.node in members.occupied]
    if occupied:
        return Trouble("NodeOccupied", _some(occupied))
    lost = [member.message for member in members.members if not member.ready]
    absent = any(member.absent for member in members.members)
    if absent or (lost and _was_connected(domain) and not is_connected(members, domain)):
        return Trouble("MemberLost", _some(lost))
    return None


def _is_wanted_name(template: Any, domain: Domain) -> bool:
    return (template.ref.namespace, template.ref.name) == (domain.ref.namespace, domain.template_name)


def _was_connected(domain: Domain) -> bool:
    ready = find_condition(domain.status, "Ready")
    return (ready.get("status") == "True" and ready.get("reason") == "Connected") or ready.get("reason") == "MemberLost"


def _ready_fact(seen: Observation, members: Members, domain: Domain, trouble: Trouble | None) -> Fact:
    connected = is_connected(members, domain)
    if domain.deleted_at is not None:
        draining = _draining_fact(seen, members, domain)
        reason = "Draining" if members.holders else draining.reason
        return Fact("Ready", connected and bool(members.holders), reason, draining.message)
    if trouble is not None and (not connected or trouble.reason == "TemplateConflict"):
        return Fact("Ready", False, trouble.reason, trouble.message)
    if not members.members:
        return Fact("Ready", connected, "Idle", "no pod of this domain is scheduled")
    if connected:
        return Fact("Ready", True, "Connected", f"{sum(m.ready for m in members.members)} nodes are connected")
    for fact, reason in (
        (_members_fact(members, domain), "WaitingForPods"),
        (_daemons_fact(members), "WaitingForDaemons"),
        (_peers_fact(members), "WaitingForPeers"),
    ):
        if not fact.holds:
            return Fact("Ready", False, reason, fact.message)
    raise AssertionError("not connected, but members, daemons and peers are as they should be")


def _members_fact(members: Members, domain: Domain) -> Fact:
    total = len(members.members)
    if domain.num_nodes == 0:
        return Fact("MembersKnown", True, "Elastic", f"{total} nodes hold an allocated claim")
    message = f"{total} of {domain.num_nodes} nodes hold an allocated claim"
    if total >= domain.num_nodes:
        return Fact("MembersKnown", True, "AllNodes", message)
    return Fact("MembersKnown", False, "WaitingForPods", message)


def _daemons_fact(members: Members) -> Fact:
    daemons = [member for member in members.members if member.index >= 0]
    waiting = [m for m in daemons if m.pod is None or m.pod.phase not in (Phase.RUNNING, Phase.READY)]
    without = len(members.members) - len(daemons)
    note = f"; {without} nodes have no NVLink fabric: their pods run without a channel" if without else ""
    if not members.members:
        return Fact("DaemonsReady", False, "NoMembers")
    if not waiting:
        return Fact("DaemonsReady", True, "AllRunning", f"daemons that run: {len(daemons)}{note}")
    return Fact("DaemonsReady", False, "Starting", _some([member.message for member in waiting]) + note)


def _peers_fact(members: Members) -> Fact:
    waiting = [member for member in members.members if not member.ready]
    if not members.members:
        return Fact("PeersConnected", False, "NoMembers")
    if not waiting:
        return Fact("PeersConnected", True, "AllConnected")
    return Fact("PeersConnected", False, "Connecting", "not connected: " + _some([m.node for m in waiting], ", "))


def _draining_fact(seen: Observation, members: Members, domain: Domain) -> Fact:
    if domain.deleted_at is None:
        return Fact("Draining", False, "NotDeleted")
    if not members.holders:
        return Fact("Draining", True, "CleaningUp", "waits for the end of " + _some(_name_leftovers(seen), ", "))
    return Fact("Draining", True, "ClaimsInUse", "in use by " + _some([_name_holder(c) for c in members.holders], ", "))


def _name_holder(claim: ChannelClaim) -> str:
    return f"claim {claim.ref}" + (f" (pod {claim.pods[0].name})" if claim.pods else "")


def _name_leftovers(seen: Observation) -> list[str]:
    """What is left of a domain that ends: its daemons, and when they are gone what was made for them."""
    pods = [f"daemon pod {pod.ref} on node {pod.node}" for pod in seen.pods]
    kinds = (seen.daemon_claims, seen.cliques, seen.templates)
    return pods or [f"{each.ref.kind} {each.ref}" for kind in kinds for each in kind]


def _some(words: list[str], separator: str = "; ") -> str:
    """The first few, and how many more."""
    shown = separator.join(words[:NAMES_SHOWN])
    return shown if len(words) <= NAMES_SHOWN else f"{shown} and {len(words) - NAMES_SHOWN} more"


def _build_node(member: Member) -> dict[str, Any]:
    status: Literal["Ready", "NotReady"] = "Ready" if member.ready else "NotReady"
    return {
        "name": member.node,
        "ipAddress": member.address,
        "cliqueID": member.clique_id,
        "index": member.index,
        "status": status,
    }


def _build_condition(fact: Fact, now: float, domain: Domain) -> dict[str, Any]:
    old = find_condition(domain.status, fact.type)
    status = "True" if fact.holds else "False"
    unchanged = old.get("status") == status
    return {
        "type": fact.type,
        "status": status,
        "reason": fact.reason,
        "message": fact.message,
        "observedGeneration": domain.generation,
        "lastTransitionTime": old["lastTransitionTime"] if unchanged else format_time(now),
    }
