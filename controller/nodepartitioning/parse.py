"""From objects of the API server to the values that plans are made from. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from pydantic import BaseModel, ValidationError

from api.errors import InvalidObject
from api.kaiwo import (
    DCM_ANNOTATION,
    DCM_TAINT_KEY,
    DCM_TAINT_VALUE,
    KAIWO_TAINT_KEY,
    REPORT_ANNOTATION,
    TAINTED_ANNOTATION,
    TARGET_ANNOTATION,
    KaiwoNodeSpec,
    KaiwoNodeStatus,
    Target,
    TargetReport,
    parse_profiles,
)
from api.names import AMD_GPU_DRIVER, PCI_BUS_ID_ATTRIBUTE
from api.quantity import parse_quantity
from api.resources import allocated_devices
from controller.nodepartitioning.state import Device, KaiwoNode, Node, Pod, Taint, Workload

Json = Mapping[str, Any]
M = TypeVar("M", bound=BaseModel)

CONTROL_PLANE_LABEL: Final = "node-role.kubernetes.io/control-plane"
DCM_POD_LABEL: Final = ("app.kubernetes.io/name", "device-config-manager")  # as AMD's GPU Operator labels its pods
MIRROR_ANNOTATION: Final = "kubernetes.io/config.mirror"  # of static pods
_ENDED: Final = frozenset({"Succeeded", "Failed"})
_REPLACED_BY: Final = frozenset({"ReplicaSet", "DaemonSet"})
_NO_EXECUTE: Final = (Taint(DCM_TAINT_KEY, DCM_TAINT_VALUE, "NoExecute"), Taint(KAIWO_TAINT_KEY, "", "NoExecute"))
_NO_SCHEDULE: Final = (Taint(KAIWO_TAINT_KEY, "", "NoSchedule"),)


@dataclass(frozen=True, slots=True)
class StoredKaiwoNode:
    """`owner` is the UID of the Node that owns it; empty for none."""

    name: str
    uid: str
    owner: str
    kaiwo: KaiwoNode


@dataclass(frozen=True, slots=True)
class StoredProfiles:
    """The ConfigMap: its profiles, or why they cannot be read."""

    profiles: Mapping[str, Any] | None
    fault: str = ""


@dataclass(frozen=True, slots=True)
class StoredSlice:
    """Of `gpu.amd.com`."""

    node: str
    pool: str
    generation: int
    slice_count: int
    devices: tuple[Device, ...]


@dataclass(frozen=True, slots=True)
class Holding:
    """A claim with AMD GPUs of a node, and the pods that it is reserved for."""

    label: str
    nodes: tuple[str, ...]
    pods: tuple[str, ...]


def parse_node(raw: Json) -> Node:
    metadata, spec = raw["metadata"], raw.get("spec") or {}
    labels, annotations = metadata.get("labels") or {}, metadata.get("annotations") or {}
    status = raw.get("status") or {}
    allocatable = status.get("allocatable") or {}
    return Node(
        name=metadata["name"],
        uid=metadata["uid"],
        labels=labels,
        taints=frozenset(
            Taint(taint["key"], taint.get("value") or "", taint["effect"]) for taint in spec.get("taints") or ()
        ),
        is_control_plane=CONTROL_PLANE_LABEL in labels,
        is_ready=any(each["type"] == "Ready" and each["status"] == "True" for each in status.get("conditions") or ()),
        is_unschedulable=bool(spec.get("unschedulable")),
        cpu=allocatable.get("cpu", "0"),
        memory=allocatable.get("memory", "0"),
        target_id=_target_id(annotations.get(TARGET_ANNOTATION)),
        report=_report(annotations.get(REPORT_ANNOTATION)),
        owns_dcm_taint=TAINTED_ANNOTATION in annotations,
        asked_dcm=DCM_ANNOTATION in annotations,
    )


def _target_id(text: str | None) -> str:
    try:
        return Target.model_validate_json(text).id if text else ""
    except ValidationError:
        return "unreadable"  # somebody else wrote it: no attempt has this id, so it is written anew


def _report(text: str | None) -> TargetReport | None:
    try:
        return TargetReport.model_validate_json(text) if text else None
    except ValidationError:
        return None  # as if not answered: the phase has a limit, and says so


def parse_kaiwo_node(raw: Json) -> StoredKaiwoNode:
    """One that Kaiwo itself has stored may be in a phase that we do not know: then we begin anew."""
    metadata = raw["metadata"]
    owners = [owner["uid"] for owner in metadata.get("ownerReferences") or () if owner.get("kind") == "Node"]
    kaiwo = KaiwoNode(_read(KaiwoNodeSpec, raw.get("spec")), _read(KaiwoNodeStatus, raw.get("status")))
    return StoredKaiwoNode(metadata["name"], metadata["uid"], owners[0] if owners else "", kaiwo)


def _read(model: type[M], raw: object) -> M:
    """Empty where it cannot be read."""
    try:
        return model.model_validate(raw or {})
    except ValidationError:
        return model()


def parse_config_map(raw: Json) -> StoredProfiles:
    try:
        return StoredProfiles(parse_profiles(raw.get("data") or {}))
    except InvalidObject as error:
        return StoredProfiles(None, str(error))


def parse_slice(raw: Json) -> StoredSlice | None:
    spec = raw["spec"]
    if spec["driver"] != AMD_GPU_DRIVER or not spec.get("nodeName"):
        return None
    pool = spec["pool"]
    return StoredSlice(
        node=spec["nodeName"],
        pool=pool["name"],
        generation=int(pool.get("generation", 0)),
        slice_count=int(pool["resourceSliceCount"]),
        devices=tuple(_device(device) for device in spec.get("devices") or ()),
    )


def _device(raw: Json) -> Device:
    attributes, capacity = raw.get("attributes") or {}, raw.get("capacity") or {}

    def text(*names: str) -> str:
        return next((attributes[name]["string"] for name in names if name in attributes), "")

    def amount(name: str, default: int) -> int:
        return parse_quantity(capacity[name]["value"]) if name in capacity else default

    return Device(
        text(PCI_BUS_ID_ATTRIBUTE, "pciAddr", "parentPciAddr"),
        text("partitionProfile"),
        text("productName"),
        amount("memory", 0),
        amount("partitions", 1),
        bool((attributes.get("isPresent") or {}).get("bool")),
    )


def parse_holding(raw: Json) -> Holding | None:
    devices = allocated_devices(raw, AMD_GPU_DRIVER)
    if not devices:
        return None
    metadata = raw["metadata"]
    reserved = (raw.get("status") or {}).get("reservedFor") or ()
    return Holding(
        label=f"{metadata['namespace']}/{metadata['name']}",
        nodes=tuple(sorted({device["pool"] for device in devices})),  # the driver's pools bear their node's name
        pods=tuple(consumer["uid"] for consumer in reserved),
    )


def combine_slices(slices: Iterable[StoredSlice]) -> tuple[Device, ...] | None:
    """`Observation.published` of a node; None while its newest generation is not complete."""
    found = tuple(slices)
    if not found:
        return None
    newest = max(piece.generation for piece in found)
    current = [piece for piece in found if piece.generation == newest]
    if len(current) < current[0].slice_count:
        return None
    return tuple(sorted(device for piece in current for device in piece.devices))


def is_dcm_pod(raw: Json) -> bool:
    key, value = DCM_POD_LABEL
    return bool((raw["metadata"].get("labels") or {}).get(key) == value)


def find_dcm(pods: Iterable[Json]) -> tuple[bool, str]:
    """Whether one is ready; else, the name of one that may become so. One that has ended or leaves does not count."""
    coming = [each for each in pods if is_dcm_pod(each) and _may_become_ready(each)]
    if any(_is_ready(each) for each in coming):
        return True, ""
    return False, next((f"{each['metadata']['namespace']}/{each['metadata']['name']}" for each in coming), "")


def _may_become_ready(raw: Json) -> bool:
    return "deletionTimestamp" not in raw["metadata"] and (raw.get("status") or {}).get("phase") not in _ENDED


def _is_ready(raw: Json) -> bool:
    conditions = (raw.get("status") or {}).get("conditions") or ()
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)


def parse_pod(raw: Json, holdings: Iterable[Holding]) -> Pod | None:
    """None for one that has ended. `holdings`: those of the pod's node."""
    metadata, spec = raw["metadata"], raw["spec"]
    if (raw.get("status") or {}).get("phase") in _ENDED:
        return None
    tolerations = spec.get("tolerations") or ()
    return Pod(
        namespace=metadata["namespace"],
        name=metadata["name"],
        uid=metadata["uid"],
        # AMD's manager tolerates its own taint only, and is what the drain is for.
        tolerates=is_dcm_pod(raw) or tolerates_partitioning(tolerations),
        is_static=MIRROR_ANNOTATION in (metadata.get("annotations") or {}),
        is_terminating="deletionTimestamp" in metadata,
        is_replaceable=any(owner["kind"] in _REPLACED_BY for owner in metadata.get("ownerReferences") or ()),
        claims=tuple(holding.label for holding in holdings if metadata["uid"] in holding.pods),
    )


