"""AMD GPUs in the plugin's model: names, devices, CDI specs, whole-node targets."""

import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest

from api.errors import Busy, ClaimError, HardwareError, InvalidObject, Retryable
from kubeletplugin.model.amd_cdi import build_amd_cdi_spec
from kubeletplugin.model.amd_devices import build_amd_devices
from kubeletplugin.model.amd_partitions import (
    AmdInventory,
    DeviceRef,
    Mode,
    ModeOffer,
    parse_device_name,
    smallest_partition_bytes,
)
from kubeletplugin.model.amd_prepare import ReloadDriver, SetComputeMode, SetMemoryMode
from kubeletplugin.model.amd_target import plan_target
from kubeletplugin.model.cdi import DeviceNode, read_record
from kubeletplugin.model.checkpoint import Checkpoint, decode_journal, encode_checkpoint
from tests.scenarios.amd.world import Node, build_gpu, build_node

CPX = Mode("CPX", "NPS4")
MIB = 1 << 20


def inventory(*gpus: Any) -> AmdInventory:
    return AmdInventory("6.12.12", "ABC", gpus)


def devices(found: AmdInventory, *, on_claim: bool = False, checkpoint: Checkpoint | None = None) -> dict[str, Any]:
    built = build_amd_devices(found, checkpoint or Checkpoint(), on_claim=on_claim)
    return {device["name"]: device for group in built.groups for device in group.devices}


def prepared_node() -> Node:
    node = build_node()
    node.allocate("claim", "gpu-0000-05-00-0-cpx-nps4")
    node.prepare("claim")
    return node


@pytest.mark.parametrize(
    ("name", "ref"),
    [
        ("gpu-0000-05-00-0", DeviceRef("0000:05:00.0", None, None)),
        ("gpu-0000-05-00-0-spx-nps1", DeviceRef("0000:05:00.0", Mode("SPX", "NPS1"), None)),
        ("gpu-10000-e5-00-0-cpx-nps4-7", DeviceRef("10000:e5:00.0", CPX, 7)),
        ("gpu-1-128", None),
        ("gpu-0000-05-00-0-cpx", None),
    ],
)
def test_names_say_gpu_mode_and_partition(name: str, ref: DeviceRef | None) -> None:
    assert parse_device_name(name) == ref


def test_a_static_node_offers_what_exists_as_the_reference_driver_does() -> None:
    """Attributes and capacities of a full GPU are those of AMD's driver 1.0, with the older names beside them."""
    (device,) = devices(inventory(build_gpu(0))).values()
    attributes = device["attributes"]
    assert attributes["type"] == {"string": "amdgpu"}
    assert attributes["productName"] == {"string": "AMD_Instinct_MI300X_OAM"}
    assert attributes["deviceID"] == {"string": "0x74a1"}
    assert attributes["partitionProfile"] == {"string": "spx_nps1"}
    assert attributes["driverVersion"] == {"version": "6.12.12"}
    assert attributes["resource.kubernetes.io/pciBusID"] == attributes["pciAddr"] == {"string": "0000:05:00.0"}
    assert (attributes["cardIndex"], attributes["renderIndex"]) == ({"int": 1}, {"int": 128})
    assert device["capacity"] == {
        "memory": {"value": "192Gi"},
        "computeUnits": {"value": "304"},
        "simdUnits": {"value": "1216"},
        "partitions": {"value": "1"},
    }
    assert "consumesCounters" not in device


@pytest.mark.parametrize("on_claim", [False, True])
def test_every_device_tells_of_its_driver_its_family_and_its_hive(on_claim: bool) -> None:
    """The version as it is beside the one that CEL compares; the hive is what matchAttribute keeps GPUs together by."""
    found = replace(inventory(build_gpu(0), build_gpu(1, CPX)), driver_version="6.14.5-2144-oem")
    for device in devices(found, on_claim=on_claim).values():
        attributes = device["attributes"]
        assert attributes["driverVersion"] == {"version": "6.14.5"}
        assert attributes["driverVersionFull"] == {"string": "6.14.5-2144-oem"}
        assert attributes["driverSrcVersion"] == {"string": "ABC"}
        assert attributes["family"] == {"string": "AI"}
        assert attributes["hiveID"] == {"string": "15188982192727901047"}


def test_what_a_node_does_not_tell_is_no_attribute() -> None:
    """As the kernel's own driver, which has no version, and a GPU that is in no hive."""
    plain = AmdInventory("", "", (replace(build_gpu(0), hive_id=None),))
    (device,) = devices(plain).values()
    assert not device["attributes"].keys() & {"driverVersion", "driverVersionFull", "driverSrcVersion", "hiveID"}


