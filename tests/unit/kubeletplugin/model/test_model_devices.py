"""What a node offers: names, attributes, capacities and counters, and what an admin's instances leave of it."""

from dataclasses import replace
from typing import Any

import pytest

from api.quantity import parse_quantity
from kubeletplugin.model.checkpoint import Checkpoint, ClaimRecord, ClaimState, GpuHolding, Holding, PreparedDevice
from kubeletplugin.model.checkpoint import MigHolding as Mig
from kubeletplugin.model.devices import DeviceSet, Features, build_devices, semantic_version
from kubeletplugin.model.health import GpuHealth, NodeHealth
from kubeletplugin.model.inventory import Gpu, Inventory, MigInstance, MigProfile, Placement
from kubeletplugin.model.slices import build_slices
from tests.scenarios.hardware import H100, MIB, a30, a100, h100, inventory, l40s, rtx


def admins(profile_id: int, start: int, size: int, **more: Any) -> MigInstance:
    return MigInstance(1, profile_id, Placement(start, size), 0, f"MIG-admin-{start}", **more)


def holding(*holdings: Holding, uid: str = "c1") -> Checkpoint:
    devices = tuple(PreparedDevice("r", "node-1", f"d{i}", h) for i, h in enumerate(holdings))
    return Checkpoint().with_record(ClaimRecord("d", uid, "ns", uid, ClaimState.COMPLETED, "boot", devices))


def offered(*gpus: Gpu, checkpoint: Checkpoint | None = None, **more: Any) -> DeviceSet:
    return build_devices(inventory(*gpus), checkpoint or Checkpoint(), **more)


def names(devices: DeviceSet) -> list[str]:
    return [device["name"] for group in devices.groups for device in group.devices]


def device(devices: DeviceSet, name: str) -> dict[str, Any]:
    return next(d for group in devices.groups for d in group.devices if d["name"] == name)


def counters(devices: DeviceSet, index: int = 0) -> dict[str, int]:
    return {name: parse_quantity(c["value"]) for name, c in devices.counter_sets[index]["counters"].items()}


def test_a_full_gpu_has_the_references_attributes_with_their_types() -> None:
    gpu = device(offered(h100(3)), "gpu-3")
    assert gpu["attributes"] == {
        "type": {"string": "gpu"},
        "uuid": {"string": "GPU-00000003-0000-0000-0000-000000000000"},
        "productName": {"string": "NVIDIA H100 80GB HBM3"},
        "brand": {"string": "Nvidia"},
        "architecture": {"string": "Hopper"},
        "cudaComputeCapability": {"version": "9.0.0"},
        "driverVersion": {"version": "570.158.1"},
        "cudaDriverVersion": {"version": "12.8.0"},
        "addressingMode": {"string": "None"},
        "resource.kubernetes.io/pciBusID": {"string": "0000:13:00.0"},
        "resource.kubernetes.io/pcieRoot": {"string": "pci0000:12"},
        "resource.kubernetes.io/numaNode": {"int": 0},
        "index": {"int": 3},
        "migCapable": {"bool": True},
    }
    assert gpu["capacity"] == {
        "multiprocessors": {"value": "132"},
        "copyEngines": {"value": "8"},
        "decoders": {"value": "7"},
        "encoders": {"value": "0"},
        "jpegEngines": {"value": "7"},
        "ofaEngines": {"value": "1"},
        "memory": {"value": "81559Mi"},
    }


