"""The devices of `gpu.nvidia.com`: full GPUs and MIG devices, as ResourceSlices carry them.

Names, attributes, capacities, counters and their types are those of NVIDIA's DRA driver, so existing selectors work.
`index` and `migCapable` of full GPUs are additions of ours.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from api.names import NUMA_NODE_ATTRIBUTE, PCI_BUS_ID_ATTRIBUTE, PCIE_ROOT_ATTRIBUTE
from api.quantity import format_quantity
from kubeletplugin.model.checkpoint import Checkpoint, MigHolding
from kubeletplugin.model.health import HealthStatus, NodeHealth, build_taints
from kubeletplugin.model.inventory import Gpu, Inventory, Mig, MigInstance, MigProfile, Placement
from kubeletplugin.model.mig import (
    admin_instances,
    find_profile,
    gpu_device_name,
    mig_device_name,
    order_placements,
)

ApiDevice = dict[str, Any]
"""One device as in ResourceSlice.spec.devices (resource.k8s.io/v1)."""
CounterSet = dict[str, Any]
"""One counter set as in ResourceSlice.spec.sharedCounters."""

_DIGITS: Final = re.compile("[0-9]+")
MAX_STRING_LENGTH: Final = 64  # k8s.io/api resource/v1 DeviceAttributeMaxValueLength
MAX_ATTRIBUTES_AND_CAPACITIES: Final = 32  # k8s.io/api resource/v1 ResourceSliceMaxAttributesAndCapacitiesPerDevice

_AMOUNTS: Final = (
    ("multiprocessors", "multiprocessors", "multiprocessors"),
    ("copy_engines", "copyEngines", "copy-engines"),
    ("decoders", "decoders", "decoders"),
    ("encoders", "encoders", "encoders"),
    ("jpeg_engines", "jpegEngines", "jpeg-engines"),
    ("ofa_engines", "ofaEngines", "ofa-engines"),
    ("memory_bytes", "memory", "memory"),
)
"""Field of MigProfile, name of the capacity, name of the counter."""


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
    informing: bool = True
    """Taints without effect. Kubernetes 1.34 refuses them."""
    shared: bool = True
    """DRAConsumableCapacity: devices that several claims may hold."""
    binding: bool = True
    """DRADeviceBindingConditions"""
    counters_apart: bool = True
    """Counter sets have slices of their own. Kubernetes 1.34 wants them in the slice of the devices that use them."""


@dataclass(frozen=True, slots=True)
class _Offer:
    """What one GPU offers: its full device, MIG devices by profile, the counters they draw from."""

    gpu: Gpu
    full: ApiDevice | None
    partitions: tuple[tuple[MigProfile, ApiDevice], ...]
    counter_set: CounterSet | None
    notes: tuple[str, ...]


def build_devices(
    inventory: Inventory,
    checkpoint: Checkpoint,
    health: NodeHealth | None = None,
    features: Features | None = None,
) -> DeviceSet:
    """What this node offers.

    MIG devices come first, one group per profile, small profiles before big ones, so a request that several profiles
    satisfy takes the smallest. In a group the fullest GPU comes first, so that whole GPUs stay whole. Full GPUs come
    last, those that cannot be partitioned first and the others from the end at which partitions do not begin.
    """
    health, features = health or NodeHealth(), features or Features()
    order = sorted(inventory.gpus, key=lambda gpu: -_used_units(gpu, checkpoint))
    offers = [_build_offer(gpu, inventory, checkpoint, health, features) for gpu in order]
    if not features.taints:
        offers = [_keep_held(offer, checkpoint) if _is_unhealthy(offer.gpu, health) else offer for offer in offers]
    by_profile: dict[str, list[tuple[MigProfile, ApiDevice]]] = {}
    for offer in offers:
        for profile, device in offer.partitions:
            by_profile.setdefault(profile.name, []).append((profile, device))
    groups = [
        DeviceGroup(name, tuple(device for _, device in entries))
        for name, entries in sorted(
            by_profile.items(), key=lambda item: min(_weight(profile) for profile, _ in item[1])
        )
    ]
    full = {offer.gpu.uuid: offer.full for offer in offers if offer.full is not None}
    if full:
        groups.append(DeviceGroup("gpu", tuple(full[gpu.uuid] for gpu in _full_order(inventory) if gpu.uuid in full)))
    by_gpu = {offer.gpu.uuid: offer for offer in offers}
    in_inventory_order = [by_gpu[gpu.uuid] for gpu in inventory.gpus]
    return DeviceSet(
        groups=tuple(groups),
        counter_sets=tuple(offer.counter_set for offer in in_inventory_order if offer.counter_set is not None),
        notes=(*inventory.unreadable, *(note for offer in in_inventory_order for note in offer.notes)),
    )


def _weight(profile: MigProfile) -> tuple[int, int, int, int]:
    engines = profile.decoders + profile.encoders + profile.jpeg_engines + profile.ofa_engines
    return profile.memory_bytes, profile.multiprocessors, engines, profile.profile_id


def _full_order(inventory: Inventory) -> list[Gpu]:
    whole = [gpu for gpu in inventory.gpus if gpu.mig is None]
    return whole + [gpu for gpu in inventory.gpus[::-1] if gpu.mig is not None]


def _used_units(gpu: Gpu, checkpoint: Checkpoint) -> int:
    """Memory slices that partitions take. A full GPU's holder counts nothing, for nobody can join it anyway."""
    held = sum(h.placement.size for _, h in checkpoint.on_gpu(gpu.uuid) if isinstance(h, MigHolding) and h.owned)
    return held + sum(instance.placement.size for instance in admin_instances(gpu, checkpoint))


