"""`python tests/contract/record_nvml.py [--nvml LIBRARY]`: what an NVML library tells of its GPUs, as JSON. Reads only.

For a machine whose GPUs are idle and have MIG off. Records of real hardware lie in `recorded/`, named after the model
that is held against them (`test_nvml_recorded.py`). What tells one card from another (UUID, serial number, fabric) is
left out. Needs `pynvml` and nothing of this repository.
"""

import argparse
import ctypes
import json
from collections.abc import Callable
from typing import Any

import pynvml

PROFILE_INDICES = 0x12  # nvml.h NVML_GPU_INSTANCE_PROFILE_COUNT of a newer driver than any recorded one
BEYOND_ALL_PROFILES = 0x40
_PROFILE_FIELDS = (
    "id",
    "sliceCount",
    "instanceCount",
    "multiprocessorCount",
    "copyEngineCount",
    "decoderCount",
    "encoderCount",
    "jpegCount",
    "ofaCount",
    "memorySizeMB",
)
_FABRIC_FIELDS = ("status", "cliqueId", "state", "healthMask")
_FIELD_IDS = (
    "NVML_FI_DEV_NVLINK_LINK_COUNT",
    "NVML_FI_DEV_PCIE_COUNT_CORRECTABLE_ERRORS",
    "NVML_FI_DEV_IS_MIG_MODE_INDEPENDENT_MIG_QUERY_CAPABLE",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nvml", default="libnvidia-ml.so.1", help="the library; default: the one the loader finds")
    options = parser.parse_args()
    pynvml.nvmlLib = ctypes.CDLL(options.nvml)
    pynvml.nvmlInit()
    try:
        print(json.dumps(record_node(), indent=1))
    finally:
        pynvml.nvmlShutdown()


def record_node() -> dict[str, Any]:
    count = pynvml.nvmlDeviceGetCount()
    return {
        "driver": _ask(pynvml.nvmlSystemGetDriverVersion),
        "cuda": _ask(pynvml.nvmlSystemGetCudaDriverVersion_v2),
        "beyond_last_index": _ask(lambda: bool(pynvml.nvmlDeviceGetHandleByIndex(count))),
        "gpus": [_record_gpu(pynvml.nvmlDeviceGetHandleByIndex(index)) for index in range(count)],
    }


def _record_gpu(device: Any) -> dict[str, Any]:
    return {
        **_record_identity(device),
        **_record_state(device),
        "mig_mode": _ask(pynvml.nvmlDeviceGetMigMode, device),
        "max_mig_devices": _ask(pynvml.nvmlDeviceGetMaxMigDeviceCount, device),
        "mig_device_0": _ask(lambda: bool(pynvml.nvmlDeviceGetMigDeviceHandleByIndex(device, 0))),
        "gpu_instances": _ask(_count_instances, device),
        "attributes": _ask(lambda: _read(pynvml.nvmlDeviceGetAttributes(device), ("gpuInstanceSliceCount",))),
        "profiles": {f"{index:#x}": _ask(_record_profile, device, index) for index in range(PROFILE_INDICES)},
        "profile_beyond_all": _ask(_record_profile, device, BEYOND_ALL_PROFILES),
    }


def _record_identity(device: Any) -> dict[str, Any]:
    """The model, and where the card is."""
    return {
        "name": _ask(pynvml.nvmlDeviceGetName, device),
        "brand": _ask(pynvml.nvmlDeviceGetBrand, device),
        "architecture": _ask(pynvml.nvmlDeviceGetArchitecture, device),
        "compute_capability": _ask(pynvml.nvmlDeviceGetCudaComputeCapability, device),
        "addressing_mode": _ask(pynvml.nvmlDeviceGetAddressingMode, device),
        "memory": _ask(lambda: _read(pynvml.nvmlDeviceGetMemoryInfo(device), ("total",))),
        "memory_v2": _ask(
            lambda: _read(pynvml.nvmlDeviceGetMemoryInfo(device, version=pynvml.nvmlMemory_v2), ("total", "reserved"))
        ),
        "bar1": _ask(lambda: pynvml.nvmlDeviceGetBAR1MemoryInfo(device).bar1Total),
        "cores": _ask(pynvml.nvmlDeviceGetNumGpuCores, device),
        "pci_device_id": _ask(lambda: pynvml.nvmlDeviceGetPciInfo_v3(device).pciDeviceId),
        "pci_subsystem_id": _ask(lambda: pynvml.nvmlDeviceGetPciInfo_v3(device).pciSubSystemId),
        "bus_id": _ask(lambda: pynvml.nvmlDeviceGetPciInfo_v3(device).busId),
        "minor": _ask(pynvml.nvmlDeviceGetMinorNumber, device),
    }


def _record_state(device: Any) -> dict[str, Any]:
    return {
        "supported_events": _ask(pynvml.nvmlDeviceGetSupportedEventTypes, device),
        "compute_mode": _ask(pynvml.nvmlDeviceGetComputeMode, device),
        "persistence_mode": _ask(pynvml.nvmlDeviceGetPersistenceMode, device),
        "field_values": {name: _ask(_read_field, device, getattr(pynvml, name)) for name in _FIELD_IDS},
        "fabric_v2": _ask(_read_fabric, device, pynvml.c_nvmlGpuFabricInfo_v2_t(), _FABRIC_FIELDS),
        "fabric_v3": _ask(_read_fabric, device, pynvml.c_nvmlGpuFabricInfo_v3_t(), (*_FABRIC_FIELDS, "healthSummary")),
    }


def _record_profile(device: Any, index: int) -> dict[str, Any]:
    info = pynvml.nvmlDeviceGetGpuInstanceProfileInfo(device, index, version=2)
    return {
        "name": info.name,
        **_read(info, _PROFILE_FIELDS),
        "memorySizeMB_v1": pynvml.nvmlDeviceGetGpuInstanceProfileInfo(device, index, version=1).memorySizeMB,
        "placements": _ask(_read_placements, device, info.id),
        "remaining": _ask(pynvml.nvmlDeviceGetGpuInstanceRemainingCapacity, device, info.id),
        "by_id": _ask(lambda: pynvml.nvmlDeviceGetGpuInstanceProfileInfoById(device, info.id).name),
    }


def _read_placements(device: Any, profile_id: int) -> list[list[int]]:
    """In the library's own order, as `[start, size]`."""
    count = ctypes.c_uint()
    pynvml.nvmlDeviceGetGpuInstancePossiblePlacements(device, profile_id, None, ctypes.byref(count))
    array = (pynvml.c_nvmlGpuInstancePlacement_t * count.value)()
    pynvml.nvmlDeviceGetGpuInstancePossiblePlacements(device, profile_id, array, ctypes.byref(count))
    return [[place.start, place.size] for place in array[: count.value]]


def _count_instances(device: Any) -> int:
    """Of the first profile."""
    profile_id = pynvml.nvmlDeviceGetGpuInstanceProfileInfo(device, 0, version=2).id
    count = ctypes.c_uint(8)
    array = (pynvml.c_nvmlGpuInstance_t * count.value)()
    pynvml.nvmlDeviceGetGpuInstances(device, profile_id, array, ctypes.byref(count))
    return count.value


def _read_fabric(device: Any, info: Any, names: tuple[str, ...]) -> dict[str, Any]:
    pynvml.nvmlDeviceGetGpuFabricInfoV(device, ctypes.byref(info))
    return _read(info, names)


def _read_field(device: Any, field_id: int) -> dict[str, int]:
    (value,) = pynvml.nvmlDeviceGetFieldValues(device, [field_id])
    return {"return": value.nvmlReturn, "value": value.value.uiVal, "type": value.valueType}


def _read(structure: Any, names: tuple[str, ...]) -> dict[str, Any]:
    return {name: getattr(structure, name) for name in names}


def _ask(call: Callable[..., Any], *arguments: Any) -> Any:
    """The answer, or `{"error": NVML code}`."""
    try:
        answer = call(*arguments)
    except pynvml.NVMLError as error:
        return {"error": error.value}
    return list(answer) if isinstance(answer, tuple) else answer


if __name__ == "__main__":
    main()
