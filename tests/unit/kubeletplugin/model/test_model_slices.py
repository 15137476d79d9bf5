"""Devices become slices within the API's limits, in the order in which the scheduler shall try them."""

from typing import Any

import pytest

from api.errors import InvalidObject
from kubeletplugin.model.checkpoint import Checkpoint
from kubeletplugin.model.devices import DeviceGroup, DeviceSet, build_devices
from kubeletplugin.model.slices import build_slices, dropped_features, refuses_informing_taints, wants_counters_joined
from tests.scenarios.allocator import first_fit, free_devices, profile, whole_gpu
from tests.scenarios.hardware import a100, h100, inventory, l40s, rtx


def build(devices: DeviceSet) -> list[dict[str, Any]]:
    return build_slices("gpu.nvidia.com", "node-1", "node-1", devices)


def sixteen() -> list[dict[str, Any]]:
    return build(build_devices(inventory(*(h100(i) for i in range(16))), Checkpoint()))


def test_sixteen_gpus_with_all_partitions_keep_every_limit() -> None:
    slices = sixteen()
    for spec in slices:
        assert ("devices" in spec) != ("sharedCounters" in spec)
        assert len(spec.get("devices", ())) <= 64
        assert len(spec.get("sharedCounters", ())) <= 8
    assert sum(len(spec.get("sharedCounters", ())) for spec in slices) == 16
    assert sum(len(spec.get("devices", ())) for spec in slices) == 16 * 26


def test_a_slice_holds_one_profile_only() -> None:
    for spec in sixteen():
        kinds = {d["attributes"].get("profile", {"string": "gpu"})["string"] for d in spec.get("devices", ())}
        assert len(kinds) <= 1


def test_devices_without_counters_or_taints_go_128_to_a_slice() -> None:
    devices = tuple({"name": f"gpu-{i}", "attributes": {}} for i in range(130))
    assert [len(s["devices"]) for s in build(DeviceSet((DeviceGroup("gpu", devices),)))] == [128, 2]
    tainted = ({**devices[0], "taints": [{"key": "k", "effect": "NoSchedule"}]}, *devices[1:])
    assert [len(s["devices"]) for s in build(DeviceSet((DeviceGroup("gpu", tainted),)))] == [64, 64, 2]


def test_a_node_without_devices_shows_one_empty_slice() -> None:
    assert build(DeviceSet()) == [
        {"driver": "gpu.nvidia.com", "nodeName": "node-1", "pool": {"name": "node-1"}, "devices": []}
    ]


def group(*devices: dict[str, Any]) -> DeviceSet:
    return DeviceSet((DeviceGroup("g", devices),), ({"name": "set", "counters": {"c": {"value": "1"}}},))


def consuming(counter_set: str, counter: str) -> dict[str, Any]:
    return {
        "name": "d",
        "consumesCounters": [{"counterSet": counter_set, "counters": {counter: {"value": "1"}}}],
    }


@pytest.mark.parametrize(
    ("devices", "message"),
    [
        (group({"name": "d"}, {"name": "d"}), "device d is there twice"),
        (group(consuming("other", "c")), "device d consumes from counter set other, which the pool does not have"),
        (group(consuming("set", "x")), "device d consumes x, which set does not have"),
        (group({"name": "D"}), "device name 'D' is no DNS label"),
        (group({"name": "d" * 64}), "is no DNS label of at most 63 characters"),
        (group({"name": "d", "attributes": dict.fromkeys(range(33))}), "has 33 attributes and capacities; at most 32"),
        (group({"name": "d", "taints": [{}] * 17}), "more than 16 taints"),
        (DeviceSet(counter_sets=({"name": "s", "counters": {}},) * 2), "counter set s is there twice"),
        (
            DeviceSet(counter_sets=({"name": "s", "counters": dict.fromkeys(map(str, range(33)))},)),
            "counter set s has 33 counters; at most 32",
        ),
    ],
)
def test_what_would_spoil_the_pool_is_refused_by_name(devices: DeviceSet, message: str) -> None:
    with pytest.raises(InvalidObject, match=message):
        build(devices)


def test_partitions_fill_one_gpu_before_the_next_and_leave_whole_gpus_whole() -> None:
    slices = sixteen()
    taken: list[str] = []
    for _ in range(7):
        name = first_fit(slices, taken, profile("1g.10gb"))
        assert name is not None
        taken.append(name)
    assert [name.split("-")[-1] for name in taken] == ["5", "4", "6", "2", "1", "0", "3"]
    assert {name.split("-mig-")[0] for name in taken} == {"gpu-0"}
    assert first_fit(slices, taken, whole_gpu) == "gpu-15"
    assert first_fit(slices, [*taken, "gpu-15"], profile("3g.40gb")) == "gpu-1-mig-3g40gb-9-4"


