"""The devices of `gpu.amd.com`, as ResourceSlices carry them.

Attributes and capacities are those of AMD's DRA driver 1.0; names that its earlier versions used are kept where they
do not clash. `partitionIndex`, `memoryRange`, `hiveID`, `gpuIndex`, `computePartition`, `memoryPartition` are added,
and `isPresent`: of the modes that a GPU is offered in it marks the one that it is in.

A node that keeps its modes (static) offers the partitions that exist, one device each.

A claim that asks for capacity `partitions: 1`, as for AMD's driver when it partitions on claim, fits every device.

A node that partitions on claim offers each mode of each GPU as one device, of which every allocation is one partition
(consumable capacity `partitions`). Names never change, so the scheduler's book stays right whatever mode the hardware
is in; counters keep the modes apart:
- a GPU's set holds one `mode`, and every device takes it: one mode at a time.
- the node's set holds `free`. A device of the present memory mode takes one. A device of another takes all of it, as it
  needs the driver to be loaded again, which disturbs every GPU. After that the slices are written anew, and the other
  GPUs can be had in the new memory mode too.
"""

from collections.abc import Sequence
from dataclasses import dataclass
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
    partition_device_name,
    smallest_partition_bytes,
)
from kubeletplugin.model.checkpoint import Checkpoint
from kubeletplugin.model.devices import (
    ApiDevice,
    CounterSet,
    DeviceGroup,
    DeviceSet,
    semantic_version,
    string_value,
)

NODE_COUNTERS: Final = "memory-mode"


def build_amd_devices(inventory: AmdInventory, checkpoint: Checkpoint, *, on_claim: bool) -> DeviceSet:
    """What this node offers. `on_claim`: every mode, to be brought about when it is claimed; else what exists."""
    held: dict[str, list[Held]] = {gpu.pci_address: [] for gpu in inventory.gpus}
    for item in held_partitions(checkpoint):
        held.setdefault(item.holding.gpu_uuid, []).append(item)
    gpus = [_Gpu(index, gpu, inventory, tuple(held[gpu.pci_address])) for index, gpu in enumerate(inventory.gpus)]
    if not on_claim or not any(one.gpu.offers for one in gpus):
        devices = tuple(device for one in gpus for device in _existing(one))
        return DeviceSet((DeviceGroup("present", devices),) if devices else (), (), inventory.unreadable)
    return _all_modes(inventory, gpus)


@dataclass(frozen=True, slots=True)
class _Gpu:
    index: int
    gpu: AmdGpu
    inventory: AmdInventory
    held: tuple[Held, ...]

    def held_by_name(self) -> int:
        """Partitions that claims hold under names of their own: from before the node partitioned on claim."""
        return sum(
            1 for item in self.held if item.mode is not None and item.device.device != self._mode_name(item.mode)
        )

    def _mode_name(self, mode: Mode) -> str:
        return mode_device_name(self.gpu.pci_address, mode)


def _existing(one: _Gpu) -> list[ApiDevice]:
    """The partitions, but for those that claims hold under a mode's name: from when the node partitioned on claim."""
    names = {p.slot: partition_device_name(one.gpu, p.slot) for p in one.gpu.partitions}
    taken = {item.holding.slot for item in one.held if item.device.device != names.get(item.holding.slot)}
    return [_partition_device(one, partition) for partition in one.gpu.partitions if partition.slot not in taken]


def _all_modes(inventory: AmdInventory, gpus: Sequence[_Gpu]) -> DeviceSet:
    """Devices that need no change first, whole GPUs before partitions; then those that change more and more."""
    pinned = any(one.held_by_name() for one in gpus)
    groups: dict[str, list[tuple[_Gpu, ApiDevice]]] = {"present": [], "compute": [], "memory": []}
    for one in gpus:
        if one.gpu.mode is None:
            groups["present"] += [(one, device) for device in _existing(one)]
        for offer in one.gpu.offers:
            kind = _change(one.gpu, offer.mode)
            if pinned and (kind == "memory" or (kind == "compute" and one.held_by_name())):
                continue
            device = _mode_device(one, offer)
            if kind == "present":
                device["attributes"]["isPresent"] = {"bool": True}
            groups[kind].append((one, device))
    groups["present"].sort(key=lambda entry: entry[1]["attributes"]["type"]["string"] != "amdgpu")
    total = sum(len(entries) for entries in groups.values())
    for kind, entries in groups.items():
        for one, device in entries:
            device["consumesCounters"] = [_node_counters("counterSet", total if kind == "memory" else 1)]
            if one.gpu.mode is not None:
                device["consumesCounters"].insert(0, _gpu_counters("counterSet", one))
    return DeviceSet(
        groups=tuple(
            DeviceGroup(kind, tuple(device for _, device in entries)) for kind, entries in groups.items() if entries
        ),
        counter_sets=(
            *(_gpu_counters("name", one) for one in gpus if one.gpu.mode is not None),
            _node_counters("name", total),
        ),
        notes=inventory.unreadable,
    )