def test_a_dynamic_partition_has_no_uuid_and_draws_its_amounts_and_slices() -> None:
    devices = offered(h100(0))
    partition = device(devices, "gpu-0-mig-2g20gb-14-4")
    assert "uuid" not in partition["attributes"]
    assert partition["attributes"]["type"] == {"string": "mig"}
    assert partition["attributes"]["profile"] == {"string": "2g.20gb"}
    assert partition["attributes"]["parentUUID"] == device(devices, "gpu-0")["attributes"]["uuid"]
    assert partition["capacity"] == {
        "multiprocessors": {"value": "32"},
        "copyEngines": {"value": "2"},
        "decoders": {"value": "2"},
        "encoders": {"value": "0"},
        "jpegEngines": {"value": "2"},
        "ofaEngines": {"value": "0"},
        "memory": {"value": "20096Mi"},
    }
    assert partition["consumesCounters"] == [
        {
            "counterSet": "gpu-0-counter-set",
            "counters": {
                "multiprocessors": {"value": "32"},
                "copy-engines": {"value": "2"},
                "decoders": {"value": "2"},
                "encoders": {"value": "0"},
                "jpeg-engines": {"value": "2"},
                "ofa-engines": {"value": "0"},
                "memory": {"value": "20096Mi"},
                "memory-slice-4": {"value": "1"},
                "memory-slice-5": {"value": "1"},
            },
        }
    ]


@pytest.mark.parametrize(("gpu", "count", "units"), [(h100(), 26, 8), (a30(), 7, 4), (rtx(), 20, 12)])
def test_every_placement_is_offered_and_counters_are_the_maximum_over_profiles(
    gpu: Gpu, count: int, units: int
) -> None:
    devices = offered(gpu)
    assert gpu.mig is not None
    whole = not gpu.mig.mode_change_needs_reset
    assert len(names(devices)) == count
    assert ("gpu-0" in names(devices)) is whole
    found = counters(devices)
    assert found["multiprocessors"] == max(p.multiprocessors for p in gpu.mig.profiles)
    assert found["ofa-engines"] == 1
    assert [f"memory-slice-{i}" in found for i in range(units + 1)] == [True] * units + [False]
    if whole:
        assert device(devices, "gpu-0")["consumesCounters"][0]["counters"] == devices.counter_sets[0]["counters"]


def test_ampere_is_offered_as_its_current_mode_allows() -> None:
    assert names(offered(a100(0))) == ["gpu-0"]
    assert "consumesCounters" not in device(offered(a100(0)), "gpu-0")
    enabled = names(offered(a100(0, enabled=True)))
    assert "gpu-0" not in enabled
    assert len(enabled) == 25


@pytest.mark.parametrize("profiles", [(), (replace(H100[0], placements=()),)])
def test_a_gpu_whose_profiles_cannot_be_listed_is_a_plain_full_gpu_and_spoils_no_other(
    profiles: tuple[MigProfile, ...],
) -> None:
    odd, whole = h100(0), h100(1)
    assert odd.mig is not None
    odd = replace(odd, mig=replace(odd.mig, profiles=profiles))
    devices = offered(odd, whole)
    assert "consumesCounters" not in device(devices, "gpu-0")
    assert len(names(devices)) == 1 + len(names(offered(whole)))
    assert build_slices("gpu.nvidia.com", "node-1", "node-1", devices)
    stuck = a100(0, enabled=True)
    assert stuck.mig is not None
    assert names(offered(replace(stuck, mig=replace(stuck.mig, profiles=profiles)))) == []


def test_a_gpu_without_mig_is_a_full_gpu_beside_others() -> None:
    devices = offered(l40s(0), h100(1))
    assert device(devices, "gpu-0")["attributes"]["migCapable"] == {"bool": False}
    assert [s["name"] for s in devices.counter_sets] == ["gpu-1-counter-set"]


def test_an_admins_instance_is_a_static_device_and_takes_its_share_off_the_gpu() -> None:
    devices = offered(h100(0, enabled=True, instances=(admins(9, 0, 4),)))
    static = device(devices, "gpu-0-mig-3g40gb-9-0")
    assert static["attributes"]["uuid"] == {"string": "MIG-admin-0"}
    assert "consumesCounters" not in static
    assert [f"memorySlice{i}" in static["capacity"] for i in range(5)] == [True] * 4 + [False]
    left = counters(devices)
    assert (left["multiprocessors"], left["decoders"]) == (132 - 60, 7 - 3)
    assert [left[f"memory-slice-{i}"] for i in range(8)] == [0] * 4 + [1] * 4
    assert sorted(set(names(devices)) - {"gpu-0-mig-3g40gb-9-0"}) == sorted(
        [f"gpu-0-mig-1g10gb-19-{s}" for s in (4, 5, 6)]
        + [f"gpu-0-mig-1g10gb-me-20-{s}" for s in (4, 5, 6)]
        + [f"gpu-0-mig-1g20gb-15-{s}" for s in (4, 6)]
        + ["gpu-0-mig-2g20gb-14-4", "gpu-0-mig-3g40gb-9-4"]
    )


