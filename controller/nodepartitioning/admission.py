"""Which nodes may be partitioned now, decided over all of them. Pure."""

from collections.abc import Sequence

from api.kaiwo import PartitioningStatus
from controller.nodepartitioning.plan import ACTIVE
from controller.nodepartitioning.state import Node, Settings

States = Sequence[tuple[Node, PartitioningStatus]]
"""All nodes that have AMD GPUs."""


def find_unavailable(nodes: States) -> dict[str, str]:
    """Why, by name. Nodes that failed are among them: a profile that breaks nodes stops at the limit."""
    return {node.name: why for node, status in nodes if (why := _find_reason(node, status))}


def _find_reason(node: Node, status: PartitioningStatus) -> str:
    if status.phase in ACTIVE and not status.in_place:
        return "is being partitioned"
    if status.phase == "Error" and status.attempts:
        return "has failed"
    return "" if node.is_ready else "is not ready"


def admit(nodes: States, settings: Settings) -> frozenset[str]:
    """Names of the waiting nodes that may begin. Control-plane nodes come last, and one at a time."""
    unavailable = find_unavailable(nodes)
    free = settings.max_unavailable - len(unavailable)
    control_plane_busy = any(node.is_control_plane and node.name in unavailable for node, _ in nodes)
    waiting = sorted(
        (node for node, status in nodes if status.phase == "Pending" and node.is_ready),
        key=lambda node: (node.is_control_plane, node.name),
    )
    admitted: list[str] = []
    for node in waiting[: max(0, free)]:
        if node.is_control_plane and (control_plane_busy or (len(waiting) > 1 and not waiting[0].is_control_plane)):
            continue
        control_plane_busy = control_plane_busy or node.is_control_plane
        admitted.append(node.name)
    return frozenset(admitted)