def _change(gpu: AmdGpu, mode: Mode) -> str:
    """What has to change on the hardware: `present` nothing, `compute` this GPU only, `memory` the whole node."""
    if gpu.mode is None or gpu.mode == mode:
        return "present"
    return "compute" if gpu.mode.memory == mode.memory else "memory"


def _gpu_counters(key: str, one: _Gpu) -> CounterSet:
    return _counters(key, f"{gpu_name(one.gpu.pci_address)}-mode", "mode", 1)


def _node_counters(key: str, amount: int) -> CounterSet:
    return _counters(key, NODE_COUNTERS, "free", amount)


def _counters(key: str, name: str, counter: str, amount: int) -> CounterSet:
    return {key: name, "counters": {counter: {"value": format_quantity(amount)}}}


def _partition_device(one: _Gpu, partition: Partition) -> ApiDevice:
    gpu, is_whole = one.gpu, len(one.gpu.partitions) == 1
    attributes = _attributes(one, gpu.mode, is_whole)
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
            "partitions": {"value": "1"},
        },
    }


def _mode_device(one: _Gpu, offer: ModeOffer) -> ApiDevice:
    gpu, is_whole = one.gpu, offer.partitions == 1
    amounts = {
        "memory": smallest_partition_bytes(gpu.memory_bytes, offer),
        "computeUnits": gpu.compute_units // offer.partitions,
        "simdUnits": gpu.simd_units // offer.partitions,
    }
    device: ApiDevice = {
        "name": mode_device_name(gpu.pci_address, offer.mode),
        "attributes": _attributes(one, offer.mode, is_whole),
        "capacity": {name: {"value": format_quantity(amount)} for name, amount in amounts.items()},
    }
    if is_whole:
        device["capacity"]["partitions"] = {"value": "1"}
    else:
        for capacity in device["capacity"].values():
            capacity["requestPolicy"] = _fixed_policy("0")  # the size of each partition: no allocation uses it up
        count = offer.partitions - (one.held_by_name() if gpu.mode == offer.mode else 0)
        device["capacity"]["partitions"] = {"value": str(count), "requestPolicy": _fixed_policy("1")}
        device["allowMultipleAllocations"] = True
    return device


def _fixed_policy(amount: str) -> dict[str, Any]:
    """Every allocation takes exactly `amount`; a claim that asks for more does not fit."""
    return {"default": amount, "validValues": [amount]}


def _attributes(one: _Gpu, mode: Mode | None, is_whole: bool) -> dict[str, Any]:
    gpu, inventory = one.gpu, one.inventory
    attributes: dict[str, Any] = {
        "type": string_value("amdgpu" if is_whole else "amdgpu-partition"),
        "productName": string_value(gpu.product_name.replace(" ", "_").replace("(", "").replace(")", "")),
        "deviceID": string_value(gpu.device_id),
        "family": string_value("AI"),
        "gpuIndex": {"int": one.index},
        "pciAddr" if is_whole else "parentPciAddr": string_value(gpu.pci_address),
        PCI_BUS_ID_ATTRIBUTE: string_value(gpu.pci_address),
    }
    if inventory.driver_version:
        attributes["driverVersion"] = {"version": semantic_version(inventory.driver_version)}
        attributes["driverVersionFull"] = string_value(inventory.driver_version)
    if inventory.driver_source_version:
        attributes["driverSrcVersion"] = string_value(inventory.driver_source_version)
    if mode is not None:
        attributes["partitionProfile"] = string_value(mode.profile)
        attributes["computePartition"] = string_value(mode.compute.lower())
        attributes["memoryPartition"] = string_value(mode.memory.lower())
    if not is_whole and gpu.unique_id:
        attributes["parentDeviceID"] = string_value(str(int(gpu.unique_id, 16)))
    if gpu.numa_node is not None:
        attributes["numaNode"] = {"int": gpu.numa_node}
        attributes[NUMA_NODE_ATTRIBUTE] = {"int": gpu.numa_node}
    if gpu.pcie_root is not None:
        attributes[PCIE_ROOT_ATTRIBUTE] = string_value(gpu.pcie_root)
    if gpu.hive_id is not None:
        attributes["hiveID"] = string_value(gpu.hive_id)
    return attributes
