"""Reading: what holds on every library, simulated or real, and changes nothing."""

import ctypes
from typing import Any

from nvml_node import error, placements_of, profile_indices, profiles_of


def devices(nvml: Any) -> list[Any]:
    return [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]


def test_a_gpu_is_found_again_by_every_name_it_has(any_nvml: Any) -> None:
    for index, device in enumerate(devices(any_nvml)):
        uuid = any_nvml.nvmlDeviceGetUUID(device)
        bus_id = any_nvml.nvmlDeviceGetPciInfo(device).busId
        assert any_nvml.nvmlDeviceGetIndex(device) == index
        assert any_nvml.nvmlDeviceGetUUID(any_nvml.nvmlDeviceGetHandleByUUID(uuid)) == uuid
        assert any_nvml.nvmlDeviceGetUUID(any_nvml.nvmlDeviceGetHandleByPciBusId(bus_id)) == uuid


def test_identities_of_gpus_are_unique(any_nvml: Any) -> None:
    found = devices(any_nvml)
    for read in (any_nvml.nvmlDeviceGetUUID, any_nvml.nvmlDeviceGetMinorNumber):
        assert len({read(device) for device in found}) == len(found)
    assert len({any_nvml.nvmlDeviceGetPciInfo(device).busId for device in found}) == len(found)


def test_versions_of_driver_and_cuda_are_well_formed(any_nvml: Any) -> None:
    assert [part.isdigit() for part in any_nvml.nvmlSystemGetDriverVersion().split(".")][:2] == [True, True]
    assert any_nvml.nvmlSystemGetCudaDriverVersion_v2() >= 11000
    assert any_nvml.nvmlSystemGetCudaDriverVersion() == any_nvml.nvmlSystemGetCudaDriverVersion_v2()


def test_both_versions_of_memory_agree(any_nvml: Any) -> None:
    for device in devices(any_nvml):
        first = any_nvml.nvmlDeviceGetMemoryInfo(device)
        second = any_nvml.nvmlDeviceGetMemoryInfo(device, version=any_nvml.nvmlMemory_v2)
        assert first.total == second.total
        assert second.reserved + second.used + second.free == second.total


def test_strings_and_numbers_that_clients_print_are_there(any_nvml: Any) -> None:
    for device in devices(any_nvml):
        assert any_nvml.nvmlDeviceGetName(device)
        major, minor = any_nvml.nvmlDeviceGetCudaComputeCapability(device)
        assert (major, minor) >= (3, 0)
        assert any_nvml.nvmlDeviceGetArchitecture(device) in range(2, 16)
        assert any_nvml.nvmlDeviceGetBrand(device) in range(20)
        assert any_nvml.nvmlDeviceGetPersistenceMode(device) in (0, 1)
        assert any_nvml.nvmlDeviceGetComputeMode(device) in (0, 1, 2, 3)


def test_every_profile_is_the_same_by_index_by_id_and_in_both_versions(any_nvml: Any) -> None:
    for device in devices(any_nvml):
        for index in profile_indices(device):
            first = any_nvml.nvmlDeviceGetGpuInstanceProfileInfo(device, index)
            second = any_nvml.nvmlDeviceGetGpuInstanceProfileInfo(device, index, version=2)
            third = any_nvml.nvmlDeviceGetGpuInstanceProfileInfoById(device, first.id)
            names = [name for name, _ in first._fields_]
            assert [getattr(first, name) for name in names] == [getattr(second, name) for name in names]
            assert (third.id, third.name) == (second.id, second.name)


def test_an_index_beyond_all_profiles_is_an_invalid_argument(any_nvml: Any) -> None:
    for device in devices(any_nvml):
        code = error(any_nvml.nvmlDeviceGetGpuInstanceProfileInfo, device, 0x40, version=2)
        assert code in (any_nvml.NVML_ERROR_INVALID_ARGUMENT, any_nvml.NVML_ERROR_NOT_SUPPORTED)


def test_placements_lie_inside_the_grid_that_the_whole_gpu_profile_spans(any_nvml: Any) -> None:
    for device in devices(any_nvml):
        placements = {name: placements_of(device, info.id) for name, info in profiles_of(device).items()}
        grid = max((start + size for spans in placements.values() for start, size in spans), default=0)
        for spans in placements.values():
            assert spans == sorted(spans)
            assert len({size for _, size in spans}) == 1
            assert all(start >= 0 and start + size <= grid for start, size in spans)


def test_profiles_fit_into_their_gpu(any_nvml: Any) -> None:
    for device in devices(any_nvml):
        total = any_nvml.nvmlDeviceGetMemoryInfo(device).total
        for info in profiles_of(device).values():
            assert info.memorySizeMB << 20 <= total
            assert info.sliceCount * info.instanceCount <= 8


