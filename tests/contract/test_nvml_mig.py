"""MIG as the hardware enforces it: placements, capacity, identities, modes, and what survives whom."""

import ctypes
import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from nvml_node import Node, bound, create_at, create_whole, error, mig_devices, placements_of, profiles_of, read_line

H100 = tuple[Node, Any, Any]


def explore(nvml: Any, device: Any, names: list[str]) -> tuple[set[frozenset[tuple[str, int]]], int]:
    """Every set of instance counts that the library lets exist, and how many layouts have no room for one more."""
    infos = profiles_of(device)
    spots = [(name, start, size) for name in names for start, size in placements_of(device, infos[name].id)]
    found: set[frozenset[tuple[str, int]]] = set()
    layouts: set[frozenset[tuple[str, int, int]]] = set()
    full = 0

    def visit(present: frozenset[tuple[str, int, int]]) -> None:
        nonlocal full
        layouts.add(present)
        found.add(frozenset(Counter(name for name, _, _ in present).items()))
        room = False
        for spot in spots:
            try:
                instance = create_at(device, infos[spot[0]].id, *spot[1:])
            except nvml.NVMLError_InsufficientResources:
                continue
            room = True
            if present | {spot} not in layouts:
                visit(present | {spot})
            nvml.nvmlGpuInstanceDestroy(instance)
        full += not room

    visit(frozenset())
    return found - {frozenset()}, full


def maximal(sets: set[frozenset[tuple[str, int]]]) -> int:
    counts = [dict(counter) for counter in sets]

    def inside(one: dict[str, int], other: dict[str, int]) -> bool:
        return one != other and all(other.get(name, 0) >= number for name, number in one.items())

    return sum(not any(inside(one, other) for other in counts) for one in counts)


@pytest.mark.parametrize(
    ("profile", "names", "feasible", "layouts", "largest"),
    [
        ("h100x1", ["1g.10gb", "2g.20gb", "3g.40gb", "4g.40gb", "7g.80gb"], 37, 19, 12),
        ("h100x1", ["1g.10gb", "1g.20gb", "2g.20gb", "3g.40gb", "4g.40gb", "7g.80gb"], 77, 78, 28),
        ("gb200x1", ["1g.23gb", "2g.47gb", "3g.93gb", "4g.93gb", "7g.186gb"], 37, 19, 12),
        ("rtx-pro-6000x1", ["1g.24gb", "2g.48gb", "4g.96gb"], 9, None, 4),
    ],
)
def test_exactly_the_feasible_geometries_can_exist(
    simulate: Callable[..., Node], profile: str, names: list[str], feasible: int, layouts: int | None, largest: int
) -> None:
    with bound(simulate(profile).library) as nvml:
        device = nvml.nvmlDeviceGetHandleByIndex(0)
        nvml.nvmlDeviceSetMigMode(device, 1)
        found, full = explore(nvml, device, names)
        assert len(found) == feasible
        assert layouts is None or full == layouts
        assert maximal(found) == largest


def test_order_matters_without_placements(h100: H100) -> None:
    _, nvml, device = h100
    infos = profiles_of(device)
    small, middle, large = infos["1g.10gb"].id, infos["2g.20gb"].id, infos["3g.40gb"].id
    made = [nvml.nvmlDeviceCreateGpuInstance(device, profile) for profile in (small, small, middle)]
    assert error(nvml.nvmlDeviceCreateGpuInstance, device, large) == nvml.NVML_ERROR_INSUFFICIENT_RESOURCES
    for instance in made:
        nvml.nvmlGpuInstanceDestroy(instance)
    for profile in (large, small, small, middle):
        nvml.nvmlDeviceCreateGpuInstance(device, profile)


def test_ids_come_from_the_placement_and_uuids_are_new_at_each_creation(h100: H100) -> None:
    _, nvml, device = h100
    info = profiles_of(device)["3g.40gb"]
    seen = set()
    for _ in range(5):
        instance, compute = create_whole(device, info, 4)
        assert nvml.nvmlGpuInstanceGetInfo(instance).id == 2
        seen.add(nvml.nvmlDeviceGetUUID(nvml.nvmlComputeInstanceGetInfo_v2(compute).device))
        nvml.nvmlComputeInstanceDestroy(compute)
        nvml.nvmlGpuInstanceDestroy(instance)
    assert len(seen) == 5


