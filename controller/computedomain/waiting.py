"""Pods that wait for their channel, and those of them that are deleted meanwhile. Pure.

A kubelet ends a pod only after its call for the pod's claim has been answered, and only the pod says that it is being
deleted. So the controller looks at pods that have waited for a while, and tells their nodes through the membership.
"""

from collections.abc import Set
from typing import Final

from controller.computedomain.clocks import find_waited_s
from controller.computedomain.state import ChannelClaim, Members, Observation

FOLLOW_AFTER_S: Final = 2.0
"""Pods are looked at when they have waited this long: most formations are over by then, and cost nothing."""


def is_left(claim: ChannelClaim, leaving: Set[str]) -> bool:
    """All the pods that it is for are leaving; of pods that nobody names that is not known."""
    return bool(claim.pods) and all(pod.uid in leaving for pod in claim.pods)


def find_abandoned(seen: Observation, members: Members) -> dict[str, tuple[str, ...]]:
    """By clique: the UIDs of claims that wait, and that no pod will use any more."""
    if not seen.leaving:
        return {}
    cliques = {**seen.fabric, **{member.node: member.clique_id for member in members.members}}
    found: dict[str, list[str]] = {}
    for claim in members.waiting:
        if is_left(claim, seen.leaving):
            found.setdefault(cliques.get(claim.node, ""), []).append(claim.ref.uid)
    return {clique: tuple(sorted(uids)) for clique, uids in found.items()}


def plan_following(seen: Observation, members: Members) -> tuple[bool, float | None]:
    """Whether pods are to be looked at now, and in how many seconds that may change without any other news."""
    waited_s = [find_waited_s(seen, claim) for claim in members.waiting]
    if not waited_s:
        return False, None
    longest_s = max(waited_s)
    return (True, None) if longest_s >= FOLLOW_AFTER_S else (False, FOLLOW_AFTER_S - longest_s)
