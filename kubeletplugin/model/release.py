"""When a channel may be given out, by what the controller and this node's daemon say. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from api.clique import Member, Membership, is_late
from api.errors import ClaimError
from kubeletplugin.model.channels import DomainUse, PreparedClaim, describe_holders
from kubeletplugin.model.claims import ClaimRequest

MESSAGE_LENGTH: Final = 256
"""Of a daemon's words: they are shown to people, and a container is free to write what it likes."""


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
    message: str = ""
    """What is missing, in its words."""


@dataclass(frozen=True, slots=True)
class UnreadableReport:
    """There is one, and it may say that the daemon is not connected."""

    reason: str


@dataclass(frozen=True, slots=True)
class Here:
    """What this node knows itself, without the controller."""

    report: DaemonReport | UnreadableReport | None = None
    alive: bool | None = None
    """Whether the daemon whose report that is still runs; None: nobody can tell, so it is not believed."""
    others: tuple[PreparedClaim, ...] = ()
    """What is prepared here for other domains."""


NOTHING_KNOWN: Final = Here()


def parse_report(raw: Mapping[str, Any] | None) -> DaemonReport | None:
    """None where there is none. Whatever is in the file, only what is right counts."""
    if raw is None:
        return None
    domain_uid, clique_id, address = (str(raw.get(name, "")) for name in ("computeDomain", "cliqueID", "address"))
    message = str(raw.get("message", ""))[:MESSAGE_LENGTH]
    return DaemonReport(domain_uid, clique_id, address, raw.get("ready") is True, message)


def check_release(
    request: ClaimRequest,
    use: DomainUse,
    membership: Membership | None,
    node: str,
    here: Here = NOTHING_KNOWN,
) -> Release | Wait:
    """May this channel be given out now? Raises ClaimError where waiting is useless."""
    decision = _check_domain(request, use, membership, node, here)
    if not here.others:
        return decision
    held = describe_holders(here.others)
    return Wait(f"{decision.reason}; {held}" if isinstance(decision, Wait) else f"claim {request.claim}: {held}")


def _check_domain(
    request: ClaimRequest, use: DomainUse, membership: Membership | None, node: str, here: Here
) -> Release | Wait:
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
    member = membership.member(node)
    if membership.draining and _is_late(request, membership, on_member=member is not None):
        raise ClaimError(
            request.claim, f"{domain} is being deleted and takes no new claims", reason="ComputeDomainDraining"
        )
    if use.release_policy and membership.release_policy and use.release_policy != membership.release_policy:
        raise ClaimError(
            request.claim,
            f"releasePolicy {use.release_policy} in its config is not that of {domain}; right would be "
            f"{membership.release_policy}, or none",
            reason="InvalidConfig",
        )
    if member is None:
        return Wait(f"claim {request.claim}: node {node} is not a member of {domain} yet")
    return _check_member(request, membership, member, here)


def _check_member(request: ClaimRequest, membership: Membership, member: Member, here: Here) -> Release | Wait:
    ready, detail = _hear(membership, member, here)
    by_policy = member.released or membership.release_policy == "Connected"
    if member.released if ready is None else ready and by_policy:
        return Release()
    domain = f"ComputeDomain {membership.domain_namespace}/{membership.domain_name}"
    reason = member.message or f"node {member.node} is not connected in {domain} yet"
    return Wait(f"claim {request.claim}: {reason}{f': {detail}' if detail else ''}")


def _hear(membership: Membership, member: Member, here: Here) -> tuple[bool | None, str]:
    """Whether the daemon that the membership means is connected, and what is missing; None: it does not say.

    The controller learns what becomes of a daemon later than its node does, so a no of this node's outweighs its yes.
    """
    report = here.report
    if here.alive is False:
        return False, "its daemon on this node has ended, and does not run again yet"
    if isinstance(report, UnreadableReport):
        return False, report.reason
    if here.alive and report is not None and _is_meant(membership, member, report):
        return report.ready, "" if report.ready else report.message
    return None, ""


def _is_late(request: ClaimRequest, membership: Membership, *, on_member: bool) -> bool:
    """An older controller, which does not say when the domain was deleted, wants none of them."""
    deleted_at = membership.deleted_at
    return deleted_at is None or is_late(request.allocated, deleted_at, on_member=on_member)


def _is_meant(membership: Membership, member: Member, report: DaemonReport) -> bool:
    """The report is of the daemon that the membership means: an earlier one's is worth nothing."""
    told = (report.domain_uid, report.clique_id, report.address)
    return member.address != "" and told == (membership.domain_uid, membership.clique_id, member.address)
