"""Why a pod waits, from the objects that belong to it. Pure: objects in, lines of text out.

The first line is the verdict; what follows is what it rests on, nearest cause first.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from api.clique import Membership, parse_membership
from controller.computedomain.parse import parse_claim
from controller.computedomain.state import ChannelClaim
from controller.computedomain.status import find_condition

Json = Mapping[str, Any]

EVENTS_SHOWN = 5


@dataclass(frozen=True, slots=True)
class PodFacts:
    """A pod and what belongs to it, as the API server has it. Claims by the name that the pod has for them."""

    pod: Json
    claims: Mapping[str, Json | None]
    """None: the claim is not there (yet)."""
    domains: Mapping[str, Json] = field(default_factory=dict)
    """ComputeDomains of the pod's namespace, by uid."""
    cliques: Sequence[Json] = ()
    """ComputeDomainCliques of these domains."""
    daemons: Mapping[str, Json] = field(default_factory=dict)
    """The daemon pods of these domains on the pod's node, by domain uid."""
    events: Sequence[Json] = ()
    """Warnings about the pod, its claims and domains; the latest last."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing found; `blocks` when the pod cannot go on before it changes."""

    text: str
    blocks: bool = False


def explain_pod(facts: PodFacts) -> list[str]:
    """The verdict, the findings that it rests on, and the latest warnings."""
    findings = [_explain_phase(facts.pod)]
    for name, claim in sorted(facts.claims.items()):
        findings += _explain_claim(name, claim, facts)
    blocking = [finding for finding in findings if finding.blocks]
    metadata = facts.pod["metadata"]
    what = f"pod {metadata['namespace']}/{metadata['name']}"
    verdict = f"{what} waits: {blocking[-1].text}" if blocking else f"{what} waits for nothing of ours"
    events = [f"{event.get('reason')}: {_note(event)}" for event in facts.events[-EVENTS_SHOWN:]]
    return [
        verdict,
        *(f"  {'!' if finding.blocks else '-'} {finding.text}" for finding in findings),
        *([] if not events else ["latest warnings:", *(f"  {event}" for event in events)]),
    ]


def _explain_phase(pod: Json) -> Finding:
    node = pod["spec"].get("nodeName")
    phase = (pod.get("status") or {}).get("phase", "Unknown")
    if node:
        return Finding(f"it is {phase} on node {node}")
    scheduled = find_condition(pod.get("status") or {}, "PodScheduled")
    if scheduled.get("message"):
        return Finding(f"it is not scheduled: {scheduled['message']}", blocks=True)
    return Finding("it is not scheduled yet", blocks=True)


def _explain_claim(name: str, claim: Json | None, facts: PodFacts) -> list[Finding]:
    if claim is None:
        return [Finding(f"claim {name} does not exist yet: is its ResourceClaimTemplate there?", blocks=True)]
    text = f"claim {name} ({claim['metadata']['name']})"
    allocation = (claim.get("status") or {}).get("allocation")
    if allocation is None:
        return [Finding(f"{text} is not allocated: the scheduler has found no node with such devices", blocks=True)]
    results = (allocation.get("devices") or {}).get("results") or []
    devices = ", ".join(f"{result['device']} of {result['driver']} on {result['pool']}" for result in results)
    findings = [Finding(f"{text} is allocated: {devices}")]
    channel = parse_claim(claim)
    if isinstance(channel, ChannelClaim):
        findings += _explain_domain(channel, facts)
    return findings


def _explain_domain(claim: ChannelClaim, facts: PodFacts) -> list[Finding]:
    domain = facts.domains.get(claim.domain_uid)
    if domain is None:
        own = f"which does not exist in namespace {claim.ref.namespace}; a domain is for its own namespace only"
        return [Finding(f"its config names ComputeDomain {claim.domain_uid}, {own}", blocks=True)]
    metadata, status = domain["metadata"], domain.get("status") or {}
    name = f"ComputeDomain {metadata['namespace']}/{metadata['name']}"
    ready = find_condition(status, "Ready")
    state = f"{status.get('progress', '0/?')} nodes, {ready.get('reason', 'not seen by the controller yet')}"
    findings = [Finding(f"{name}: {state}{': ' if ready.get('message') else ''}{ready.get('message', '')}")]
    degraded = find_condition(status, "Degraded")
    if degraded.get("status") == "True":
        findings.append(Finding(f"{name} is degraded ({degraded['reason']}): {degraded['message']}"))
    return [*findings, *_explain_member(claim, facts)]


def _explain_member(claim: ChannelClaim, facts: PodFacts) -> list[Finding]:
    memberships = [parse_membership(raw) for raw in facts.cliques]
    mine = [m for m in memberships if m.domain_uid == claim.domain_uid and m.member(claim.node)]
    domain = facts.domains[claim.domain_uid]
    listed = [node for node in (domain.get("status") or {}).get("nodes") or [] if node["name"] == claim.node]
    if not mine:
        if listed and listed[0].get("cliqueID") == "":
            return [Finding(f"node {claim.node} has no NVLink fabric: the pod runs without a channel")]
        return [Finding(f"node {claim.node} is no member of the domain (yet)", blocks=True)]
    return [_explain_readiness(mine[0], claim.node), *_explain_daemon(facts.daemons.get(claim.domain_uid))]


def _explain_readiness(membership: Membership, node: str) -> Finding:
    member = membership.member(node)
    assert member is not None
    place = f"node {node} is member {member.index} of clique {membership.clique_id}"
    if member.released:
        return Finding(f"{place}, connected; its channel is released")
    return Finding(f"{place}: {member.message or 'its channel is not released yet'}", blocks=True)


def _explain_daemon(pod: Json | None) -> list[Finding]:
    if pod is None:
        return []
    status = pod.get("status") or {}
    ready = find_condition(status, "Ready").get("status") == "True"
    restarts = sum(int(entry.get("restartCount", 0)) for entry in status.get("containerStatuses") or [])
    text = f"daemon pod {pod['metadata']['namespace']}/{pod['metadata']['name']} is {status.get('phase', 'Pending')}"
    return [Finding(f"{text}, {'ready' if ready else 'not ready'}, {restarts} restarts")]


def _note(event: Json) -> str:
    return str(event.get("note") or event.get("message") or "")


def list_domains(domains: Sequence[Json]) -> list[str]:
    """A table of ComputeDomains: where they are, how far, and why."""
    rows = [("NAMESPACE", "NAME", "STATUS", "NODES", "REASON", "MESSAGE")]
    for domain in sorted(domains, key=lambda d: (d["metadata"]["namespace"], d["metadata"]["name"])):
        status = domain.get("status") or {}
        ready = find_condition(status, "Ready")
        rows.append(
            (
                domain["metadata"]["namespace"],
                domain["metadata"]["name"],
                status.get("status", "NotReady"),
                status.get("progress", ""),
                ready.get("reason", ""),
                ready.get("message", ""),
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