def _build_offer(
    gpu: Gpu, inventory: Inventory, checkpoint: Checkpoint, health: NodeHealth, features: Features
) -> _Offer:
    base = _base_attributes(gpu, inventory)
    state = health.of(gpu.uuid)
    state = replace(state, lost=state.lost or gpu.lost)
    taints = build_taints(state, monitored=gpu.monitored, informing=features.informing) if features.taints else ()
    common: ApiDevice = {"taints": list(taints)} if taints else {}
    if gpu.mig is None or not _can_be_partitioned(gpu.mig):
        whole_device = {**_full_device(gpu, base), **common}
        return _Offer(gpu, None if _stuck_in_mig_mode(gpu) else whole_device, (), None, ())
    admins = admin_instances(gpu, checkpoint)
    notes = _notes(gpu, admins)
    if not features.partitionable:
        statics = _static_devices(gpu, gpu.mig.instances, base, common)
        whole = not gpu.mig.instances and not _holds_partitions(gpu, checkpoint)
        full = {**_full_device(gpu, base), **common} if whole and not _stuck_in_mig_mode(gpu) else None
        return _Offer(gpu, full, tuple(statics), None, notes)
    counters = _remaining_counters(gpu, admins)
    set_name = f"{gpu_device_name(gpu)}-counter-set"
    partitions = _static_devices(gpu, admins, base, common)
    partitions += _dynamic_devices(gpu, admins, _held_places(gpu, checkpoint), counters, base, common)
    full = None
    if not admins and not _stuck_in_mig_mode(gpu):
        full = {**_full_device(gpu, base, counters), "consumesCounters": [_consumption(set_name, counters)], **common}
    return _Offer(gpu, full, tuple(partitions), {"name": set_name, "counters": _quantities(counters)}, notes)


def _is_unhealthy(gpu: Gpu, health: NodeHealth) -> bool:
    return gpu.lost or health.of(gpu.uuid).status is HealthStatus.UNHEALTHY


def _keep_held(offer: _Offer, checkpoint: Checkpoint) -> _Offer:
    """Where taints do not reach the scheduler, nobody gets what is not offered; claims keep what they hold."""
    held = {
        device.device
        for record in checkpoint.records.values()
        for device in record.devices
        if device.holding.gpu_uuid == offer.gpu.uuid
    }
    full = offer.full if offer.full is not None and offer.full["name"] in held else None
    partitions = tuple((profile, device) for profile, device in offer.partitions if device["name"] in held)
    kept = [device for device in (full, *(device for _, device in partitions)) if device is not None]
    counter_set = offer.counter_set if any("consumesCounters" in device for device in kept) else None
    note = f"GPU {offer.gpu.uuid} ({gpu_device_name(offer.gpu)}): is unhealthy, and what no claim holds is not offered"
    return replace(offer, full=full, partitions=partitions, counter_set=counter_set, notes=(*offer.notes, note))