def test_partitions_of_a_static_node_are_devices_of_their_own() -> None:
    """A GPU in CPX/NPS4 shows eight partitions, each with its place, memory range and parent."""
    found = devices(inventory(build_gpu(0, CPX)))
    assert list(found) == [f"gpu-0000-05-00-0-cpx-nps4-{slot}" for slot in range(8)]
    last = found["gpu-0000-05-00-0-cpx-nps4-7"]["attributes"]
    assert (last["type"], last["partitionProfile"]) == ({"string": "amdgpu-partition"}, {"string": "cpx_nps4"})
    assert (last["partitionIndex"], last["memoryRange"]) == ({"int": 7}, {"int": 3})
    assert last["parentPciAddr"] == last["resource.kubernetes.io/pciBusID"]
    assert last["parentDeviceID"] == {"string": str(int("e3aa140f9a5f9e00", 16))}


def test_a_gpu_that_cannot_partition_has_no_profile_and_no_counters() -> None:
    """It is one device, also on a node that partitions on claim."""
    found = devices(inventory(build_gpu(0, can_partition=False)), on_claim=True)
    assert list(found) == ["gpu-0000-05-00-0"]
    assert "partitionProfile" not in found["gpu-0000-05-00-0"]["attributes"]
    assert "consumesCounters" not in found["gpu-0000-05-00-0"]


def test_every_device_keeps_to_the_limits_of_the_api() -> None:
    """At most 32 attributes and capacities, 2 counter sets, names of 63 characters."""
    for device in devices(inventory(build_gpu(0), build_gpu(1, CPX)), on_claim=True).values():
        assert len(device["attributes"]) + len(device["capacity"]) <= 32
        assert len(device["consumesCounters"]) <= 2
        assert len(device["name"]) <= 63


def test_a_mode_is_tried_first_where_it_needs_no_change() -> None:
    """GPUs that are in a mode come before those that would have to be brought into it."""
    names = list(devices(inventory(build_gpu(0), build_gpu(1, Mode("CPX", "NPS1"))), on_claim=True))
    assert names.index("gpu-0000-06-00-0-cpx-nps1") < names.index("gpu-0000-05-00-0-cpx-nps1")
    assert names[0] == "gpu-0000-05-00-0-spx-nps1"


@pytest.mark.parametrize(
    ("mode", "partitions", "mib"), [(Mode("SPX", "NPS1"), 1, 196592), (Mode("DPX", "NPS1"), 2, 98296), (CPX, 8, 24568)]
)
def test_memory_of_a_mode_follows_the_captures(mode: Mode, partitions: int, mib: int) -> None:
    assert smallest_partition_bytes(196592 * MIB, ModeOffer(mode, partitions)) == mib * MIB


def test_a_change_of_policy_never_gives_a_held_partition_out_again() -> None:
    """What a claim holds under a mode's name is not offered when the node becomes static, and the other way round."""
    node = prepared_node()
    slot = node.running()[0].holding.slot
    static = devices(node.inventory, checkpoint=node.checkpoint)
    assert f"gpu-0000-05-00-0-cpx-nps4-{slot}" not in static
    assert len(static) == 15
    named = build_node()
    named.inventory = inventory(build_gpu(0, CPX), build_gpu(1, CPX))
    named.published = build_amd_devices(named.inventory, Checkpoint(), on_claim=False)
    named.allocate("claim", "gpu-0000-05-00-0-cpx-nps4-0")
    named.prepare("claim")
    dynamic = devices(named.inventory, on_claim=True, checkpoint=named.checkpoint)
    assert [n for n in dynamic if n.startswith("gpu-0000-05")] == ["gpu-0000-05-00-0-cpx-nps4"]
    assert dynamic["gpu-0000-05-00-0-cpx-nps4"]["capacity"]["partitions"]["value"] == "7"
    assert not [n for n in dynamic if "nps1" in n]


def test_records_survive_the_journal_and_the_cdi_file() -> None:
    """A record reads back the same from the journal and from the CDI spec's annotation."""
    node = prepared_node()
    journal = decode_journal("gpu.amd.com", encode_checkpoint("gpu.amd.com", node.checkpoint))
    assert journal.checkpoint.records == node.checkpoint.records
    spec = build_amd_cdi_spec(node.checkpoint.records["claim"], node.inventory, nodes(), "n1")
    assert read_record(spec) == node.checkpoint.records["claim"]


def nodes() -> dict[str, DeviceNode]:
    paths = {"/dev/kfd": (511, 0)}
    paths |= {f"/dev/dri/card{n}": (226, n) for n in range(1, 17)}
    paths |= {f"/dev/dri/renderD{n}": (226, n) for n in range(128, 144)}
    return {path: DeviceNode(path, "/host" + path, *numbers) for path, numbers in paths.items()}


