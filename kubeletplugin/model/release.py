"""When a channel may be given out, by what the controller and this node's daemon say. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from api.clique import Member, Membership
from api.errors import ClaimError
from kubeletplugin.model.channels import DomainUse
from kubeletplugin.model.claims import ClaimRequest


@dataclass(frozen=True, slots=True)
class Wait:
    """Not yet; `reason` is a sentence about what is missing."""

    reason: str


@dataclass(frozen=True, slots=True)
class Release:
    """The claim may be prepared."""


@dataclass(frozen=True, slots=True)
class DaemonReport:
    """What this node's daemon says about itself (`api.clique.DAEMON_STATUS_FILE`)."""

    domain_uid: str
    clique_id: str
    address: str
    ready: bool
    """Connected to the members that it knows."""


def parse_report(raw: Mapping[str, Any] | None) -> DaemonReport | None:
    """None where there is none. Whatever is in the file, only what is right counts."""
    if raw is None:
        return None
    domain_uid, clique_id, address = (str(raw.get(name, "")) for name in ("computeDomain", "cliqueID", "address"))
    return DaemonReport(domain_uid, clique_id, address, raw.get("ready") is True)


def check_release(
    request: ClaimRequest, use: DomainUse, membership: Membership | None, node: str, report: DaemonReport | None = None
) -> Release | Wait:
    """May this channel be given out now? Raises ClaimError where waiting is useless."""
    if membership is None:
        return Wait(
            f"claim {request.claim}: ComputeDomain {use.domain_uid} has no members in this node's NVLink clique yet; "
            "it is deleted, or the controller has not seen the claim, or the domainID is wrong"
        )
    domain = f"ComputeDomain {membership.domain_namespace}/{membership.domain_name}"
    if request.namespace != membership.domain_namespace:
        # Says no more than the claim's author knows: the domain is not theirs.
        raise ClaimError(
            request.claim,
            f"domainID {use.domain_uid} is of a ComputeDomain in another namespace; a ComputeDomain is for claims of "
            "its own namespace only",
            reason="WrongNamespace",
        )
    if request.uid in membership.abandoned:
        raise ClaimError(request.claim, "the pods that it is for are being deleted", reason="PodDeleted")
    if membership.draining:
        raise ClaimError(
            request.claim, f"{domain} is being deleted and takes no new claims", reason="ComputeDomainDraining"
        )
    member = membership.member(node)
    if member is None:
        return Wait(f"claim {request.claim}: node {node} is not a member of {domain} yet")
    if member.released or (membership.release_policy == "Connected" and _is_connected(membership, member, report)):
        return Release()
    return Wait(f"claim {request.claim}: {member.message or f'node {node} is not connected in {domain} yet'}")


def _is_connected(membership: Membership, member: Member, report: DaemonReport | None) -> bool:
    """By the word of the daemon that the membership means: an earlier one's is worth nothing."""
    if report is None or not report.ready:
        return False
    told = (report.domain_uid, report.clique_id, report.address)
    return member.address != "" and told == (membership.domain_uid, membership.clique_id, member.address)