def _can_be_partitioned(mig: Mig) -> bool:
    """Now, and by us: an Ampere GPU out of MIG mode is not, nor one whose profiles the library does not list."""
    may_be = mig.enabled or not mig.mode_change_needs_reset
    return may_be and any(profile.placements for profile in mig.profiles)


def _stuck_in_mig_mode(gpu: Gpu) -> bool:
    """Ampere: MIG mode is the admin's, and a GPU in it cannot be used as a whole."""
    return gpu.mig is not None and gpu.mig.enabled and gpu.mig.mode_change_needs_reset


def _holds_partitions(gpu: Gpu, checkpoint: Checkpoint) -> bool:
    """Whether a claim holds a partition of this GPU."""
    return any(isinstance(holding, MigHolding) for _, holding in checkpoint.on_gpu(gpu.uuid))


def _notes(gpu: Gpu, admins: Iterable[MigInstance]) -> tuple[str, ...]:
    where = f"GPU {gpu.uuid} ({gpu_device_name(gpu)})"
    return tuple(
        f"{where}: GPU instance {i.gpu_instance_id} has compute instances of an admin's own layout and is not offered"
        if i.foreign
        else f"{where}: GPU instance {i.gpu_instance_id} has no compute instance and is not offered"
        for i in admins
        if i.foreign or not i.uuid
    )


def _base_attributes(gpu: Gpu, inventory: Inventory) -> dict[str, Any]:
    attributes: dict[str, Any] = {
        "productName": string_value(gpu.product_name),
        "brand": string_value(gpu.brand),
        "architecture": string_value(gpu.architecture),
        "cudaComputeCapability": {"version": semantic_version(gpu.cuda_compute_capability)},
        "driverVersion": {"version": semantic_version(inventory.driver_version)},
        "cudaDriverVersion": {"version": semantic_version(inventory.cuda_driver_version)},
        PCI_BUS_ID_ATTRIBUTE: string_value(gpu.pci_bus_id),
    }
    if gpu.pcie_root is not None:
        attributes[PCIE_ROOT_ATTRIBUTE] = string_value(gpu.pcie_root)
    if gpu.numa_node is not None and gpu.numa_node >= 0:
        attributes[NUMA_NODE_ATTRIBUTE] = {"int": gpu.numa_node}
    if gpu.addressing_mode is not None:
        attributes["addressingMode"] = string_value(gpu.addressing_mode)
    return attributes


def string_value(value: str) -> dict[str, str]:
    return {"string": value[:MAX_STRING_LENGTH]}


def semantic_version(text: str) -> str:
    """`9.0` -> `9.0.0`, `570.158.01` -> `570.158.1`, `6.14.5-oem` -> `6.14.5`: three numbers (semver.org 2.0.0)."""
    numbers = [int(found[0]) if (found := _DIGITS.match(part)) else 0 for part in text.split(".")]
    return ".".join(str(number) for number in (*numbers, 0, 0, 0)[:3])


def _full_device(gpu: Gpu, base: Mapping[str, Any], counters: Mapping[str, int] | None = None) -> ApiDevice:
    """`counters` of a GPU that can be partitioned: NVIDIA's driver tells its engines, too."""
    engines = {capacity: counters[counter] for _, capacity, counter in _AMOUNTS} if counters else {}
    return {
        "name": gpu_device_name(gpu),
        "attributes": {
            "type": string_value("gpu"),
            "uuid": string_value(gpu.uuid),
            **base,
            "index": {"int": gpu.index},
            "migCapable": {"bool": gpu.mig is not None},
        },
        "capacity": _quantities({**engines, "memory": gpu.memory_bytes}),
    }


def _mig_device(gpu: Gpu, profile: MigProfile, placement: Placement, base: Mapping[str, Any]) -> ApiDevice:
    return {
        "name": mig_device_name(gpu, profile, placement),
        "attributes": {
            "type": string_value("mig"),
            "parentUUID": string_value(gpu.uuid),
            "profile": string_value(profile.name),
            **base,
        },
        "capacity": {capacity: {"value": format_quantity(getattr(profile, field))} for field, capacity, _ in _AMOUNTS},
    }


