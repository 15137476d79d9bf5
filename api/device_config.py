"""Opaque device configs: what `opaque.parameters` of a claim or DeviceClass may say to our drivers.

Kinds, fields and defaults are those of NVIDIA's and AMD's DRA drivers, plus `releasePolicy` of ours. Parsing is strict:
an unknown field, a wrong kind or version and a malformed value are InvalidObject, naming the field and what is right.
"""

import json
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails

from api.errors import InvalidObject
from api.names import AMD_CONFIG_API_VERSION, RESOURCE_API_VERSION
from api.quantity import parse_quantity

_MIB: Final = 1024**2


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, defer_build=True)


class TimeSlicingConfig(_Strict):
    interval: Literal["Default", "Short", "Medium", "Long"] = "Default"

    @property
    def nvml_value(self) -> int:
        """0 default .. 3 long, as in `kubeletplugin.model.steps.SetTimeSlice`."""
        return ("Default", "Short", "Medium", "Long").index(self.interval)


class MpsConfig(_Strict):
    defaultActiveThreadPercentage: Annotated[int, Field(ge=0, le=100)] | None = None
    defaultPinnedDeviceMemoryLimit: str | None = None
    defaultPerDevicePinnedMemoryLimit: dict[str, str] | None = None
    """By GPU index or UUID."""
    multiUser: bool | None = None

    @field_validator("defaultPinnedDeviceMemoryLimit")
    @classmethod
    def _check_limit(cls, limit: str | None) -> str | None:
        if limit is not None and parse_limit(limit) < _MIB:
            raise ValueError(f"{limit} is too low; right would be at least 1Mi")
        return limit

    @field_validator("defaultPerDevicePinnedMemoryLimit")
    @classmethod
    def _check_limits(cls, limits: dict[str, str] | None) -> dict[str, str] | None:
        for selector, limit in (limits or {}).items():
            if not re.fullmatch(r"\d+|(GPU|MIG)-[0-9a-fA-F-]+", selector):
                raise ValueError(f"invalid selector {selector!r}; right would be a GPU's index or UUID")
            cls._check_limit(limit)
        return limits


def parse_limit(text: str) -> int:
    """A memory limit in bytes. Raises ValueError, as pydantic's validators must."""
    try:
        return parse_quantity(text)
    except InvalidObject as error:
        raise ValueError(str(error)) from error


class GpuSharing(_Strict):
    strategy: Literal["TimeSlicing", "MPS"]
    timeSlicingConfig: TimeSlicingConfig | None = None
    mpsConfig: MpsConfig | None = None

    @model_validator(mode="before")
    @classmethod
    def _normalise(cls, value: Any) -> Any:
        """A strategy without its settings means the settings' defaults."""
        if not isinstance(value, dict):
            return value
        match value.get("strategy"):
            case "TimeSlicing" if value.get("timeSlicingConfig") is None:
                return {**value, "timeSlicingConfig": {}}
            case "MPS" if value.get("mpsConfig") is None:
                return {**value, "mpsConfig": {}}
        return value

    @model_validator(mode="after")
    def _check_pair(self) -> "GpuSharing":
        if self.strategy == "TimeSlicing" and self.mpsConfig is not None:
            raise ValueError("mpsConfig does not belong to strategy TimeSlicing; right would be timeSlicingConfig")
        if self.strategy == "MPS" and self.timeSlicingConfig is not None:
            raise ValueError("timeSlicingConfig does not belong to strategy MPS; right would be mpsConfig")
        return self


class MigSharing(_Strict):
    strategy: Literal["TimeSlicing", "MPS"]
    """TimeSlicing is accepted and has no effect: a MIG instance has no time-slice of its own."""
    mpsConfig: MpsConfig | None = None


class VfioIommu(_Strict):
    backendPolicy: Literal["LegacyOnly", "PreferIommuFD"] = "LegacyOnly"
    enableAPIDevice: bool = False


class _Config(_Strict):
    DEVICES: ClassVar[re.Pattern[str]]
    """Names of the devices to which this kind applies."""

    def applies_to(self, device: str) -> bool:
        return self.DEVICES.match(device) is not None


class GpuConfig(_Config):
    DEVICES = re.compile(r"gpu-\d+$")
    apiVersion: Literal["resource.nvidia.com/v1beta1"]
    kind: Literal["GpuConfig"]
    sharing: GpuSharing | None = None