def test_mig_mode_is_readable_where_profiles_exist(any_nvml: Any) -> None:
    for device in devices(any_nvml):
        if profiles_of(device):
            current, pending = any_nvml.nvmlDeviceGetMigMode(device)
            assert {current, pending} <= {0, 1}
            count = any_nvml.nvmlDeviceGetMaxMigDeviceCount(device)
            assert count > 0 if current else count == 0


def test_what_does_not_exist_is_refused(any_nvml: Any) -> None:
    count = any_nvml.nvmlDeviceGetCount()
    assert error(any_nvml.nvmlDeviceGetHandleByIndex, count) == any_nvml.NVML_ERROR_INVALID_ARGUMENT
    unknown = "GPU-00000000-0000-0000-0000-000000000000"
    assert error(any_nvml.nvmlDeviceGetHandleByUUID, unknown) == any_nvml.NVML_ERROR_NOT_FOUND
    assert error(any_nvml.nvmlDeviceGetHandleByPciBusId, "00000000:FE:1F.0") == any_nvml.NVML_ERROR_NOT_FOUND


def test_a_structure_of_an_unknown_version_is_refused(any_nvml: Any) -> None:
    info = any_nvml.c_nvmlGpuFabricInfo_v2_t()
    info.version = 0x7F000001
    for device in devices(any_nvml):
        code = any_nvml.nvmlLib.nvmlDeviceGetGpuFabricInfoV(device, ctypes.byref(info))
        assert code in (any_nvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH, any_nvml.NVML_ERROR_NOT_SUPPORTED)


def test_fabric_versions_agree(any_nvml: Any) -> None:
    for device in devices(any_nvml):
        second, third = any_nvml.c_nvmlGpuFabricInfo_v2_t(), any_nvml.c_nvmlGpuFabricInfo_v3_t()
        try:
            any_nvml.nvmlDeviceGetGpuFabricInfoV(device, ctypes.byref(second))
            any_nvml.nvmlDeviceGetGpuFabricInfoV(device, ctypes.byref(third))
        except any_nvml.NVMLError_NotSupported:
            continue
        assert bytes(second.clusterUuid) == bytes(third.clusterUuid)
        assert (second.state, second.cliqueId, second.healthMask) == (third.state, third.cliqueId, third.healthMask)


def test_topology_is_symmetric(any_nvml: Any) -> None:
    found = devices(any_nvml)[:4]
    for number, one in enumerate(found):
        itself = error(any_nvml.nvmlDeviceGetTopologyCommonAncestor, one, one)
        assert itself in (any_nvml.NVML_SUCCESS, any_nvml.NVML_ERROR_NOT_SUPPORTED)
        for other in found[:number]:
            try:
                level = any_nvml.nvmlDeviceGetTopologyCommonAncestor(one, other)
            except any_nvml.NVMLError_NotSupported:
                code = error(any_nvml.nvmlDeviceGetTopologyCommonAncestor, other, one)
                assert code == any_nvml.NVML_ERROR_NOT_SUPPORTED  # a machine that does not tell
                continue
            assert level == any_nvml.nvmlDeviceGetTopologyCommonAncestor(other, one)
            assert level in range(51)


def test_field_values_answer_each_on_its_own(any_nvml: Any) -> None:
    for device in devices(any_nvml):
        known, unknown = any_nvml.nvmlDeviceGetFieldValues(device, [any_nvml.NVML_FI_DEV_NVLINK_LINK_COUNT, 0xFFFF])
        assert known.nvmlReturn in (any_nvml.NVML_SUCCESS, any_nvml.NVML_ERROR_NOT_SUPPORTED)
        assert unknown.nvmlReturn != any_nvml.NVML_SUCCESS


def test_waiting_for_an_event_that_does_not_come_times_out(any_nvml: Any) -> None:
    events = any_nvml.nvmlEventSetCreate()
    for device in devices(any_nvml):
        supported = any_nvml.nvmlDeviceGetSupportedEventTypes(device)
        any_nvml.nvmlDeviceRegisterEvents(device, any_nvml.nvmlEventTypeXidCriticalError & supported, events)
    assert error(any_nvml.nvmlEventSetWait_v2, events, 10) == any_nvml.NVML_ERROR_TIMEOUT
    any_nvml.nvmlEventSetFree(events)


def test_every_error_has_a_text(any_nvml: Any) -> None:
    texts = [any_nvml.nvmlErrorString(code) for code in range(31)]
    assert len(set(texts)) == len(texts)
    assert any_nvml.nvmlErrorString(any_nvml.NVML_ERROR_UNKNOWN)


def test_calls_outside_of_init_and_shutdown_are_uninitialized(any_nvml: Any) -> None:
    any_nvml.nvmlShutdown()
    try:
        assert error(any_nvml.nvmlDeviceGetCount) == any_nvml.NVML_ERROR_UNINITIALIZED
    finally:
        any_nvml.nvmlInit()