def _static_devices(
    gpu: Gpu, instances: Iterable[MigInstance], base: Mapping[str, Any], common: ApiDevice
) -> list[tuple[MigProfile, ApiDevice]]:
    """Devices for the instances that exist and can be used: one compute instance over the whole."""
    return [
        (profile, {**_static_device(gpu, profile, instance.placement, instance.uuid, base), **common})
        for instance in instances
        if instance.uuid and not instance.foreign and (profile := find_profile(gpu, instance.profile_id)) is not None
    ]


def _static_device(
    gpu: Gpu, profile: MigProfile, placement: Placement, uuid: str, base: Mapping[str, Any]
) -> ApiDevice:
    device = _mig_device(gpu, profile, placement, base)
    device["attributes"]["uuid"] = string_value(uuid)
    for unit in range(placement.start, placement.start + placement.size):
        device["capacity"][f"memorySlice{unit}"] = {"value": "1"}
    if len(device["attributes"]) + len(device["capacity"]) > MAX_ATTRIBUTES_AND_CAPACITIES:
        device["attributes"].pop("addressingMode", None)
    return device


def _held_places(gpu: Gpu, checkpoint: Checkpoint) -> frozenset[tuple[int, Placement]]:
    """Profile ids and placements of our own partitions."""
    held = (holding for _, holding in checkpoint.on_gpu(gpu.uuid) if isinstance(holding, MigHolding) and holding.owned)
    return frozenset((holding.profile_id, holding.placement) for holding in held)


def _dynamic_devices(
    gpu: Gpu,
    admins: tuple[MigInstance, ...],
    held: frozenset[tuple[int, Placement]],
    left: Mapping[str, int],
    base: Mapping[str, Any],
    common: ApiDevice,
) -> list[tuple[MigProfile, ApiDevice]]:
    """A device for each placement that the admin's instances leave free, and for which enough of everything is left.

    What a claim holds is listed whatever is left, for the scheduler counts only what listed devices draw.
    """
    assert gpu.mig is not None
    set_name = f"{gpu_device_name(gpu)}-counter-set"
    devices = []
    for profile in gpu.mig.profiles:
        for placement in order_placements(profile, gpu.mig.profiles):
            needed = _consumed(profile, placement)
            ours = (profile.profile_id, placement) in held
            if any(placement.overlaps(admin.placement) for admin in admins):
                continue
            if not ours and any(amount > left.get(name, 0) for name, amount in needed.items()):
                continue
            device = _mig_device(gpu, profile, placement, base)
            devices.append((profile, {**device, "consumesCounters": [_consumption(set_name, needed)], **common}))
    return devices


def _consumed(profile: MigProfile, placement: Placement) -> dict[str, int]:
    amounts: dict[str, int] = {counter: getattr(profile, field) for field, _, counter in _AMOUNTS}
    for unit in range(placement.start, placement.start + placement.size):
        amounts[f"memory-slice-{unit}"] = 1
    return amounts


def _remaining_counters(gpu: Gpu, admins: Iterable[MigInstance]) -> dict[str, int]:
    """A GPU's counters: of each kind the most that any profile takes, less what the admin's instances took."""
    assert gpu.mig is not None
    profiles = [profile for profile in gpu.mig.profiles if profile.placements]
    left: dict[str, int] = {counter: max(getattr(p, field) for p in profiles) for field, _, counter in _AMOUNTS}
    for unit in range(max(place.start + place.size for p in profiles for place in p.placements)):
        left[f"memory-slice-{unit}"] = 1
    for instance in admins:
        profile = find_profile(gpu, instance.profile_id)
        for name, amount in (_consumed(profile, instance.placement) if profile else {}).items():
            left[name] = max(0, left.get(name, 0) - amount)
    return left


def _consumption(set_name: str, amounts: Mapping[str, int]) -> dict[str, Any]:
    return {"counterSet": set_name, "counters": _quantities(amounts)}


def _quantities(amounts: Mapping[str, int]) -> dict[str, Any]:
    return {name: {"value": format_quantity(amount)} for name, amount in amounts.items()}
