"""For how long something has been so. Pure.

Claims, pods and nodes say since when in the time of other machines, and any clock may be off, or be set. So what this
process has seen for some time itself (`Plan.held`) has been so for that time at least, and of a pod that ends nothing
else counts: nobody ends it by force sooner because our clock is ahead.
"""

from controller.computedomain.state import ChannelClaim, DaemonPod, Members, Observation, Phase


def plan_clocks(seen: Observation, members: Members) -> list[str]:
    """What is to be measured: see `Plan.held`."""
    waiting = [_waiting(claim) for claim in members.waiting]
    ending = [_ending(pod) for pod in seen.pods if pod.terminating]
    lost = [_lost(pod) for pod in seen.pods if pod.lost_at is not None]
    finished = [_finished(pod) for pod in seen.pods if pod.phase is Phase.FINISHED]
    return [*waiting, *ending, *lost, *finished]


def find_waited_s(seen: Observation, claim: ChannelClaim) -> float:
    """Since the claim was allocated; where nobody knows when, a pod may have been Pending for hours before."""
    held_s = seen.held_s.get(_waiting(claim), 0.0)
    return max(held_s, seen.now - claim.allocated.at) if claim.allocated.is_known else held_s


def find_overdue_s(seen: Observation, pod: DaemonPod) -> float:
    """Since the grace of a pod that is terminating was over; negative before."""
    return seen.held_s.get(_ending(pod), 0.0) - pod.grace_s


def find_lost_s(seen: Observation, pod: DaemonPod) -> float:
    """Since Kubernetes has heard nothing of its node."""
    return 0.0 if pod.lost_at is None else max(seen.held_s.get(_lost(pod), 0.0), seen.now - pod.lost_at)


def find_finished_s(seen: Observation, pod: DaemonPod) -> float:
    """Since one that has finished was made, or was seen to have finished."""
    return max(seen.held_s.get(_finished(pod), 0.0), seen.now - pod.created_at)


def _waiting(claim: ChannelClaim) -> str:
    return f"claim {claim.ref.uid} waits"


def _ending(pod: DaemonPod) -> str:
    return f"pod {pod.ref.uid} ends"


def _lost(pod: DaemonPod) -> str:
    return f"pod {pod.ref.uid} is lost"


def _finished(pod: DaemonPod) -> str:
    return f"pod {pod.ref.uid} has finished"