def parse_workload(raw: Json, kind: str) -> Workload:
    metadata = raw["metadata"]
    tolerations = raw["spec"]["template"]["spec"].get("tolerations") or ()
    return Workload(kind, metadata["namespace"], metadata["name"], tolerates_fully(tolerations))


def tolerates_partitioning(tolerations: Sequence[Json]) -> bool:
    """Stays on the node: both NoExecute taints, without a limit of time."""
    return all(any(_tolerates(toleration, taint) for toleration in tolerations) for taint in _NO_EXECUTE)


def tolerates_fully(tolerations: Sequence[Json]) -> bool:
    """May come to the node, too: a DaemonSet's pod that ends meanwhile, and that the node cannot do without."""
    taints = (*_NO_EXECUTE, *_NO_SCHEDULE)
    return all(any(_tolerates(toleration, taint) for toleration in tolerations) for taint in taints)


def _tolerates(toleration: Json, taint: Taint) -> bool:
    """k8s.io/api core/v1 Toleration.ToleratesTaint."""
    if toleration.get("effect") not in (None, "", taint.effect) or toleration.get("tolerationSeconds") is not None:
        return False
    if toleration.get("key") not in (None, "", taint.key):
        return False
    if toleration.get("operator") == "Exists":
        return True
    return bool(toleration.get("key")) and (toleration.get("value") or "") == taint.value
