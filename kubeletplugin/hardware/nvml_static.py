"""What does not change on a GPU while the driver stays loaded: read once; and what does, beside MIG instances.

Its numbers and its memory may change with its MIG mode (`renumber`), its NVLink fabric at any time.
"""

from ctypes import byref, c_uint
from dataclasses import dataclass, replace
from functools import lru_cache
from math import ceil
from typing import Any, Final
from uuid import UUID

import pynvml

from kubeletplugin.hardware.tree import DriverRoot
from kubeletplugin.model.inventory import Fabric, Gpu, Mig, MigProfile, Placement

# The spellings of NVIDIA's go-nvlib, which existing selectors compare with.
_BRANDS: Final = {
    pynvml.NVML_BRAND_UNKNOWN: "Unknown",
    pynvml.NVML_BRAND_QUADRO: "Quadro",
    pynvml.NVML_BRAND_TESLA: "Tesla",
    pynvml.NVML_BRAND_NVS: "NVS",
    pynvml.NVML_BRAND_GRID: "Grid",
    pynvml.NVML_BRAND_GEFORCE: "GeForce",
    pynvml.NVML_BRAND_TITAN: "Titan",
    pynvml.NVML_BRAND_NVIDIA_VAPPS: "NvidiaVApps",
    pynvml.NVML_BRAND_NVIDIA_VPC: "NvidiaVPC",
    pynvml.NVML_BRAND_NVIDIA_VCS: "NvidiaVCS",
    pynvml.NVML_BRAND_NVIDIA_VWS: "NvidiaVWS",
    pynvml.NVML_BRAND_NVIDIA_CLOUD_GAMING: "NvidiaCloudGaming",
    pynvml.NVML_BRAND_QUADRO_RTX: "QuadroRTX",
    pynvml.NVML_BRAND_NVIDIA_RTX: "NvidiaRTX",
    pynvml.NVML_BRAND_NVIDIA: "Nvidia",
    pynvml.NVML_BRAND_GEFORCE_RTX: "GeForceRTX",
    pynvml.NVML_BRAND_TITAN_RTX: "TitanRTX",
}
_ARCHITECTURES: Final = {
    pynvml.NVML_DEVICE_ARCH_KEPLER: "Kepler",
    pynvml.NVML_DEVICE_ARCH_MAXWELL: "Maxwell",
    pynvml.NVML_DEVICE_ARCH_PASCAL: "Pascal",
    pynvml.NVML_DEVICE_ARCH_VOLTA: "Volta",
    pynvml.NVML_DEVICE_ARCH_TURING: "Turing",
    pynvml.NVML_DEVICE_ARCH_AMPERE: "Ampere",
    pynvml.NVML_DEVICE_ARCH_ADA: "Ada Lovelace",
    pynvml.NVML_DEVICE_ARCH_HOPPER: "Hopper",
    pynvml.NVML_DEVICE_ARCH_BLACKWELL: "Blackwell",
    pynvml.NVML_DEVICE_ARCH_RUBIN: "Rubin",
}
_ADDRESSING_MODES: Final = {
    pynvml.NVML_DEVICE_ADDRESSING_MODE_NONE: "None",
    pynvml.NVML_DEVICE_ADDRESSING_MODE_HMM: "HMM",
    pynvml.NVML_DEVICE_ADDRESSING_MODE_ATS: "ATS",
}
_FABRIC_STATES: Final = ("not_supported", "not_started", "in_progress", "completed")
# Suffixes of profile names where the library is too old to tell them (nvml.h, comments at the profile indices).
_SUFFIXES: Final = {
    pynvml.NVML_GPU_INSTANCE_PROFILE_1_SLICE_REV1: "+me",
    pynvml.NVML_GPU_INSTANCE_PROFILE_2_SLICE_REV1: "+me",
}
_MIB: Final = 2**20


@dataclass(frozen=True, slots=True)
class StaticGpu:
    """One GPU without its MIG instances and its fabric."""

    base: Gpu
    profiles: tuple[MigProfile, ...] | None
    """None where the GPU cannot do MIG."""
    compute_slices: dict[int, int]
    """By profile id."""
    mode_change_needs_reset: bool

    def gpu(self, mig: Mig | None, fabric: Fabric | None) -> Gpu:
        return replace(self.base, mig=mig, fabric=fabric)

    def lost(self) -> Gpu:
        mig = None
        if self.profiles is not None:
            mig = Mig(False, self.mode_change_needs_reset, self.profiles)
        return replace(self.base, mig=mig, fabric=None, lost=True)


