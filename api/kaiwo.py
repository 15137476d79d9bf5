"""KaiwoNode (`kaiwo.silogen.ai/v1alpha1`) and the profiles of AMD's Device Config Manager (DCM).

Sources: Kaiwo's documentation of GPU partitioning, whose names these are; DCM 1.3 for the format of profiles and its
labels. What is marked *added* is ours.

**Who writes what.** Users label a Node, or edit a KaiwoNode's `spec.partitioning`; labels win, and the controller
copies them into the spec. The controller alone writes `status`. DCM, or our node plugin, changes the hardware and says
how it went, on the Node.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from api.crd import Column, Condition, CustomResource, Model, build_crd, build_schema
from api.errors import InvalidObject
from api.names import KAIWO_GROUP

ENABLED_LABEL: Final = "kaiwo.silogen.ai/node.amd.partitioning.enabled"
PROFILE_LABEL: Final = "kaiwo.silogen.ai/node.amd.partitioning.profile"
TARGET_ANNOTATION: Final = "kaiwo.silogen.ai/node.amd.partitioning.target"
"""Added. The controller to our node plugin: a `Target` as JSON."""
REPORT_ANNOTATION: Final = "kaiwo.silogen.ai/node.amd.partitioning.report"
"""Added. Our node plugin's answer: a `TargetReport` as JSON."""
TAINTED_ANNOTATION: Final = "kaiwo.silogen.ai/node.amd.partitioning.tainted"
"""Added. The node's taint `amd-dcm` is the controller's: administrators set it, too, and theirs stays."""
DCM_ANNOTATION: Final = "kaiwo.silogen.ai/node.amd.partitioning.dcm"
"""Added. DCM's labels on the Node are the controller's; the value is the profile that it asked for."""
DCM_PROFILE_LABEL: Final = "dcm.amd.com/gpu-config-profile"
DCM_STATE_LABEL: Final = "dcm.amd.com/gpu-config-profile-state"

DCM_TAINT_KEY: Final = "amd-dcm"
DCM_TAINT_VALUE: Final = "up"
KAIWO_TAINT_KEY: Final = "kaiwo-partitioning"

CONFIG_MAP_NAMESPACE: Final = "kube-amd-gpu"
CONFIG_MAP_NAME: Final = "config-manager-config"
CONFIG_MAP_KEY: Final = "config.json"
_CONFIG_MAP: Final = f"ConfigMap {CONFIG_MAP_NAMESPACE}/{CONFIG_MAP_NAME}"

TOLERATIONS: Final[tuple[dict[str, str], ...]] = (
    {"effect": "NoExecute", "key": DCM_TAINT_KEY, "operator": "Equal", "value": DCM_TAINT_VALUE},
    {"key": KAIWO_TAINT_KEY, "operator": "Exists"},
)
"""What workloads of kube-system get: to stay on a node that is being partitioned, and to come back to it meanwhile."""


# --- profiles ---


class _Strict(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, frozen=True, extra="forbid")


class SkippedGpus(_Strict):
    ids: tuple[Annotated[int, Field(ge=0)], ...] = ()


class PartitionChoice(_Strict):
    compute_partition: Literal["SPX", "DPX", "TPX", "QPX", "CPX"]
    memory_partition: Literal["NPS1", "NPS2", "NPS4", "NPS8"]
    num_gpus_assigned: int | None = Field(default=None, alias="numGPUsAssigned", ge=0)
    """None: all that are left."""


class Profile(_Strict):
    skipped_gpus: SkippedGpus = Field(default=SkippedGpus(), alias="skippedGPUs")
    profiles: tuple[PartitionChoice, ...] = Field(min_length=1)


class _Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")  # DCM's own settings stand beside the profiles
    profiles: dict[str, Any] = Field(alias="gpu-config-profiles")


def _default_profile(compute: str, memory: str) -> dict[str, Any]:
    choice = {"computePartition": compute, "memoryPartition": memory, "numGPUsAssigned": 8}
    return {"skippedGPUs": {"ids": []}, "profiles": [choice]}