class MigDeviceConfig(_Config):
    DEVICES = re.compile(r"gpu-\d+-mig-")
    apiVersion: Literal["resource.nvidia.com/v1beta1"]
    kind: Literal["MigDeviceConfig"]
    sharing: MigSharing | None = None


class VfioDeviceConfig(_Config):
    DEVICES = re.compile(r"gpu-vfio-")
    apiVersion: Literal["resource.nvidia.com/v1beta1"]
    kind: Literal["VfioDeviceConfig"]
    iommu: VfioIommu | None = None

    @model_validator(mode="after")
    def _refuse(self) -> "VfioDeviceConfig":
        raise ValueError(
            "passthrough of GPUs to virtual machines is not offered by this driver; request a GPU or MIG device"
        )


class ComputeDomainChannelConfig(_Config):
    DEVICES = re.compile(r"channel-\d+$")
    apiVersion: Literal["resource.nvidia.com/v1beta1"]
    kind: Literal["ComputeDomainChannelConfig"]
    domainID: Annotated[str, Field(min_length=1)]
    allocationMode: Literal["Single", "All"] = "Single"
    releasePolicy: Literal["Connected", "AllNodes"] | None = None
    """The ComputeDomain's own, or unset: it is decided there, and a claim that says another one is refused."""


class ComputeDomainDaemonConfig(_Config):
    DEVICES = re.compile(r"daemon-\d+$")
    apiVersion: Literal["resource.nvidia.com/v1beta1"]
    kind: Literal["ComputeDomainDaemonConfig"]
    domainID: Annotated[str, Field(min_length=1)]


class AmdGpuConfig(_Config):
    DEVICES = re.compile(r"")
    apiVersion: Literal["gpu.resource.amd.com/v1alpha1"]
    kind: Literal["GpuConfig"]


DeviceConfig = (
    GpuConfig
    | MigDeviceConfig
    | VfioDeviceConfig
    | ComputeDomainChannelConfig
    | ComputeDomainDaemonConfig
    | AmdGpuConfig
)
_KINDS: Final[dict[str, dict[str, type[DeviceConfig]]]] = {
    RESOURCE_API_VERSION: {
        "GpuConfig": GpuConfig,
        "MigDeviceConfig": MigDeviceConfig,
        "VfioDeviceConfig": VfioDeviceConfig,
        "ComputeDomainChannelConfig": ComputeDomainChannelConfig,
        "ComputeDomainDaemonConfig": ComputeDomainDaemonConfig,
    },
    AMD_CONFIG_API_VERSION: {"GpuConfig": AmdGpuConfig},
}


def parse_device_config(parameters: Mapping[str, Any]) -> DeviceConfig:
    """Read one config of any of our drivers. Raises InvalidObject."""
    return _parse_json(json.dumps(parameters, sort_keys=True))


@lru_cache(maxsize=256)  # a template's claims all carry the same few configs
def _parse_json(text: str) -> DeviceConfig:
    parameters = json.loads(text)
    if not isinstance(parameters, dict):
        raise InvalidObject("must be an object with apiVersion and kind")
    version, kind = parameters.get("apiVersion"), parameters.get("kind")
    if version not in _KINDS:
        raise InvalidObject(f"apiVersion: {version!r} is not known; right would be one of {', '.join(_KINDS)}")
    if kind not in _KINDS[version]:
        raise InvalidObject(
            f"kind: {kind!r} is not known in {version}; right would be one of {', '.join(_KINDS[version])}"
        )
    try:
        return _KINDS[version][kind].model_validate(parameters)
    except ValidationError as error:
        raise InvalidObject("; ".join(_explain(kind, detail) for detail in error.errors())) from error


def _explain(kind: str, detail: ErrorDetails) -> str:
    path = ".".join([kind, *(str(part) for part in detail["loc"])])
    if detail["type"] == "extra_forbidden":
        return f"{path}: unknown field"
    if detail["type"] == "missing":
        return f"{path}: required, but missing"
    got = "" if isinstance(detail["input"], dict) else f" (got {detail['input']!r})"
    return f"{path}: {detail['msg'].removeprefix('Value error, ')}{got}"
