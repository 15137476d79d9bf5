"""Events: what a person who looks at a ComputeDomain, or at a pod that waits for one, should be told. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from api.ref import Ref
from controller.computedomain.clocks import find_waited_s
from controller.computedomain.state import ChannelClaim, Domain, Member, Members, Observation
from controller.computedomain.status import find_condition, find_trouble

SLOW_S: Final = 5.0
"""A pod that has waited this long for its channel is told why."""

PODS_TOLD: Final = 20
"""So many waiting pods of one domain get an Event; the domain's own Event covers the rest.

So many refused claims are told too: anybody may name the domain in any number of claims, and the Events of others are
not to be dropped for it.
"""


@dataclass(frozen=True, slots=True)
class Report:
    """One Event. The same one is not sent twice within some minutes; the shell sees to that."""

    regarding: Ref
    kind: Literal["Normal", "Warning"]
    reason: str
    note: str


def plan_reports(
    seen: Observation, domain: Domain, members: Members, status: Mapping[str, Any] | None
) -> tuple[tuple[Report, ...], float | None]:
    """The Events due now, and after how many seconds the next one may be. `status` is what is about to be stored."""
    reports: list[Report] = []
    if status is not None:
        reports += _report_change(domain, status, bad=find_trouble(seen, members, domain) is not None)
    own_first = sorted(members.refused, key=lambda claim: claim.ref.namespace != domain.ref.namespace)
    for claim in own_first[:PODS_TOLD]:
        reports += _refuse(domain, claim)
    waiting, wake = _waiting_pods(seen, domain, members)
    return (*reports, *waiting[:PODS_TOLD]), wake


def _report_change(domain: Domain, status: Mapping[str, Any], *, bad: bool) -> list[Report]:
    old, new = find_condition(domain.status, "Ready"), find_condition(status, "Ready")
    if (old.get("status"), old.get("reason")) == (new["status"], new["reason"]):
        return []
    return [Report(domain.ref, "Warning" if bad else "Normal", new["reason"], new["message"])]


def _refuse(domain: Domain, claim: ChannelClaim) -> list[Report]:
    if claim.ref.namespace != domain.ref.namespace:
        # The domain's name stays unsaid: the claim's author may have no business knowing it.
        note = "the domainID in this claim's config belongs to a ComputeDomain of another namespace"
        reason = "ForeignComputeDomain"
    else:
        note = f"ComputeDomain {domain.ref} is being deleted and takes no new pods"
        reason = "ComputeDomainDraining"
    return [Report(regarding, "Warning", reason, note) for regarding in (claim.ref, *claim.pods[:1])]


def _waiting_pods(seen: Observation, domain: Domain, members: Members) -> tuple[list[Report], float | None]:
    by_node: dict[str, Member] = {member.node: member for member in members.members}
    reports: list[Report] = []
    wakes: list[float] = []
    for claim in members.waiting:
        member = by_node.get(claim.node)
        reason = members.left_out.get(claim.node, "") if member is None else member.message
        if not reason:
            continue
        waited_s = find_waited_s(seen, claim)
        if waited_s < SLOW_S:
            wakes.append(SLOW_S - waited_s)
            continue
        note = f"waits for ComputeDomain {domain.ref}: {reason}"
        reports.append(Report(claim.pods[0] if claim.pods else claim.ref, "Warning", "WaitingForComputeDomain", note))
    return reports, min(wakes) if wakes else None
