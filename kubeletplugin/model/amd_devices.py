"""The devices of `gpu.amd.com`, as ResourceSlices carry them.

Attributes and capacities are those of AMD's DRA driver 1.0; names that its earlier versions used are kept where they
do not clash. `partitionIndex`, `memoryRange`, `hiveID`, `gpuIndex`, `computePartition`, `memoryPartition` are added.

How modes are kept apart. The partitions of a GPU's present mode are devices of their own. Each other mode is one device
of which every allocation is one partition (consumable capacity `partitions`). Counters do the rest:
- a GPU's set holds `slots`, one for each present partition. A partition takes one, another mode takes all: another
  mode can be had while no present partition is taken, and none of them while it is.
- the node's set holds `free`. A device takes one, a mode that changes the memory mode takes all, for it needs the
  driver to be loaded again. After that the slices are written anew, and the other GPUs follow in their new mode.
While a claim holds another mode's device, that device alone stands for the GPU.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from api.names import NUMA_NODE_ATTRIBUTE, PCI_BUS_ID_ATTRIBUTE, PCIE_ROOT_ATTRIBUTE
from api.quantity import format_quantity
from kubeletplugin.model.amd_partitions import (
    AmdGpu,
    AmdInventory,
    Held,
    Mode,
    ModeOffer,
    Partition,
    gpu_name,
    held_partitions,
    mode_device_name,
    parse_device_name,
    partition_device_name,
    smallest_partition_bytes,
)
from kubeletplugin.model.checkpoint import Checkpoint
from kubeletplugin.model.devices import (
    MAX_STRING_LENGTH,
    ApiDevice,
    CounterSet,
    DeviceGroup,
    DeviceSet,
    semantic_version,
)

NODE_COUNTERS: Final = "memory-mode"
GPU_COUNTER: Final = "slots"
NODE_COUNTER: Final = "free"


def build_amd_devices(inventory: AmdInventory, checkpoint: Checkpoint, *, on_claim: bool) -> DeviceSet:
    """What this node offers. `on_claim`: other modes too, to be brought about when they are claimed.

    The order is that in which the scheduler tries: partitions before whole GPUs, GPUs that are partly used before those
    that are not, and modes that need a change last, the more of the node it concerns the later.
    """
    held: dict[str, list[Held]] = {gpu.pci_address: [] for gpu in inventory.gpus}
    for item in held_partitions(checkpoint):
        held.setdefault(item.holding.gpu_uuid, []).append(item)
    shelves = [_Shelf(index, gpu, inventory, held[gpu.pci_address]) for index, gpu in enumerate(inventory.gpus)]
    present = [(shelf, device) for shelf in shelves for device in shelf.present()]
    others = [(shelf, offer) for shelf in shelves for offer in shelf.other_offers()] if on_claim else []
    if not others and not any(shelf.is_reserved for shelf in shelves):
        return _device_set(inventory, shelves, {"present": [device for _, device in present]}, counted=False)
    total = len(present) + len(others)
    groups: dict[str, list[ApiDevice]] = {"present": [], "compute": [], "memory": []}
    for shelf, device in present:
        takes_all = shelf.changes_memory(shelf.reserved_mode)
        groups["present"].append({**device, **_consumption(shelf, shelf.is_reserved, total if takes_all else 1)})
    for shelf, offer in others:
        takes_all = shelf.changes_memory(offer.mode)
        device = {**shelf.offered(offer), **_consumption(shelf, True, total if takes_all else 1)}
        groups["memory" if takes_all else "compute"].append(device)
    return _device_set(inventory, shelves, groups, counted=True, total=total)


class _Shelf:
    """One GPU and what can be had of it."""

    def __init__(self, index: int, gpu: AmdGpu, inventory: AmdInventory, held: Sequence[Held]) -> None:
        self.index, self.gpu, self.inventory, self.held = index, gpu, inventory, held
        reserved = [item for item in held if item.mode is not None and self._needs_offer(item)]
        self.reserved_mode = reserved[0].mode if reserved else None

    def _needs_offer(self, item: Held) -> bool:
        """Whether the claim was given a mode's device, or awaits a mode: present partitions cannot stand for it."""
        ref = parse_device_name(item.device.device)
        assert item.mode is not None
        return item.mode != self.gpu.mode or (
            ref is not None and ref.slot is None and self.gpu.partitions_in(item.mode) > 1
        )

    @property
    def is_reserved(self) -> bool:
        return self.reserved_mode is not None

    @property
    def slots(self) -> int:
        return 1 if self.is_reserved else len(self.gpu.partitions)

    def changes_memory(self, mode: Mode | None) -> bool:
        return mode is not None and self.gpu.mode is not None and mode.memory != self.gpu.mode.memory

    def present(self) -> list[ApiDevice]:
        if self.reserved_mode is None:
            return [self._partition(partition) for partition in self.gpu.partitions]
        offer = ModeOffer(self.reserved_mode, self.gpu.partitions_in(self.reserved_mode))
        named = sum(1 for item in self.held if not self._is_by_mode(item))
        return [self.offered(offer, left=offer.partitions - named)]

    @staticmethod
    def _is_by_mode(item: Held) -> bool:
        ref = parse_device_name(item.device.device)
        return ref is not None and ref.slot is None

    def other_offers(self) -> list[ModeOffer]:
        if self.is_reserved:
            return []
        return [offer for offer in self.gpu.offers if offer.mode != self.gpu.mode]

    def _partition(self, partition: Partition) -> ApiDevice:
        gpu, is_whole = self.gpu, len(self.gpu.partitions) == 1
        attributes = self._attributes(gpu.mode, is_whole)
        attributes["cardIndex"] = {"int": partition.card}
        attributes["renderIndex"] = {"int": partition.render}
        if not is_whole and gpu.mode is not None:
            attributes["partitionIndex"] = {"int": partition.slot}
            attributes["memoryRange"] = {"int": partition.slot * gpu.mode.memory_ranges // len(gpu.partitions)}
        return {
            "name": partition_device_name(gpu, partition.slot),
            "attributes": attributes,
            "capacity": {
                "memory": {"value": format_quantity(partition.memory_bytes)},
                "computeUnits": {"value": format_quantity(partition.compute_units)},
                "simdUnits": {"value": format_quantity(partition.simd_units)},
            },
        }

    def offered(self, offer: ModeOffer, left: int | None = None) -> ApiDevice:
        """A mode's device. `left`: of its partitions, those that are not held under names of their own."""
        gpu, is_whole = self.gpu, offer.partitions == 1
        amounts = {
            "memory": smallest_partition_bytes(gpu.memory_bytes, offer),
            "computeUnits": gpu.compute_units // offer.partitions,
            "simdUnits": gpu.simd_units // offer.partitions,
        }
        device: ApiDevice = {
            "name": mode_device_name(gpu.pci_address, offer.mode),
            "attributes": self._attributes(offer.mode, is_whole),
            "capacity": {name: {"value": format_quantity(amount)} for name, amount in amounts.items()},
        }
        if not is_whole:
            for capacity in device["capacity"].values():
                capacity["requestPolicy"] = _fixed_policy("0")  # the size of one partition, of which none is used up
            count = offer.partitions if left is None else left
            device["capacity"]["partitions"] = {"value": str(count), "requestPolicy": _fixed_policy("1")}
            device["allowMultipleAllocations"] = True
        return device

    def _attributes(self, mode: Mode | None, is_whole: bool) -> dict[str, Any]:
        gpu, inventory = self.gpu, self.inventory
        attributes: dict[str, Any] = {
            "type": _string("amdgpu" if is_whole else "amdgpu-partition"),
            "productName": _string(gpu.product_name.replace(" ", "_").replace("(", "").replace(")", "")),
            "deviceID": _string(gpu.device_id),
            "family": _string("AI"),
            "gpuIndex": {"int": self.index},
            "pciAddr" if is_whole else "parentPciAddr": _string(gpu.pci_address),
            PCI_BUS_ID_ATTRIBUTE: _string(gpu.pci_address),
        }
        if inventory.driver_version:
            attributes["driverVersion"] = {"version": semantic_version(inventory.driver_version)}
            attributes["driverVersionFull"] = _string(inventory.driver_version)
        if inventory.driver_source_version:
            attributes["driverSrcVersion"] = _string(inventory.driver_source_version)
        if mode is not None:
            attributes["partitionProfile"] = _string(mode.profile)
            attributes["computePartition"] = _string(mode.compute)
            attributes["memoryPartition"] = _string(mode.memory)
        if not is_whole and gpu.unique_id:
            attributes["parentDeviceID"] = _string(str(int(gpu.unique_id, 16)))
        if gpu.numa_node is not None:
            attributes["numaNode"] = {"int": gpu.numa_node}
            attributes[NUMA_NODE_ATTRIBUTE] = {"int": gpu.numa_node}
        if gpu.pcie_root is not None:
            attributes[PCIE_ROOT_ATTRIBUTE] = _string(gpu.pcie_root)
        if gpu.hive_id is not None:
            attributes["hiveID"] = _string(gpu.hive_id)
        return attributes


def _string(value: str) -> dict[str, str]:
    return {"string": value[:MAX_STRING_LENGTH]}


def _fixed_policy(amount: str) -> dict[str, Any]:
    """Every allocation takes exactly `amount`; a claim that asks for another amount does not fit."""
    return {"default": amount, "validValues": [amount]}


def _consumption(shelf: _Shelf, whole: bool, of_node: int) -> dict[str, Any]:
    return {
        "consumesCounters": [
            _counters(_set_name(shelf), GPU_COUNTER, shelf.slots if whole else 1, key="counterSet"),
            _counters(NODE_COUNTERS, NODE_COUNTER, of_node, key="counterSet"),
        ]
    }


def _set_name(shelf: _Shelf) -> str:
    return f"{gpu_name(shelf.gpu.pci_address)}-mode"


def _counters(name: str, counter: str, amount: int, *, key: str = "name") -> CounterSet:
    return {key: name, "counters": {counter: {"value": format_quantity(amount)}}}


def _device_set(
    inventory: AmdInventory,
    shelves: Sequence[_Shelf],
    groups: Mapping[str, Sequence[ApiDevice]],
    *,
    counted: bool,
    total: int = 0,
) -> DeviceSet:
    used = {gpu_name(shelf.gpu.pci_address): len(shelf.held) for shelf in shelves}
    ordered = {"present": sorted(groups["present"], key=lambda device: _present_order(device, used))}
    ordered |= {name: list(devices) for name, devices in groups.items() if name != "present"}
    sets = [_counters(_set_name(shelf), GPU_COUNTER, shelf.slots) for shelf in shelves] if counted else []
    return DeviceSet(
        groups=tuple(DeviceGroup(name, tuple(devices)) for name, devices in ordered.items() if devices),
        counter_sets=(*sets, _counters(NODE_COUNTERS, NODE_COUNTER, total)) if counted else (),
        notes=inventory.unreadable,
    )


def _present_order(device: ApiDevice, used: Mapping[str, int]) -> tuple[bool, int]:
    ref = parse_device_name(device["name"])
    assert ref is not None
    return device["attributes"]["type"]["string"] == "amdgpu", -used[gpu_name(ref.pci_address)]