def read_static(handle: Any, uuid: str, index: int, root: DriverRoot) -> StaticGpu:
    """Raises pynvml.NVMLError."""
    major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(handle)
    architecture = pynvml.nvmlDeviceGetArchitecture(handle)
    pci_bus_id = normal_bus_id(str(pynvml.nvmlDeviceGetPciInfo_v3(handle).busId))
    memory_bytes = int(pynvml.nvmlDeviceGetMemoryInfo(handle).total)
    base = Gpu(
        minor=pynvml.nvmlDeviceGetMinorNumber(handle),
        uuid=uuid,
        index=index,
        pci_bus_id=pci_bus_id,
        product_name=str(pynvml.nvmlDeviceGetName(handle)),
        brand=_BRANDS.get(pynvml.nvmlDeviceGetBrand(handle), "Unknown"),
        architecture=_ARCHITECTURES.get(architecture, "Unknown"),
        cuda_compute_capability=f"{major}.{minor}",
        memory_bytes=memory_bytes,
        pcie_root=root.pcie_root(pci_bus_id),
        numa_node=root.numa_node(pci_bus_id),
        addressing_mode=_read_addressing_mode(handle),
        monitored=_reports_xids(handle),
    )
    if not _can_do_mig(handle):
        return StaticGpu(base, None, {}, False)
    profiles, slices = _read_profiles(handle, memory_bytes)
    return StaticGpu(base, profiles, slices, architecture == pynvml.NVML_DEVICE_ARCH_AMPERE)


def renumber(static: StaticGpu, handle: Any) -> StaticGpu:
    """After its MIG mode changed: with the numbers and the memory that the GPU has now. Raises pynvml.NVMLError."""
    before = static.base
    minor, index = pynvml.nvmlDeviceGetMinorNumber(handle), pynvml.nvmlDeviceGetIndex(handle)
    memory_bytes = int(pynvml.nvmlDeviceGetMemoryInfo(handle).total)
    if (minor, index, memory_bytes) == (before.minor, before.index, before.memory_bytes):
        return static
    return replace(static, base=replace(before, minor=minor, index=index, memory_bytes=memory_bytes))


def normal_bus_id(bus_id: str) -> str:
    """NVML's `00000000:65:00.0` in the form of sysfs, `0000:65:00.0`."""
    domain, _, rest = bus_id.lower().partition(":")
    return f"{int(domain, 16):04x}:{rest}"


def _reports_xids(handle: Any) -> bool:
    try:
        return bool(pynvml.nvmlDeviceGetSupportedEventTypes(handle) & pynvml.nvmlEventTypeXidCriticalError)
    except pynvml.NVMLError_NotSupported:
        return False


def _can_do_mig(handle: Any) -> bool:
    """A guest sees a vGPU's MIG mode, which is its host's to change."""
    if _is_vgpu(handle):
        return False
    try:
        pynvml.nvmlDeviceGetMigMode(handle)
    except pynvml.NVMLError_NotSupported:
        return False
    return True


def _is_vgpu(handle: Any) -> bool:
    try:
        return bool(pynvml.nvmlDeviceGetVirtualizationMode(handle) == pynvml.NVML_GPU_VIRTUALIZATION_MODE_VGPU)
    except (pynvml.NVMLError_NotSupported, pynvml.NVMLError_FunctionNotFound):
        return False  # older than vGPUs


def _read_addressing_mode(handle: Any) -> str | None:
    try:
        return _ADDRESSING_MODES.get(pynvml.nvmlDeviceGetAddressingMode(handle))
    except (pynvml.NVMLError_NotSupported, pynvml.NVMLError_FunctionNotFound, pynvml.NVMLError_ArgumentVersionMismatch):
        return None