def test_a_media_engine_that_exists_once_is_given_out_once(simulate: Callable[..., Node]) -> None:
    with bound(simulate("rtx-pro-6000x1").library) as nvml:
        device = nvml.nvmlDeviceGetHandleByIndex(0)
        nvml.nvmlDeviceSetMigMode(device, 1)
        infos = profiles_of(device)
        nvml.nvmlDeviceCreateGpuInstance(device, infos["1g.24gb+me.all"].id)
        assert error(nvml.nvmlDeviceCreateGpuInstance, device, infos["1g.24gb"].id) == 23
        assert nvml.nvmlDeviceGetGpuInstanceRemainingCapacity(device, infos["1g.24gb"].id) == 0
        for _ in range(3):
            nvml.nvmlDeviceCreateGpuInstance(device, infos["1g.24gb-me"].id)


def test_remaining_capacity_counts_what_still_fits(h100: H100) -> None:
    _, nvml, device = h100
    infos = profiles_of(device)
    left = {name: nvml.nvmlDeviceGetGpuInstanceRemainingCapacity(device, info.id) for name, info in infos.items()}
    assert left == {name: info.instanceCount for name, info in infos.items()}
    create_at(device, infos["3g.40gb"].id, 0, 4)
    left = {name: nvml.nvmlDeviceGetGpuInstanceRemainingCapacity(device, info.id) for name, info in infos.items()}
    expected = {"1g.10gb": 3, "1g.10gb+me": 1, "1g.20gb": 2, "2g.20gb": 1, "3g.40gb": 1, "4g.40gb": 0, "7g.80gb": 0}
    assert left == expected


def test_a_placement_that_the_profile_does_not_have_is_an_invalid_argument(h100: H100) -> None:
    _, nvml, device = h100
    identity = profiles_of(device)["3g.40gb"].id
    assert error(create_at, device, identity, 2, 4) == nvml.NVML_ERROR_INVALID_ARGUMENT
    assert error(create_at, device, identity, 0, 2) == nvml.NVML_ERROR_INVALID_ARGUMENT


def test_without_mig_mode_nothing_can_be_made_nothing_is_there_and_all_is_free(h100: H100) -> None:
    _, nvml, _ = h100
    other = nvml.nvmlDeviceGetHandleByIndex(1)
    info = profiles_of(other)["1g.10gb"]
    assert error(nvml.nvmlDeviceCreateGpuInstance, other, info.id) == nvml.NVML_ERROR_NOT_SUPPORTED
    assert error(create_at, other, info.id, 0, 1) == nvml.NVML_ERROR_NOT_SUPPORTED
    assert nvml.nvmlDeviceGetMaxMigDeviceCount(other) == 0
    assert error(nvml.nvmlDeviceGetMigDeviceHandleByIndex, other, 0) == nvml.NVML_ERROR_NOT_FOUND
    array, count = (nvml.c_nvmlGpuInstance_t * info.instanceCount)(), ctypes.c_uint(info.instanceCount)
    nvml.nvmlDeviceGetGpuInstances(other, info.id, array, ctypes.byref(count))
    assert count.value == 0
    assert nvml.nvmlDeviceGetGpuInstanceRemainingCapacity(other, info.id) == info.instanceCount


def test_destroying_goes_from_the_inside_out(h100: H100) -> None:
    _, nvml, device = h100
    instance, compute = create_whole(device, profiles_of(device)["2g.20gb"])
    assert error(nvml.nvmlGpuInstanceDestroy, instance) == nvml.NVML_ERROR_IN_USE
    assert error(nvml.nvmlDeviceSetMigMode, device, 0) == nvml.NVML_ERROR_IN_USE
    nvml.nvmlComputeInstanceDestroy(compute)
    assert error(nvml.nvmlComputeInstanceDestroy, compute) == nvml.NVML_ERROR_NOT_FOUND
    nvml.nvmlGpuInstanceDestroy(instance)
    assert error(nvml.nvmlGpuInstanceDestroy, instance) == nvml.NVML_ERROR_NOT_FOUND
    nvml.nvmlDeviceSetMigMode(device, 0)
    assert nvml.nvmlDeviceGetMigMode(device) == [0, 0]


def test_an_instance_that_a_process_uses_is_not_destroyed(h100: H100) -> None:
    node, nvml, device = h100
    instance, compute = create_whole(device, profiles_of(device)["3g.40gb"], 0)
    node.simulator("inject", "in-use", "--gpu", "0", "--gi", "1", "--ci", "0", "--pid", "77")
    assert error(nvml.nvmlComputeInstanceDestroy, compute) == nvml.NVML_ERROR_IN_USE
    assert [process.pid for process in nvml.nvmlDeviceGetComputeRunningProcesses(device)] == [77]
    node.simulator("inject", "in-use", "--gpu", "0", "--gi", "1", "--ci", "0", "--pid", "77", "--off")
    nvml.nvmlComputeInstanceDestroy(compute)
    nvml.nvmlGpuInstanceDestroy(instance)