DEFAULT_CONFIG: Final[dict[str, Any]] = {
    "gpu-config-profiles": {"cpx": _default_profile("CPX", "NPS4"), "spx": _default_profile("SPX", "NPS1")}
}
"""Made when there is no ConfigMap (Kaiwo's documentation)."""


def build_default_config_map() -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"namespace": CONFIG_MAP_NAMESPACE, "name": CONFIG_MAP_NAME},
        "data": {CONFIG_MAP_KEY: json.dumps(DEFAULT_CONFIG, indent=2)},
    }


def parse_profiles(data: Mapping[str, str]) -> dict[str, Any]:
    """`data` of the ConfigMap: profiles by name, not looked into, so that one bad profile does not spoil the others.

    Raises InvalidObject, which names the field.
    """
    if CONFIG_MAP_KEY not in data:
        raise InvalidObject(f"{_CONFIG_MAP}: data has no {CONFIG_MAP_KEY}")
    try:
        return _Config.model_validate_json(data[CONFIG_MAP_KEY]).profiles
    except ValidationError as error:
        raise _refuse(error) from error


def parse_profile(name: str, raw: object) -> Profile:
    """Raises InvalidObject, which names the field."""
    try:
        return Profile.model_validate(raw)
    except ValidationError as error:
        raise _refuse(error, "gpu-config-profiles", name) from error


def _refuse(error: ValidationError, *where: str) -> InvalidObject:
    first = error.errors()[0]
    field = ".".join([CONFIG_MAP_KEY, *where, *(str(part) for part in first["loc"])])
    return InvalidObject(f"{_CONFIG_MAP}: {field}: {first['msg']} (got {first['input']!r})")


@dataclass(frozen=True, slots=True)
class GpuMode:
    compute: str
    memory: str

    @property
    def profile(self) -> str:
        """`cpx_nps4`, the value of attribute `partitionProfile` of ResourceSlices."""
        return f"{self.compute}_{self.memory}".lower()


def assign_modes(name: str, profile: Profile, gpu_count: int) -> tuple[GpuMode | None, ...]:
    """The mode of each GPU in order of index; None for a skipped one. Raises InvalidObject where it does not add up.

    Rules are DCM's: every GPU is assigned or skipped, and there is one memory mode.
    """
    where = f"profile {name!r}"
    skipped = set(profile.skipped_gpus.ids)
    if out := sorted(i for i in skipped if i >= gpu_count):
        raise InvalidObject(f"{where}: skippedGPUs.ids: {out[0]} is no GPU; the node has {gpu_count}, from 0")
    if len({choice.memory_partition for choice in profile.profiles}) > 1:
        raise InvalidObject(f"{where}: memoryPartition must be the same in all entries, since it is the whole node's")
    left = [i for i in range(gpu_count) if i not in skipped]
    modes: list[GpuMode | None] = [None] * gpu_count
    for choice in profile.profiles:
        count = len(left) if choice.num_gpus_assigned is None else choice.num_gpus_assigned
        if count > len(left):
            raise InvalidObject(
                f"{where}: numGPUsAssigned and skippedGPUs add up to more than the node's {gpu_count} GPUs"
            )
        for index in left[:count]:
            modes[index] = GpuMode(choice.compute_partition, choice.memory_partition)
        left = left[count:]
    if left:
        raise InvalidObject(
            f"{where}: numGPUsAssigned and skippedGPUs add up to {gpu_count - len(left)}; the node has {gpu_count} GPUs"
        )
    return tuple(modes)


# --- what the controller and our node plugin tell each other ---


class Target(_Strict):
    """What the node shall be. `id` is new for every attempt."""

    id: str
    modes: tuple[str | None, ...]
    """`cpx_nps4` by index of GPU; None: as it is."""


