"""The devices of `gpu.nvidia.com`: full GPUs and MIG devices, as ResourceSlices carry them.

Names, attributes, capacities, counters and their types are those of NVIDIA's DRA driver, so existing selectors work.
"""

from dataclasses import dataclass
from typing import Any

from kubeletplugin.model.checkpoint import Checkpoint
from kubeletplugin.model.health import NodeHealth
from kubeletplugin.model.inventory import Inventory

ApiDevice = dict[str, Any]
"""One device as in ResourceSlice.spec.devices (resource.k8s.io/v1)."""
CounterSet = dict[str, Any]
"""One counter set as in ResourceSlice.spec.sharedCounters."""


@dataclass(frozen=True, slots=True)
class DeviceGroup:
    """Devices that share slices, in the order in which the scheduler shall try them."""

    name: str
    devices: tuple[ApiDevice, ...]


@dataclass(frozen=True, slots=True)
class DeviceSet:
    """Everything that one driver offers on one node."""

    groups: tuple[DeviceGroup, ...] = ()
    """In the order in which the scheduler shall try them."""
    counter_sets: tuple[CounterSet, ...] = ()
    notes: tuple[str, ...] = ()
    """One sentence for each thing that is left out, for the log."""


@dataclass(frozen=True, slots=True)
class Features:
    """What the API server stores; a field whose feature gate is off is dropped on write."""

    partitionable: bool = True
    """DRAPartitionableDevices: counters. Without them only full GPUs and existing MIG instances are offered."""
    taints: bool = True
    """DRADeviceTaints"""


def build_devices(
    inventory: Inventory,
    checkpoint: Checkpoint,
    health: NodeHealth | None = None,
    features: Features | None = None,
) -> DeviceSet:
    """What this node offers, with the GPUs in the order in which they shall be filled."""
    return DeviceSet()
