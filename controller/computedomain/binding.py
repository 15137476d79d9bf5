"""Binding conditions (KEP-5007): the scheduler binds a pod only when its channel's conditions say so. Pure.

A channel carries them where an administrator wants it and the API server knows them; then its allocation says so too,
and the pod waits in the scheduler instead of in the kubelet: until its whole domain is formed, and it is scheduled anew
where its node cannot take part.
"""

from collections.abc import Iterable

from api.clique import FAILED_CONDITION, FORMED_CONDITION
from controller.computedomain.actions import WriteBinding
from controller.computedomain.objects import format_time
from controller.computedomain.state import Domain, Member, Members, Observation
from controller.computedomain.status import is_connected


def plan_bindings(seen: Observation, domain: Domain, members: Members) -> list[WriteBinding]:
    """What the claims of pods that are not bound yet must be told. What is formed once stays so: the pod is bound."""
    by_node = {member.node: member for member in members.members}
    connected = is_connected(members, domain)
    refused = {claim.ref for claim in members.refused}
    actions = []
    for claim in seen.claims:
        binding = claim.binding
        if binding is None or binding.formed or claim.ref in refused:
            continue
        member = by_node.get(claim.node)
        failure = _find_failure(members, member, claim.node)
        formed = connected and member is not None and member.released
        if formed or (failure != "") != binding.failed:
            conditions = (
                (FORMED_CONDITION, formed, f"ComputeDomain {domain.ref}"),
                (FAILED_CONDITION, not formed and failure != "", failure),
            )
            actions.append(WriteBinding(claim.ref, binding, tuple(_build(conditions, seen.now))))
    return actions


def _find_failure(members: Members, member: Member | None, node: str) -> str:
    """Why the pod had better go to another node; "" while waiting is right."""
    if node in members.left_out:
        return members.left_out[node]
    if member is not None and node in members.occupied:
        return member.message
    return ""


def _build(conditions: Iterable[tuple[str, bool, str]], now: float) -> Iterable[dict[str, str]]:
    for kind, holds, message in conditions:
        yield {
            "type": kind,
            "status": "True" if holds else "False",
            "reason": kind.rpartition("ComputeDomain")[2],
            "message": message,
            "lastTransitionTime": format_time(now),
        }