def test_counters_allow_exactly_what_the_hardware_can_hold_together() -> None:
    slices = build(build_devices(inventory(h100(0)), Checkpoint()))
    both = ["gpu-0-mig-3g40gb-9-0", "gpu-0-mig-3g40gb-9-4"]
    assert free_devices(slices, both) == []
    free = {d["name"] for d in free_devices(slices, ["gpu-0-mig-4g40gb-5-0"])}
    assert "gpu-0-mig-3g40gb-9-4" in free
    assert not {"gpu-0", "gpu-0-mig-1g10gb-19-3", "gpu-0-mig-7g80gb-0-0"} & free
    assert free_devices(slices, ["gpu-0"]) == []


def join(devices: DeviceSet) -> list[dict[str, Any]]:
    return build_slices("gpu.nvidia.com", "node-1", "node-1", devices, counters_apart=False)


def test_joined_slices_hold_what_draws_from_their_counters_within_the_limits_of_kubernetes_1_34() -> None:
    devices = build_devices(inventory(*(h100(i) for i in range(16)), l40s(16)), Checkpoint())
    (without, *slices) = join(devices)
    assert [each["name"] for each in without["devices"]] == ["gpu-16"]
    assert len(slices) == 16
    for spec in slices:
        (counter_set,) = spec["sharedCounters"]
        assert len(counter_set["counters"]) <= 32  # ResourceSliceMaxSharedCounters
        draws = [consumption for device in spec["devices"] for consumption in device["consumesCounters"]]
        assert {each["counterSet"] for each in draws} == {counter_set["name"]}
        assert sum(len(each["counters"]) for each in draws) <= 1024  # ResourceSliceMaxDeviceCountersPerSlice
    names = [device["name"] for spec in (without, *slices) for device in spec["devices"]]
    assert sorted(names) == sorted(device["name"] for spec in build(devices) for device in spec.get("devices", ()))
    assert join(DeviceSet()) == build(DeviceSet())


def test_counter_sets_from_which_one_device_draws_are_joined_in_one_slice() -> None:
    def drawing(name: str, *sets: str) -> dict[str, Any]:
        return {"name": name, "consumesCounters": [{"counterSet": s, "counters": {"c": {"value": "1"}}} for s in sets]}

    devices = DeviceSet(
        (DeviceGroup("g", (drawing("d0", "a"), drawing("d1", "b", "node"), drawing("d2", "a", "node"))),
         DeviceGroup("h", (drawing("d3", "alone"),))),
        tuple({"name": name, "counters": {"c": {"value": "1"}}} for name in ("a", "b", "node", "alone")),
    )  # fmt: skip
    names = [([s["name"] for s in x["sharedCounters"]], [d["name"] for d in x["devices"]]) for x in join(devices)]
    assert names == [(["a", "b", "node"], ["d0", "d1", "d2"]), (["alone"], ["d3"])]


def test_a_server_that_refuses_taints_without_effect_is_known_by_its_words() -> None:
    place = "spec.devices[3].taints[1].effect"
    assert refuses_informing_taints(f'{place}: Unsupported value: "None": supported values: "NoExecute", "NoSchedule"')
    assert not refuses_informing_taints(f'{place}: Unsupported value: "Never": supported values: "None"')


def test_a_server_that_wants_counters_joined_is_known_by_its_words() -> None:
    assert wants_counters_joined(
        'ResourceSlice.resource.k8s.io "x" is invalid: spec.devices[0].consumesCounters[0].counterSet: Invalid value: '
        '"gpu-0-counter-set": must reference a counterSet defined in the ResourceSlice sharedCounters'
    )
    assert not wants_counters_joined("spec.devices[0].name: Invalid value")


def test_the_same_hardware_gives_the_same_slices() -> None:
    node = inventory(rtx(0), h100(1), a100(2, enabled=True), l40s(3))
    assert build(build_devices(node, Checkpoint())) == build(build_devices(node, Checkpoint()))


@pytest.mark.parametrize(
    ("written", "stored", "gates"),
    [
        ({"sharedCounters": [{"name": "s"}]}, {}, {"DRAPartitionableDevices"}),
        ({"devices": [consuming("s", "c")]}, {"devices": [{"name": "d"}]}, {"DRAPartitionableDevices"}),
        ({"devices": [{"name": "d", "taints": [{}]}]}, {"devices": [{"name": "d"}]}, {"DRADeviceTaints"}),
        (
            {"devices": [{"name": "d", "taints": [{}], "bindingConditions": ["b"], "allowMultipleAllocations": True}]},
            {"devices": [{"name": "d"}]},
            {"DRADeviceTaints", "DRADeviceBindingConditions", "DRAConsumableCapacity"},
        ),
        ({"devices": [{"name": "d", "taints": [{}]}]}, {"devices": [{"name": "d", "taints": [{}]}]}, set()),
        ({"devices": []}, {}, set()),
    ],
)
def test_fields_that_the_server_dropped_tell_which_gate_is_off(
    written: dict[str, Any], stored: dict[str, Any], gates: set[str]
) -> None:
    assert dropped_features(written, stored) == gates