def test_our_own_instances_stay_dynamic_whatever_state_their_claim_is_in() -> None:
    ours = MigInstance(1, 19, Placement(5, 1), 0, "MIG-ours")
    gpu = h100(0, enabled=True, instances=(ours,))
    for uuid in ("MIG-ours", None):
        devices = offered(gpu, checkpoint=holding(Mig(gpu.uuid, 19, Placement(5, 1), owned=True, uuid=uuid)))
        assert len(names(devices)) == 26
        assert "uuid" not in device(devices, "gpu-0-mig-1g10gb-19-5")["attributes"]


def test_what_a_claim_holds_stays_listed_whatever_an_admin_took_since() -> None:
    ours = MigInstance(2, 20, Placement(5, 1), 0, "MIG-ours")
    gpu = h100(0, enabled=True, instances=(admins(20, 0, 1), ours))
    devices = offered(gpu, checkpoint=holding(Mig(gpu.uuid, 20, Placement(5, 1), owned=True, uuid="MIG-ours")))
    assert [n for n in names(devices) if "-me-" in n] == ["gpu-0-mig-1g10gb-me-20-0", "gpu-0-mig-1g10gb-me-20-5"]


def test_layouts_that_cannot_be_used_are_left_out_with_a_note() -> None:
    odd = h100(0, enabled=True, instances=(admins(9, 0, 4, foreign=True), MigInstance(2, 19, Placement(4, 1))))
    devices = offered(odd)
    assert not any(name.startswith("gpu-0-mig-3g40gb-9-0") for name in names(devices))
    assert "gpu-0-mig-1g10gb-19-4" not in names(devices)
    assert "gpu-0-mig-1g10gb-19-5" in names(devices)
    assert "an admin's own layout" in devices.notes[0]
    assert "has no compute instance" in devices.notes[1]


def test_groups_are_by_profile_small_before_big_full_gpus_last() -> None:
    groups = [group.name for group in offered(h100(0), h100(1)).groups]
    assert groups == ["1g.10gb", "1g.10gb+me", "1g.20gb", "2g.20gb", "3g.40gb", "4g.40gb", "7g.80gb", "gpu"]


def test_in_a_group_the_fullest_gpu_comes_first_and_full_gpus_begin_at_the_other_end() -> None:
    gpus = [l40s(0), h100(1), h100(2), h100(3)]
    fresh = offered(*gpus)
    assert [d["name"] for d in fresh.groups[-1].devices] == ["gpu-0", "gpu-3", "gpu-2", "gpu-1"]
    assert [d["name"][:5] for d in fresh.groups[4].devices] == ["gpu-1", "gpu-1", "gpu-2", "gpu-2", "gpu-3", "gpu-3"]
    used = offered(*gpus, checkpoint=holding(Mig(gpus[2].uuid, 9, Placement(4, 4), owned=True)))
    assert [d["name"][:5] for d in used.groups[4].devices] == ["gpu-2", "gpu-2", "gpu-1", "gpu-1", "gpu-3", "gpu-3"]
    whole = offered(*gpus, checkpoint=holding(GpuHolding(gpus[2].uuid)))
    assert whole == fresh


def test_without_counters_only_full_gpus_and_existing_instances_are_offered() -> None:
    off = Features(partitionable=False)
    mixed = (h100(0), h100(1, enabled=True, instances=(admins(9, 0, 4),)), a100(2, enabled=True), l40s(3))
    devices = offered(*mixed, features=off)
    assert sorted(names(devices)) == ["gpu-0", "gpu-1-mig-3g40gb-9-0", "gpu-3"]
    assert devices.counter_sets == ()
    assert not any("consumesCounters" in d for group in devices.groups for d in group.devices)
    started = holding(Mig(mixed[0].uuid, 19, Placement(0, 1), owned=True))
    assert "gpu-0" not in names(offered(*mixed, checkpoint=started, features=off))


