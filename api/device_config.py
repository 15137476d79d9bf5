"""Opaque device configs: what `opaque.parameters` of a claim or DeviceClass may say to our drivers.

Kinds, fields and defaults are those of NVIDIA's and AMD's DRA drivers, plus `releasePolicy` of ours, less MPS and
passthrough, which are not offered. Parsing is strict: an unknown field, a wrong kind or version and a malformed value
are InvalidObject, naming the field and what is right.
"""

import json
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import ErrorDetails

from api.errors import InvalidObject
from api.names import AMD_CONFIG_API_VERSION, RESOURCE_API_VERSION


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, defer_build=True)


class TimeSlicingConfig(_Strict):
    interval: Literal["Default", "Short", "Medium", "Long"] = "Default"


class _Sharing(_Strict):
    strategy: Literal["TimeSlicing"]

    @model_validator(mode="before")
    @classmethod
    def _refuse_mps(cls, value: Any) -> Any:
        """Before the fields are read, since those beside it belong to it."""
        if isinstance(value, dict) and value.get("strategy") == "MPS":
            raise ValueError("strategy MPS is not offered by this driver; right would be TimeSlicing")
        return value


class GpuSharing(_Sharing):
    timeSlicingConfig: TimeSlicingConfig | None = None

    @property
    def time_slice(self) -> int:
        """0 default .. 3 long, as in `kubeletplugin.model.steps.SetTimeSlice`."""
        interval = (self.timeSlicingConfig or TimeSlicingConfig()).interval
        return ("Default", "Short", "Medium", "Long").index(interval)


class MigSharing(_Sharing):
    """Accepted, and without effect: a MIG instance has no time-slice of its own."""


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


DOMAIN_ID: Final = "^[A-Za-z0-9-]{1,64}$"
"""No more than a UID needs, for it is in names of folders and of objects. The admission policy has the same."""


def _check_domain_id(value: str) -> str:
    if re.fullmatch(DOMAIN_ID, value) is None:
        raise ValueError(
            f"right would be the uid of a ComputeDomain, {DOMAIN_ID}; the ResourceClaimTemplate that the ComputeDomain "
            "names has it"
        )
    return value


DomainId = Annotated[str, AfterValidator(_check_domain_id)]


class ComputeDomainChannelConfig(_Config):
    DEVICES = re.compile(r"channel-\d+$")
    apiVersion: Literal["resource.nvidia.com/v1beta1"]
    kind: Literal["ComputeDomainChannelConfig"]
    domainID: DomainId
    allocationMode: Literal["Single", "All"] = "Single"
    releasePolicy: Literal["Connected", "AllNodes"] | None = None
    """The ComputeDomain's own, or unset: it is decided there, and a claim that says another one is refused."""


class ComputeDomainDaemonConfig(_Config):
    DEVICES = re.compile(r"daemon-\d+$")
    apiVersion: Literal["resource.nvidia.com/v1beta1"]
    kind: Literal["ComputeDomainDaemonConfig"]
    domainID: DomainId


class AmdGpuConfig(_Config):
    DEVICES = re.compile(r"")
    apiVersion: Literal["gpu.resource.amd.com/v1alpha1"]
    kind: Literal["GpuConfig"]


DeviceConfig = GpuConfig | MigDeviceConfig | ComputeDomainChannelConfig | ComputeDomainDaemonConfig | AmdGpuConfig
_KINDS: Final[dict[str, dict[str, type[DeviceConfig]]]] = {
    RESOURCE_API_VERSION: {
        "GpuConfig": GpuConfig,
        "MigDeviceConfig": MigDeviceConfig,
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
    if not isinstance(version, str) or version not in _KINDS:
        raise InvalidObject(f"apiVersion: {_show(version)} is not known; right would be one of {', '.join(_KINDS)}")
    if (version, kind) == (RESOURCE_API_VERSION, "VfioDeviceConfig"):
        raise InvalidObject(
            "VfioDeviceConfig: passthrough of GPUs to virtual machines is not offered by this driver; "
            "request a GPU or MIG device"
        )
    if not isinstance(kind, str) or kind not in _KINDS[version]:
        raise InvalidObject(
            f"kind: {_show(kind)} is not known in {version}; right would be one of {', '.join(_KINDS[version])}"
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
    got = "" if isinstance(detail["input"], dict) else f" (got {_show(detail['input'])})"
    return f"{path}: {detail['msg'].removeprefix('Value error, ')}{got}"


def _show(value: Any) -> str:
    """Of what people wrote, in a message: a value, but no whole structure."""
    return repr(value) if value is None or isinstance(value, (str, int, float, bool)) else f"a {type(value).__name__}"