def test_a_process_is_in_the_list_of_its_type_on_its_gpu_and_on_its_mig_device_only(h100: H100) -> None:
    node, nvml, device = h100
    first, _ = create_whole(device, profiles_of(device)["3g.40gb"], 0)
    create_whole(device, profiles_of(device)["3g.40gb"], 4)
    gi = nvml.nvmlGpuInstanceGetInfo(first).id
    for pid, kind in (("77", "C"), ("78", "G"), ("79", "M+C")):
        node.simulator("inject", "in-use", "--gpu", "0", "--gi", str(gi), "--ci", "0", "--pid", pid, "--type", kind)
    lists = (
        nvml.nvmlDeviceGetComputeRunningProcesses_v3,
        nvml.nvmlDeviceGetGraphicsRunningProcesses_v3,
        nvml.nvmlDeviceGetMPSComputeRunningProcesses_v3,
    )
    by_instance = {nvml.nvmlDeviceGetGpuInstanceId(mig): mig for mig in mig_devices(device)}
    other = next(mig for instance, mig in by_instance.items() if instance != gi)
    for place, seen in ((device, [[77], [78], [79]]), (by_instance[gi], [[77], [78], [79]]), (other, [[], [], []])):
        assert [[process.pid for process in ask(place)] for ask in lists] == seen
    assert {(p.gpuInstanceId, p.computeInstanceId) for ask in lists for p in ask(device)} == {(gi, 0)}


def test_an_instance_without_compute_instance_is_found_by_its_profile_only(h100: H100) -> None:
    _, nvml, device = h100
    info = profiles_of(device)["2g.20gb"]
    create_at(device, info.id, 2, 2)
    assert mig_devices(device) == []
    array, count = (nvml.c_nvmlGpuInstance_t * info.instanceCount)(), ctypes.c_uint()
    nvml.nvmlDeviceGetGpuInstances(device, info.id, array, ctypes.byref(count))
    placements = [nvml.nvmlGpuInstanceGetInfo(array[index]).placement for index in range(count.value)]
    assert [(placement.start, placement.size) for placement in placements] == [(2, 2)]


def test_a_mig_device_leads_back_to_its_gpu_and_instances(h100: H100) -> None:
    _, nvml, device = h100
    info = profiles_of(device)["1g.20gb"]
    create_whole(device, info, 2)
    (mig,) = mig_devices(device)
    assert nvml.nvmlDeviceIsMigDeviceHandle(mig)
    assert nvml.nvmlDeviceGetUUID(mig).startswith("MIG-")
    assert nvml.nvmlDeviceGetName(mig).endswith("MIG 1g.20gb")
    parent = nvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(mig)
    assert nvml.nvmlDeviceGetUUID(parent) == nvml.nvmlDeviceGetUUID(device)
    identity = nvml.nvmlDeviceGetGpuInstanceId(mig)
    assert nvml.nvmlGpuInstanceGetInfo(nvml.nvmlDeviceGetGpuInstanceById(device, identity)).placement.start == 2
    attributes = nvml.nvmlDeviceGetAttributes(mig)
    assert (attributes.memorySizeMB, attributes.gpuInstanceSliceCount) == (info.memorySizeMB, 1)
    assert nvml.nvmlDeviceGetMemoryInfo(mig).total == info.memorySizeMB << 20
    again = nvml.nvmlDeviceGetHandleByUUID(nvml.nvmlDeviceGetUUID(mig))
    assert nvml.nvmlDeviceGetComputeInstanceId(again) == 0


def test_several_compute_instances_share_a_gpu_instance(h100: H100) -> None:
    _, nvml, device = h100
    instance = create_at(device, profiles_of(device)["3g.40gb"].id, 4, 4)
    first = nvml.nvmlGpuInstanceCreateComputeInstance(instance, nvml.NVML_COMPUTE_INSTANCE_PROFILE_1_SLICE)
    assert error(nvml.nvmlGpuInstanceCreateComputeInstance, instance, 2) == nvml.NVML_ERROR_INSUFFICIENT_RESOURCES
    nvml.nvmlGpuInstanceCreateComputeInstance(instance, nvml.NVML_COMPUTE_INSTANCE_PROFILE_1_SLICE)
    assert [nvml.nvmlDeviceGetName(mig)[-10:] for mig in mig_devices(device)] == ["1c.3g.40gb"] * 2
    nvml.nvmlComputeInstanceDestroy(first)
    assert len(mig_devices(device)) == 1