def _read_profiles(handle: Any, memory_bytes: int) -> tuple[tuple[MigProfile, ...], dict[int, int]]:
    profiles: list[MigProfile] = []
    slices: dict[int, int] = {}
    for index in range(pynvml.NVML_GPU_INSTANCE_PROFILE_COUNT):
        try:
            info, name = _read_profile_info(handle, index, memory_bytes)
        except pynvml.NVMLError_NotSupported:
            continue
        except pynvml.NVMLError_InvalidArgument:
            break  # an index that this library does not know yet
        slices[info.id] = info.sliceCount
        profile = MigProfile(
            name=name,
            profile_id=info.id,
            max_instances=info.instanceCount,
            memory_bytes=info.memorySizeMB * _MIB,
            multiprocessors=info.multiprocessorCount,
            copy_engines=info.copyEngineCount,
            decoders=info.decoderCount,
            encoders=info.encoderCount,
            jpeg_engines=info.jpegCount,
            ofa_engines=info.ofaCount,
            placements=_read_placements(handle, info.id),
        )
        profiles.append(profile)
    return tuple(profiles), slices


def _read_profile_info(handle: Any, index: int, memory_bytes: int) -> tuple[Any, str]:
    try:
        info = pynvml.nvmlDeviceGetGpuInstanceProfileInfo(handle, index, version=2)
        raw = info.name
        name = (raw.decode() if isinstance(raw, bytes) else str(raw)).removeprefix("MIG ")
        if name:
            return info, name
    except pynvml.NVMLError_FunctionNotFound:
        info = pynvml.nvmlDeviceGetGpuInstanceProfileInfo(handle, index, version=1)
    # As nvidia-smi names them: memory in eighths of the GPU's, rounded up.
    eighths = ceil(info.memorySizeMB * _MIB / memory_bytes * 8)
    gib = round(eighths / 8 * memory_bytes / 2**30)
    return info, f"{info.sliceCount}g.{gib}gb{_SUFFIXES.get(index, '')}"


def _read_placements(handle: Any, profile_id: int) -> tuple[Placement, ...]:
    count = c_uint(0)
    pynvml.nvmlDeviceGetGpuInstancePossiblePlacements(handle, profile_id, None, byref(count))
    array = (pynvml.c_nvmlGpuInstancePlacement_t * count.value)()
    pynvml.nvmlDeviceGetGpuInstancePossiblePlacements(handle, profile_id, array, byref(count))
    return tuple(sorted(Placement(place.start, place.size) for place in array[: count.value]))


def read_fabric(handle: Any) -> Fabric | None:
    """None where the GPU has no NVLink fabric. Raises pynvml.NVMLError."""
    info = pynvml.c_nvmlGpuFabricInfo_v2_t()
    info.version = pynvml.nvmlGpuFabricInfo_v2
    try:
        pynvml.nvmlDeviceGetGpuFabricInfoV(handle, byref(info))
    except (pynvml.NVMLError_NotSupported, pynvml.NVMLError_FunctionNotFound):
        return None
    return _parse_fabric(bytes(info.clusterUuid), info.cliqueId, info.state, info.status, info.healthMask)


@lru_cache(maxsize=32)
def _parse_fabric(cluster_uuid: bytes, clique_id: int, state: int, status: int, health_mask: int) -> Fabric | None:
    if state == pynvml.NVML_GPU_FABRIC_STATE_NOT_SUPPORTED:
        return None
    return Fabric(
        cluster_uuid=str(UUID(bytes=cluster_uuid)),
        clique_id=clique_id,
        state=_FABRIC_STATES[state],
        status=status,
        healthy=_is_healthy(health_mask),
    )


def _is_healthy(mask: int) -> bool:
    """By nvmlGpuFabricInfo healthMask: fields of two bits (1 is true), the configuration has four (1 is none wrong)."""
    degraded = mask & 0b11 == pynvml.NVML_GPU_FABRIC_HEALTH_MASK_DEGRADED_BW_TRUE
    shift = pynvml.NVML_GPU_FABRIC_HEALTH_MASK_SHIFT_ROUTE_UNHEALTHY
    unhealthy_route = mask >> shift & 0b11 == pynvml.NVML_GPU_FABRIC_HEALTH_MASK_ROUTE_UNHEALTHY_TRUE
    configuration = mask >> pynvml.NVML_GPU_FABRIC_HEALTH_MASK_SHIFT_INCORRECT_CONFIGURATION & 0b1111
    return not degraded and not unhealthy_route and configuration in (0, 1)
