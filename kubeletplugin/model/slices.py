"""ResourceSlices of one pool: building them, and planning the writes that make the API server's the same.

Rules: k8s.io/dynamic-resource-allocation resourceslice (controller) and k8s.io/api resource/v1 (limits).
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from api.errors import InvalidObject
from api.names import DRA_API_VERSION
from api.quantity import parse_quantity
from api.resources import NodeView, SliceView, view_slice
from kubeletplugin.model.devices import MAX_ATTRIBUTES_AND_CAPACITIES, ApiDevice, DeviceSet

SliceSpec = dict[str, Any]
"""ResourceSlice.spec without `pool.generation` and `pool.resourceSliceCount`, which `plan_publication` sets."""

MAX_DEVICES: Final = 128  # ResourceSliceMaxDevices
MAX_DEVICES_WITH_COUNTERS_OR_TAINTS: Final = 64  # ResourceSliceMaxDevicesWithTaintsOrConsumesCounters
MAX_COUNTER_SETS: Final = 8  # ResourceSliceMaxCounterSets
MAX_COUNTERS: Final = 32  # ResourceSliceMaxCountersPerCounterSet
MAX_TAINTS: Final = 16  # DeviceTaintsMaxLength
MAX_NAME_LENGTH: Final = 63  # a device's name is a DNS label
MAX_GENERATED_BASE: Final = 58  # k8s.io/apiserver names: the server cuts generateName here and adds 5 characters

_INDEX: Final = re.compile(r"([0-9a-f]{5,})-")
_DNS_LABEL: Final = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?")


@dataclass(frozen=True, slots=True)
class CreateSlice:
    """POST `body` (a whole ResourceSlice with `generateName`)."""

    body: dict[str, Any]


@dataclass(frozen=True, slots=True)
class UpdateSlice:
    """PUT `body`, which carries name, uid and resourceVersion of what was read."""

    body: dict[str, Any]


@dataclass(frozen=True, slots=True)
class DeleteSlice:
    """DELETE with preconditions; 404 is success."""

    name: str
    uid: str
    resource_version: str


SliceAction = DeleteSlice | UpdateSlice | CreateSlice


def build_slices(
    driver: str, pool: str, node: str, devices: DeviceSet, *, counters_apart: bool = True
) -> list[SliceSpec]:
    """The slices of a node's pool, in the allocator's order: counter sets, then the groups.

    Without devices there is one empty slice, which shows that the driver is alive. Raises InvalidObject where a limit
    of the API is broken.
    """
    _check_devices(devices)
    base = {"driver": driver, "nodeName": node, "pool": {"name": pool}}
    if not counters_apart:
        return _join_counters(base, devices)
    slices: list[SliceSpec] = [
        {**base, "sharedCounters": list(chunk)} for chunk in _chunks(devices.counter_sets, MAX_COUNTER_SETS)
    ]
    slices.extend(piece for group in devices.groups for piece in _slice_group(base, group.devices))
    return slices or [{**base, "devices": []}]


def _slice_group(base: SliceSpec, devices: Sequence[ApiDevice]) -> list[SliceSpec]:
    limited = any("consumesCounters" in device or "taints" in device for device in devices)
    size = MAX_DEVICES_WITH_COUNTERS_OR_TAINTS if limited else MAX_DEVICES
    return [{**base, "devices": list(chunk)} for chunk in _chunks(devices, size)]


def _join_counters(base: SliceSpec, devices: DeviceSet) -> list[SliceSpec]:
    """Slices of what needs no counters, then one for each counter set with all that draws from it.

    Sets from which one device draws are in one slice. The order of profiles and whole GPUs holds within a slice only.
    """
    free: list[SliceSpec] = []
    drawing: dict[str, list[ApiDevice]] = {}
    place = _place_together(devices)
    for group in devices.groups:
        free += _slice_group(base, [device for device in group.devices if not device.get("consumesCounters")])
        for device in group.devices:
            if device.get("consumesCounters"):
                drawing.setdefault(place[device["consumesCounters"][0]["counterSet"]], []).append(device)
    joined = [
        {**base, "sharedCounters": [each for each in devices.counter_sets if place[each["name"]] == name], "devices": d}
        for name, d in drawing.items()
    ]
    return free + joined or [{**base, "devices": []}]


def _place_together(devices: DeviceSet) -> dict[str, str]:
    """Counter set -> the one that stands for all that must be in its slice, for a device draws from both."""
    place = {each["name"]: each["name"] for each in devices.counter_sets}
    for device in (device for group in devices.groups for device in group.devices):
        names = [consumption["counterSet"] for consumption in device.get("consumesCounters", ())]
        for other in names[1:]:
            joining, stays = place[other], place[names[0]]
            place = {name: stays if stands == joining else stands for name, stands in place.items()}
    return place


def wants_counters_joined(refusal: str) -> bool:
    """Whether the API server refused a slice because its counter sets are in another one, as 1.34 does."""
    return "must reference a counterSet defined in the ResourceSlice sharedCounters" in refusal


def refuses_informing_taints(refusal: str) -> bool:
    """Whether the API server refused a slice because a taint of its devices has effect None, as 1.34 does."""
    return re.search(r'taints\[\d+\]\.effect: Unsupported value: "None"', refusal) is not None


def plan_publication(
    stored: Sequence[Mapping[str, Any]], desired: Sequence[SliceSpec], node: NodeView
) -> tuple[SliceAction, ...]:
    """The writes, in order, that turn the stored slices of this driver and node into the desired ones.

    `stored`: whole ResourceSlices; `desired`: all of one pool. Obsolete slices are deleted, then changed ones updated,
    then missing ones created. The pool's generation grows only where more than one write is needed to see it complete.
    """
    views = sorted((view_slice(raw) for raw in stored), key=lambda view: (-view.generation, view.name))
    kept: dict[int, tuple[SliceView, Mapping[str, Any]]] = {}
    obsolete: list[SliceView] = []
    raw_by_name = {raw["metadata"]["name"]: raw for raw in stored}
    for view in views:
        index = _find_index(view, desired, node)
        if index is None or index in kept:
            obsolete.append(view)
        else:
            kept[index] = (view, raw_by_name[view.name])
    generation = max((view.generation for view in views), default=0)
    changed = {
        index for index, (view, _) in kept.items() if not _is_current(view, desired[index], generation, len(desired))
    }
    if len(kept) < len(desired) or len(changed) > 1:
        generation += 1
        changed = set(kept)
    specs = [_complete_spec(spec, generation, len(desired)) for spec in desired]
    return (
        *(DeleteSlice(view.name, view.uid, view.resource_version) for view in obsolete),
        *(UpdateSlice(_update_body(kept[index][1], specs[index])) for index in sorted(changed)),
        *(CreateSlice(_create_body(i, spec, node)) for i, spec in enumerate(specs) if i not in kept),
    )


def dropped_features(written: Mapping[str, Any], stored: Mapping[str, Any]) -> frozenset[str]:
    """Feature gates that must be off, for the server dropped fields of theirs from the spec that we wrote.

    Arguments are ResourceSlice specs. The names are those of Kubernetes' feature gates.
    """
    dropped = set()
    if written.get("sharedCounters") and not stored.get("sharedCounters"):
        dropped.add("DRAPartitionableDevices")
    stored_devices = {device["name"]: device for device in stored.get("devices") or ()}
    for device in written.get("devices") or ():
        kept = stored_devices.get(device["name"], {})
        dropped.update(gate for field, gate in _GATES.items() if device.get(field) and not kept.get(field))
    return frozenset(dropped)


_GATES: Final = {
    "consumesCounters": "DRAPartitionableDevices",
    "taints": "DRADeviceTaints",
    "allowMultipleAllocations": "DRAConsumableCapacity",
    "bindingConditions": "DRADeviceBindingConditions",
}
"""Field of a device -> feature gate without which the API server drops it."""


def _chunks(items: Sequence[Any], size: int) -> list[Sequence[Any]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def _check_devices(devices: DeviceSet) -> None:
    """Refuse what would make the whole pool unusable to the allocator."""
    sets: dict[str, set[str]] = {}
    for counter_set in devices.counter_sets:
        name, counters = counter_set["name"], counter_set["counters"]
        if name in sets:
            raise InvalidObject(f"counter set {name} is there twice; names must be unique in a pool")
        if len(counters) > MAX_COUNTERS:
            raise InvalidObject(f"counter set {name} has {len(counters)} counters; at most {MAX_COUNTERS} are allowed")
        sets[name] = set(counters)
    names: set[str] = set()
    for device in (device for group in devices.groups for device in group.devices):
        if device["name"] in names:
            raise InvalidObject(f"device {device['name']} is there twice; names must be unique in a pool")
        names.add(device["name"])
        _check_device(device, sets)


def _check_device(device: ApiDevice, sets: Mapping[str, set[str]]) -> None:
    name = device["name"]
    if len(name) > MAX_NAME_LENGTH or not _DNS_LABEL.fullmatch(name):
        raise InvalidObject(f"device name {name!r} is no DNS label of at most {MAX_NAME_LENGTH} characters")
    count = len(device.get("attributes", ())) + len(device.get("capacity", ()))
    if count > MAX_ATTRIBUTES_AND_CAPACITIES:
        raise InvalidObject(
            f"device {name} has {count} attributes and capacities; at most {MAX_ATTRIBUTES_AND_CAPACITIES} are allowed"
        )
    if len(device.get("taints", ())) > MAX_TAINTS:
        raise InvalidObject(f"device {name} has more than {MAX_TAINTS} taints")
    for consumption in device.get("consumesCounters", ()):
        counter_set = consumption["counterSet"]
        if counter_set not in sets:
            raise InvalidObject(f"device {name} consumes from counter set {counter_set}, which the pool does not have")
        unknown = set(consumption["counters"]) - sets[counter_set]
        if unknown:
            raise InvalidObject(
                f"device {name} consumes {', '.join(sorted(unknown))}, which {counter_set} does not have"
            )


def _generate_name(index: int, spec: Mapping[str, Any], node: NodeView) -> str:
    return f"{index:05x}-{spec['driver']}-{node.name}-"[:MAX_GENERATED_BASE]


def _find_index(view: SliceView, desired: Sequence[SliceSpec], node: NodeView) -> int | None:
    """Which of the desired slices a stored one stands for; None where name, owner or pool are not as we make them."""
    match = _INDEX.match(view.name)
    index = int(match.group(1), 16) if match else len(desired)
    if index >= len(desired) or view.owner_uid != node.uid:
        return None
    spec = desired[index]
    same = all(view.spec.get(key) == spec[key] for key in ("driver", "nodeName"))
    named = view.name.startswith(_generate_name(index, spec, node))
    return index if same and named and view.spec["pool"]["name"] == spec["pool"]["name"] else None


def _is_current(view: SliceView, spec: SliceSpec, generation: int, count: int) -> bool:
    pool = view.spec["pool"]
    return (
        view.generation == generation
        and pool.get("resourceSliceCount") == count
        and _same(view.spec.get("devices") or [], spec.get("devices") or [])
        and _same(view.spec.get("sharedCounters") or [], spec.get("sharedCounters") or [])
    )


def _same(stored: Any, desired: Any) -> bool:
    """Equal in meaning: quantities by value, `timeAdded` of taints, which the server sets, left out."""
    if stored == desired:
        return True
    if isinstance(stored, list) and isinstance(desired, list):
        return len(stored) == len(desired) and all(_same(a, b) for a, b in zip(stored, desired, strict=True))
    if isinstance(stored, dict) and isinstance(desired, dict):
        if set(stored) - {"timeAdded"} != set(desired) - {"timeAdded"}:
            return False
        if set(stored) == {"value"}:
            return _same_value(stored["value"], desired["value"])
        return all(_same(stored[key], desired[key]) for key in desired if key != "timeAdded")
    return False


def _same_value(stored: Any, desired: Any) -> bool:
    """Of `{"value": ...}`, which is a quantity in capacities and counters."""
    try:
        return parse_quantity(stored) == parse_quantity(desired)
    except InvalidObject:
        return False


def _complete_spec(spec: SliceSpec, generation: int, count: int) -> SliceSpec:
    pool = {"name": spec["pool"]["name"], "generation": generation, "resourceSliceCount": count}
    return {**spec, "pool": pool}


def _create_body(index: int, spec: SliceSpec, node: NodeView) -> dict[str, Any]:
    owner = {"apiVersion": "v1", "kind": "Node", "name": node.name, "uid": node.uid, "controller": True}
    return {
        "apiVersion": DRA_API_VERSION,
        "kind": "ResourceSlice",
        "metadata": {"generateName": _generate_name(index, spec, node), "ownerReferences": [owner]},
        "spec": spec,
    }


def _update_body(raw: Mapping[str, Any], spec: SliceSpec) -> dict[str, Any]:
    """The stored object with our spec; a taint that stays keeps the time at which it was added."""
    metadata = {key: value for key, value in raw["metadata"].items() if key != "managedFields"}
    old = {device["name"]: device for device in raw["spec"].get("devices") or () if "taints" in device}
    if old and "devices" in spec:
        devices = [_keep_times(device, old.get(device["name"], {})) for device in spec["devices"]]
        spec = {**spec, "devices": devices}
    return {"apiVersion": DRA_API_VERSION, "kind": "ResourceSlice", "metadata": metadata, "spec": spec}


def _keep_times(device: ApiDevice, old: Mapping[str, Any]) -> ApiDevice:
    if "taints" not in device or "taints" not in old:
        return device
    times = {(t["key"], t.get("value"), t["effect"]): t.get("timeAdded") for t in old["taints"]}
    taints = []
    for taint in device["taints"]:
        time = times.get((taint["key"], taint.get("value"), taint["effect"]))
        taints.append({**taint, "timeAdded": time} if time else taint)
    return {**device, "taints": taints}