def test_one_slice_of_double_memory_has_all_multiprocessors_by_its_own_compute_profile(h100: H100) -> None:
    _, nvml, device = h100
    instance = nvml.nvmlDeviceCreateGpuInstance(device, profiles_of(device)["1g.20gb"].id)
    counts = [
        nvml.nvmlGpuInstanceGetComputeInstanceProfileInfo(instance, profile, 0, version=2).multiprocessorCount
        for profile in (nvml.NVML_COMPUTE_INSTANCE_PROFILE_1_SLICE, nvml.NVML_COMPUTE_INSTANCE_PROFILE_1_SLICE_REV1)
    ]
    assert counts == [16, 26]


def test_ampere_changes_its_mode_at_the_next_reset(simulate: Callable[..., Node]) -> None:
    node = simulate("a100-40x1")
    with bound(node.library) as nvml:
        device = nvml.nvmlDeviceGetHandleByIndex(0)
        assert nvml.nvmlDeviceSetMigMode(device, 1) == nvml.NVML_ERROR_RESET_REQUIRED
        assert nvml.nvmlDeviceGetMigMode(device) == [0, 1]
        assert error(nvml.nvmlDeviceCreateGpuInstance, device, 19) == nvml.NVML_ERROR_NOT_SUPPORTED
        node.simulator("reset", "--gpu", "0")
        assert nvml.nvmlDeviceGetMigMode(device) == [1, 1]
        nvml.nvmlDeviceCreateGpuInstance(device, 19)
        node.simulator("reboot")
        assert nvml.nvmlDeviceGetMigMode(device) == [1, 1]
        assert node.instances() == set()


def test_hopper_comes_back_from_a_reboot_without_mig_mode(h100: H100) -> None:
    node, nvml, device = h100
    create_whole(device, profiles_of(device)["1g.10gb"])
    node.simulator("reboot")
    assert nvml.nvmlDeviceGetMigMode(device) == [0, 0]
    assert node.capabilities() == set()


def test_instances_outlive_the_client_that_made_them(h100: H100) -> None:
    node, _, _ = h100
    code = "d = nvmlDeviceGetHandleByIndex(0); g = nvmlDeviceCreateGpuInstance(d, 9)\n"
    code += "c = nvmlGpuInstanceCreateComputeInstance(g, 2)\n"
    code += "print(json.dumps(nvmlDeviceGetUUID(nvmlComputeInstanceGetInfo_v2(c).device)), flush=True); time.sleep(60)"
    maker = node.client(code)
    uuid = read_line(maker)
    maker.kill()
    maker.wait()
    with bound(node.library) as nvml:
        device = nvml.nvmlDeviceGetHandleByIndex(0)
        assert [nvml.nvmlDeviceGetUUID(mig) for mig in mig_devices(device)] == [uuid]


def test_a_client_killed_at_any_moment_leaves_state_and_tree_whole(h100: H100) -> None:
    node, nvml, _ = h100
    code = """
print(json.dumps("ready"), flush=True)
d = nvmlDeviceGetHandleByIndex(0)
while True:
    g = nvmlDeviceCreateGpuInstance(d, 14); c = nvmlGpuInstanceCreateComputeInstance(g, 1)
    nvmlComputeInstanceDestroy(c); nvmlGpuInstanceDestroy(g)
"""
    for round_number in range(12):
        client = node.client(code)
        read_line(client)
        time.sleep(0.003 + 0.0017 * round_number)
        os.kill(client.pid, signal.SIGKILL)
        client.wait()
        nvml.nvmlShutdown()
        nvml.nvmlInit()  # what the next client does: it finds the tree behind the state, if so, and mends it
        assert node.capabilities() == node.instances()
        assert len(node.capability_nodes()) == len(node.instances())
        node.smi("mig", "-dci")
        assert node.smi("mig", "-dgi").returncode == 0


def test_of_clients_that_race_for_one_placement_one_wins(h100: H100) -> None:
    node, _, _ = h100
    code = """
d = nvmlDeviceGetHandleByIndex(0)
time.sleep(max(0, float(sys.argv[2]) - time.time()))
won = 0
for start in range(7):
    try:
        nvmlDeviceCreateGpuInstanceWithPlacement(d, 19, ctypes.byref(c_nvmlGpuInstancePlacement_t(start, 1))); won += 1
    except NVMLError_InsufficientResources:
        pass
print(json.dumps(won), flush=True)
"""
    clients = [node.client(code, str(time.time() + 1)) for _ in range(4)]
    assert sum(read_line(client) for client in clients) == 7
    for client in clients:
        client.wait()