def test_a_container_gets_kfd_and_exactly_its_partitions() -> None:
    """/dev/kfd once, and the card and render node of each claimed partition, with their numbers."""
    node = prepared_node()
    spec = build_amd_cdi_spec(node.checkpoint.records["claim"], node.inventory, nodes(), "n1")
    assert [n["path"] for n in spec["containerEdits"]["deviceNodes"]] == ["/dev/kfd"]
    (device,) = spec["devices"]
    slot = node.running()[0].holding.slot
    assert [n["path"] for n in device["containerEdits"]["deviceNodes"]] == [
        f"/dev/dri/card{1 + slot}",
        f"/dev/dri/renderD{128 + slot}",
    ]
    assert device["containerEdits"]["deviceNodes"][0]["major"] == 226
    assert f"{spec['kind']}={device['name']}" == node.checkpoint.records["claim"].devices[0].cdi_ids[0]


def test_a_container_is_told_its_node_and_its_driver() -> None:
    """As by AMD's driver; nothing makes devices visible or hides them, since a container has its own alone."""
    node = prepared_node()
    spec = build_amd_cdi_spec(node.checkpoint.records["claim"], node.inventory, nodes(), "n1")
    assert spec["containerEdits"]["env"] == ["KUBERNETES_NODE_NAME=n1", "DRA_RESOURCE_DRIVER_NAME=gpu.amd.com"]
    assert all("env" not in device["containerEdits"] for device in spec["devices"])


def test_a_partition_that_is_not_there_is_an_error_that_names_it() -> None:
    node = prepared_node()
    record = node.checkpoint.records["claim"]
    with pytest.raises(HardwareError, match="gpu-0000-05-00-0-cpx-nps4"):
        build_amd_cdi_spec(record, inventory(build_gpu(0)), nodes(), "n1")
    with pytest.raises(HardwareError, match="/dev/kfd"):
        build_amd_cdi_spec(record, node.inventory, {}, "n1")


def test_a_device_that_is_gone_and_a_mode_that_is_not_offered_say_so() -> None:
    node = build_node()
    node.allocations["claim"] = [type(prepared_node().allocations["claim"][0])("gpu-0000-99-00-0-spx-nps1", 1)]
    with pytest.raises(ClaimError, match="this one is gone"):
        node.prepare("claim")
    node.allocations["claim"][0].device = "gpu-0000-05-00-0-tpx-nps1"
    with pytest.raises(ClaimError, match="it offers spx_nps1"):
        node.prepare("claim")


def test_a_target_is_reached_memory_first_and_only_where_nobody_holds_anything() -> None:
    """The steps for a whole node; none where it is there; refusals name what is in the way."""
    found = inventory(build_gpu(0), build_gpu(1))
    assert plan_target(found, Checkpoint(), ("spx_nps1", None)) == ()
    assert plan_target(found, Checkpoint(), ("cpx_nps1", None)) == (
        SetComputeMode("0000:05:00.0", Mode("CPX", "NPS1")),
    )
    assert plan_target(found, Checkpoint(), ("cpx_nps4", "cpx_nps4")) == (
        SetMemoryMode("0000:05:00.0", "NPS4"),
        ReloadDriver(("0000:05:00.0", "0000:06:00.0"), "NPS4"),
        SetComputeMode("0000:05:00.0", CPX),
        SetComputeMode("0000:06:00.0", CPX),
    )
    with pytest.raises(InvalidObject, match="only be changed for all GPUs"):
        plan_target(found, Checkpoint(), ("cpx_nps4", None))
    with pytest.raises(InvalidObject, match="has no mode tpx_nps1"):
        plan_target(found, Checkpoint(), ("tpx_nps1", None))
    with pytest.raises(InvalidObject, match="for 1 GPUs; the node has 2"):
        plan_target(found, Checkpoint(), ("cpx_nps4",))
    node = prepared_node()
    with pytest.raises(Busy, match="default/claim holds gpu-0000-05-00-0-cpx-nps4"):
        plan_target(node.inventory, node.checkpoint, ("spx_nps1", "spx_nps1"))
    assert plan_target(replace(node.inventory), node.checkpoint, (None, "qpx_nps4"))


def test_a_target_waits_while_a_gpu_cannot_be_read() -> None:
    """GPUs are meant by their index, which is not known of the rest when one is in the middle of a change."""
    found = replace(inventory(build_gpu(0)), unreadable=("GPU 0000:06:00.0 changes while it is read",))
    with pytest.raises(Retryable, match=r"0000:06:00\.0 changes"):
        plan_target(found, Checkpoint(), ("cpx_nps4", "cpx_nps4"))


def test_a_node_without_amd_hardware_does_not_import_what_serves_it() -> None:
    """The node program's start imports neither the driver nor AMD's library."""
    program = "import sys, kubeletplugin.__main__; print(sorted(name for name in sys.modules if 'amd' in name))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