class TargetReport(Model):
    """How it went."""

    id: str
    state: Literal["working", "success", "failure"]
    message: str = ""
    modes: tuple[str | None, ...] = ()
    """As read from the hardware afterwards; None for a GPU that cannot be partitioned."""


# --- KaiwoNode ---


class PartitioningSpec(Model):
    enabled: bool = False
    profile: str = Field(default="", description="A profile of the ConfigMap config-manager-config: spx, cpx, or own.")


class KaiwoNodeSpec(Model):
    partitioning: PartitioningSpec = PartitioningSpec()


Phase = Literal[
    "",
    "Pending",
    "DrainingUntoleratedPods",
    "ApplyingPartitions",
    "WaitingForResourceUpdate",
    "Completed",
    "Error",
]
"""Kaiwo's, and *added* `Pending`: waiting until fewer nodes are being partitioned."""


class PartitioningStatus(Model):
    applied_profile: str = ""
    phase: Phase = ""
    target_profile: str = Field(default="", description="What is being applied, or was tried last.")
    """*Added, as the following.*"""
    target_modes: tuple[str, ...] = Field(default=(), description="By GPU; - for one that stays as it is.")
    attempt_id: str = Field(default="", alias="attemptID")
    attempts: int = Field(default=0, description="Failures in a row of this target.")
    phase_since: float = Field(default=0.0, description="Seconds since 1970.")
    waiting_since: float = Field(
        default=0.0,
        description="Since when it waits, before it is drained, for what may not take for ever; 0: it does not.",
    )
    applier: Literal["", "plugin", "dcm"] = ""
    in_place: bool = Field(
        default=False,
        description="The GPUs are in the modes already, and only must not leave them: nothing is drained.",
    )


class Amount(Model):
    """Quantities. `nominal` is what Kaiwo plans with: nine tenths."""

    actual: str = "0"
    nominal: str = "0"


class GpuResources(Model):
    vendor: str = ""
    model: str = Field(default="", description="As attribute productName of the devices.")
    resource_name: str = Field(default="", description="The DeviceClass.")
    logical_count: int = Field(default=0, description="Partitions; whole GPUs where claims choose the partitions.")
    physical_count: int = 0
    physical_vram_per_gpu: str = "0"
    logical_vram_per_gpu: str = "0"
    is_partitioned: bool = False


class NodeResources(Model):
    cpu: Amount = Amount()
    memory: Amount = Amount()
    gpus: GpuResources = GpuResources()


Overall = Literal["NotReady", "Ready", "Unknown", "Error", "Partitioning"]
NodeType = Literal["", "gpu", "cpu-only"]


class KaiwoNodeStatus(Model):
    status: Overall = "Unknown"
    partitioning: PartitioningStatus = PartitioningStatus()
    node_type: NodeType = ""
    resources: NodeResources = NodeResources()
    is_control_plane: bool = False
    unschedulable: bool = False
    kueue_flavor_name: str = Field(default="", description="Kaiwo's; left as it is.")
    conditions: list[Condition] = Field(
        default_factory=list,
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    )


KAIWO_NODE: Final = CustomResource(
    group=KAIWO_GROUP,
    version="v1alpha1",
    kind="KaiwoNode",
    plural="kaiwonodes",
    scope="Cluster",
    description="How the AMD GPUs of the Node of the same name are to be partitioned, and how far that is.",
    properties={"spec": build_schema(KaiwoNodeSpec), "status": build_schema(KaiwoNodeStatus)},
    columns=(
        Column("Status", ".status.status"),
        Column("GPU partitioning", ".status.partitioning.appliedProfile"),
        Column("Flavor", ".status.kueueFlavorName"),
        Column("Phase", ".status.partitioning.phase"),
        Column("Reason", '.status.conditions[?(@.type=="PartitioningCompleted")].message', wide=True),
        Column("Age", ".metadata.creationTimestamp", kind="date"),
    ),
)


def build_crds() -> list[dict[str, Any]]:
    """The CustomResourceDefinitions of this module, for the chart."""
    return [build_crd(KAIWO_NODE)]