def test_an_unhealthy_gpu_taints_all_its_devices_and_no_others() -> None:
    gpus = (h100(0), h100(1))
    health = NodeHealth({gpus[0].uuid: GpuHealth(xids=(48, 63))})
    devices = offered(*gpus, health=health)
    taint = {"key": "gpu.nvidia.com/xid", "value": "63", "effect": "NoSchedule"}
    for group in devices.groups:
        for d in group.devices:
            assert d.get("taints") == ([taint] if d["name"].startswith("gpu-0") else None)


def test_without_taints_what_no_claim_holds_of_an_unhealthy_gpu_is_not_offered() -> None:
    off = Features(taints=False)
    gpus = (h100(0), h100(1))
    ill, lost = NodeHealth({gpus[0].uuid: GpuHealth(xids=(48,))}), (replace(gpus[0], lost=True), gpus[1])
    for devices in (offered(*gpus, health=ill, features=off), offered(*lost, features=off)):
        assert names(devices) == names(offered(gpus[1]))
        assert devices.counter_sets == offered(gpus[1]).counter_sets
        assert "is unhealthy" in devices.notes[0]
    held = PreparedDevice("r", "node-1", "gpu-0-mig-1g10gb-19-5", Mig(gpus[0].uuid, 19, Placement(5, 1), owned=True))
    checkpoint = Checkpoint().with_record(ClaimRecord("d", "c1", "ns", "c1", ClaimState.COMPLETED, "boot", (held,)))
    devices = offered(*gpus, health=ill, features=off, checkpoint=checkpoint)
    assert [name for name in names(devices) if name.startswith("gpu-0")] == ["gpu-0-mig-1g10gb-19-5"]
    assert [each["name"] for each in devices.counter_sets] == ["gpu-0-counter-set", "gpu-1-counter-set"]
    assert not any("taints" in d for group in devices.groups for d in group.devices)


def test_a_lost_gpu_is_tainted_whether_or_not_an_event_said_so() -> None:
    lost = replace(h100(0), lost=True)
    assert device(offered(lost), "gpu-0")["taints"] == [{"key": "gpu.nvidia.com/gpu-lost", "effect": "NoSchedule"}]


def test_a_gpu_that_reports_no_errors_says_so_where_the_api_server_lets_it() -> None:
    blind = replace(l40s(0), monitored=False)
    assert device(offered(blind), "gpu-0")["taints"] == [{"key": "gpu.nvidia.com/unmonitored", "effect": "None"}]
    assert "taints" not in device(offered(blind, features=Features(informing=False)), "gpu-0")


def test_a_device_keeps_within_the_limit_of_32_attributes_and_capacities() -> None:
    full = rtx(0, enabled=True, instances=(admins(0, 0, 12),))
    static = device(offered(full), "gpu-0-mig-4g96gb-0-0")
    assert len(static["attributes"]) + len(static["capacity"]) == 32
    assert static["capacity"]["memory"] == {"value": f"{97280 * MIB // 1024**3}Gi"}


def test_unreadable_gpus_are_noted_and_an_empty_node_offers_nothing() -> None:
    empty = Inventory("570.1", "12.8", unreadable=("GPU at 0000:01:00.0: unknown error",))
    devices = build_devices(empty, Checkpoint())
    assert (devices.groups, devices.counter_sets) == ((), ())
    assert devices.notes == ("GPU at 0000:01:00.0: unknown error",)


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("9.0", "9.0.0"),
        ("580.95.05", "580.95.5"),
        ("12.8", "12.8.0"),
        ("13", "13.0.0"),
        ("1.2.3.4", "1.2.3"),
        ("6.14.5-oem", "6.14.5"),
    ],
)
def test_versions_are_semantic(text: str, version: str) -> None:
    assert semantic_version(text) == version
