"""Health of GPUs: events in, taints and health reports out.

An XID stays until the GPU was reset, which shows as lost and found again in the inventory, or until the plugin restarts
(a reset by hand needs every user of the GPU stopped, this plugin among them).
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Any, Final

from kubeletplugin.model.inventory import Inventory

IGNORED_XIDS: Final = frozenset({13, 31, 43, 45, 68, 109})
"""Faults of applications, not of the GPU (NVIDIA's DRA driver, health of devices)."""
LOST_XID: Final = 79
"""GPU has fallen off the bus (NVIDIA XID catalogue)."""
XID_TAINT: Final = "gpu.nvidia.com/xid"
LOST_TAINT: Final = "gpu.nvidia.com/gpu-lost"
UNMONITORED_TAINT: Final = "gpu.nvidia.com/unmonitored"


class HealthStatus(IntEnum):
    """Values of kubelet's health service (v1 HealthStatus)."""

    UNKNOWN = 0
    HEALTHY = 1
    UNHEALTHY = 2


@dataclass(frozen=True, slots=True)
class GpuHealth:
    """One GPU. `xids` in order of first appearance, ignored ones left out."""

    xids: tuple[int, ...] = ()
    ignored_xid: int | None = None
    """The latest of those that are the applications' faults: said, and without effect."""
    lost: bool = False
    """The inventory says so."""

    @property
    def gone(self) -> bool:
        """Lost, by whichever word came first: the event's or the inventory's."""
        return self.lost or LOST_XID in self.xids

    @property
    def status(self) -> HealthStatus:
        return HealthStatus.UNHEALTHY if self.lost or self.xids else HealthStatus.HEALTHY

    @property
    def message(self) -> str:
        parts = ["the GPU is lost: it fell off the bus or needs a reset"] if self.gone else []
        if self.xids:
            parts.append("critical XID " + ", ".join(str(xid) for xid in self.xids) + " until the GPU is reset")
        return "; ".join(parts)


@dataclass(frozen=True, slots=True)
class NodeHealth:
    """All GPUs of which there is something to say, by UUID; an ignored XID is, and leaves its GPU healthy."""

    gpus: Mapping[str, GpuHealth] = field(default_factory=dict)

    def of(self, gpu_uuid: str) -> GpuHealth:
        return self.gpus.get(gpu_uuid, GpuHealth())


def observe_event(health: NodeHealth, gpu_uuid: str, xid: int, ignored: Collection[int] = IGNORED_XIDS) -> NodeHealth:
    """Take in one critical XID event."""
    old = health.of(gpu_uuid)
    if xid in ignored:
        new = replace(old, ignored_xid=xid)
    else:
        new = old if xid in old.xids else replace(old, xids=(*old.xids, xid))
    return health if new == old else NodeHealth({**health.gpus, gpu_uuid: new})


def observe_inventory(health: NodeHealth, inventory: Inventory) -> NodeHealth:
    """Take in a fresh inventory: a GPU that was lost and answers again was reset, which clears its XIDs too.

    Lost counts by whichever word came first, since a loss may begin and end between two inventories. An inventory older
    than the event clears too much for a moment: the library repeats the event, and the next inventory shows the loss.
    """
    gpus = dict(health.gpus)
    for gpu in inventory.gpus:
        old = health.of(gpu.uuid)
        if gpu.lost and not old.lost:
            gpus[gpu.uuid] = replace(old, lost=True)
        elif not gpu.lost and old.gone:
            del gpus[gpu.uuid]
    return NodeHealth(gpus) if gpus != dict(health.gpus) else health


def build_taints(gpu: GpuHealth, *, monitored: bool = True, informing: bool = True) -> tuple[dict[str, Any], ...]:
    """Device taints (resource.k8s.io/v1 DeviceTaint), without `timeAdded`, which the API server sets.

    `informing`: with those that only tell (effect None), which Kubernetes 1.34 does not know.
    """
    taints: list[dict[str, Any]] = []
    if gpu.gone:
        taints.append({"key": LOST_TAINT, "effect": "NoSchedule"})
    if gpu.xids:
        taints.append({"key": XID_TAINT, "value": str(gpu.xids[-1]), "effect": "NoSchedule"})
    elif gpu.ignored_xid is not None and informing:
        taints.append({"key": XID_TAINT, "value": str(gpu.ignored_xid), "effect": "None"})
    if not monitored and informing:
        taints.append({"key": UNMONITORED_TAINT, "effect": "None"})
    return tuple(taints)
