"""A CDI spec gives a container the devices of its claim, the driver beside them, and nothing else."""

import json
import re
from dataclasses import replace
from typing import Any

import pytest

from api.errors import HardwareError
from kubeletplugin.model.cdi import (
    LATER_HOOKS,
    DeviceNode,
    DriverFile,
    DriverTree,
    build_cdi_spec,
    cdi_file_name,
    check_libraries,
    encode_cdi_spec,
    parse_character_majors,
    parse_mig_minors,
    read_record,
)
from tests.scenarios.hardware import Hardware, h100, inventory
from tests.scenarios.node import TREE, Node, claim, driver_tree

SLICE = "gpu-0-mig-1g10gb-19-5"


def spec_of(*devices: str, tree: DriverTree = TREE, admin: bool = False) -> dict[str, Any]:
    node = Node(Hardware(inventory(h100(0), h100(1))))
    record = node.prepare(claim("c1", *devices, admin=admin))
    return build_cdi_spec(record, node.hardware.inventory, tree)


def paths(edits: dict[str, Any]) -> list[str]:
    return [node["path"] for node in edits.get("deviceNodes", ())]


def test_a_full_gpu_is_its_node() -> None:
    spec = spec_of("gpu-1")
    assert (spec["cdiVersion"], spec["kind"]) == ("0.6.0", "k8s.gpu.nvidia.com/claim")
    (device,) = spec["devices"]
    assert device["name"] == "c1-gpu-1"
    assert device["containerEdits"]["deviceNodes"] == [
        {
            "path": "/dev/nvidia1",
            "hostPath": "/run/nvidia/driver/dev/nvidia1",
            "type": "c",
            "major": 195,
            "minor": 1,
            "permissions": "rw",
        }
    ]


def test_a_device_that_an_admin_has_twice_is_described_once() -> None:
    assert [device["name"] for device in spec_of("gpu-1", "gpu-1", admin=True)["devices"]] == ["c1-gpu-1"]


def test_trees_that_differ_in_anything_say_so() -> None:
    assert TREE.says_the_same_as(driver_tree())
    assert not TREE.says_the_same_as(replace(TREE, control_nodes=TREE.control_nodes[:1]))
    assert not TREE.says_the_same_as(replace(TREE, hook="/usr/bin/nvidia-cdi-hook"))


def test_the_file_holds_the_spec() -> None:
    node = Node(Hardware(inventory(h100(0), h100(1))))
    record, found = node.prepare(claim("c1", "gpu-1", SLICE)), node.hardware.inventory
    assert json.loads(encode_cdi_spec(record, found, TREE)) == build_cdi_spec(record, found, TREE)


def test_a_partition_is_its_parents_node_and_the_two_capabilities() -> None:
    (device,) = spec_of(SLICE)["devices"]
    nodes = device["containerEdits"]["deviceNodes"]
    assert [node["path"] for node in nodes] == [
        "/dev/nvidia0",
        "/dev/nvidia-caps/nvidia-cap12",
        "/dev/nvidia-caps/nvidia-cap13",
    ]
    assert [(node["major"], node["minor"]) for node in nodes[1:]] == [(508, 12), (508, 13)]
    assert nodes[1]["hostPath"] == "/run/nvidia/driver/dev/nvidia-caps/nvidia-cap12"


def test_a_container_gets_no_device_that_it_did_not_claim() -> None:
    spec = spec_of("gpu-1")
    everything = {*paths(spec["containerEdits"]), *(p for d in spec["devices"] for p in paths(d["containerEdits"]))}
    assert everything == {"/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia1"}
    assert spec["containerEdits"]["env"] == ["NVIDIA_VISIBLE_DEVICES=void"]


def test_each_device_of_a_claim_has_a_name_of_its_own_that_the_runtime_accepts() -> None:
    spec = spec_of(SLICE, "gpu-0-mig-1g10gb-19-4", "gpu-1")
    names = [device["name"] for device in spec["devices"]]
    assert names == [f"c1-{SLICE}", "c1-gpu-0-mig-1g10gb-19-4", "c1-gpu-1"]
    assert all(re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9_.:-]*[A-Za-z0-9])?", name) for name in names)


def test_without_hooks_libraries_are_mounted_under_their_links_names_too() -> None:
    edits = spec_of("gpu-0")["containerEdits"]
    folder = "/usr/lib/x86_64-linux-gnu"
    assert {m["containerPath"]: m["hostPath"] for m in edits["mounts"]} == {
        f"{folder}/libcuda.so.570.158.01": f"/run/nvidia/driver{folder}/libcuda.so.570.158.01",
        f"{folder}/libcuda.so": f"/run/nvidia/driver{folder}/libcuda.so.570.158.01",
        f"{folder}/libcuda.so.1": f"/run/nvidia/driver{folder}/libcuda.so.570.158.01",
        "/usr/bin/nvidia-smi": "/run/nvidia/driver/usr/bin/nvidia-smi",
    }
    assert all("ro" in m["options"] for m in edits["mounts"])
    assert "hooks" not in edits


def test_without_hooks_libraries_are_where_the_loader_of_any_image_looks() -> None:
    debian, red_hat = "/usr/lib/x86_64-linux-gnu", "/usr/lib64"
    library = DriverFile("/lib64/libcuda.so.580.159.04", ("/lib64/libcuda.so.1",))
    vdpau = DriverFile("/lib64/vdpau/libvdpau_nvidia.so.580.159.04")
    tree = replace(TREE, libraries=(library, vdpau), tools=("/bin/nvidia-smi",), loader_directories=(debian, red_hat))
    mounts = spec_of("gpu-0", tree=tree)["containerEdits"]["mounts"]
    cuda = "/run/nvidia/driver/lib64/libcuda.so.580.159.04"
    assert [(mount["containerPath"], mount["hostPath"]) for mount in mounts] == [
        (f"{red_hat}/libcuda.so.580.159.04", cuda),
        (f"{red_hat}/libcuda.so.1", cuda),
        (f"{debian}/libcuda.so.580.159.04", cuda),
        (f"{debian}/libcuda.so.1", cuda),
        (f"{red_hat}/vdpau/libvdpau_nvidia.so.580.159.04", f"/run/nvidia/driver{vdpau.path}"),
        ("/usr/bin/nvidia-smi", "/run/nvidia/driver/bin/nvidia-smi"),
    ]


@pytest.mark.parametrize(
    ("hook", "start"),
    [("/usr/bin/nvidia-cdi-hook", ["nvidia-cdi-hook"]), ("/usr/bin/nvidia-ctk", ["nvidia-ctk", "hook"])],
)
def test_hooks_make_the_links_where_the_host_has_them(hook: str, start: list[str]) -> None:
    edits = spec_of("gpu-0", tree=replace(TREE, hook=hook))["containerEdits"]
    folder = "/usr/lib/x86_64-linux-gnu"
    links = [
        f"--link=libcuda.so.570.158.01::{folder}/libcuda.so",
        f"--link=libcuda.so.570.158.01::{folder}/libcuda.so.1",
    ]
    assert [(h["hookName"], h["path"], h["args"]) for h in edits["hooks"]] == [
        ("createContainer", hook, [*start, "create-symlinks", *links]),
        ("createContainer", hook, [*start, "update-ldcache", f"--folder={folder}"]),
    ]
    assert [m["containerPath"] for m in edits["mounts"]] == [f"{folder}/libcuda.so.570.158.01", "/usr/bin/nvidia-smi"]


def test_hooks_that_came_later_are_asked_for_where_the_program_has_them() -> None:
    tree = replace(TREE, hook="/usr/bin/nvidia-cdi-hook", driver_version="570.158.01")

    def calls(*later: str) -> list[list[str]]:
        edits = spec_of("gpu-0", tree=replace(tree, later_hooks=later))["containerEdits"]
        return [hook["args"][1:] for hook in edits["hooks"]]

    assert [call[0] for call in calls()] == ["create-symlinks", "update-ldcache"]
    assert calls(*LATER_HOOKS)[1:] == [
        ["enable-cuda-compat", "--host-driver-version=570.158.01"],
        ["update-ldcache", "--folder=/usr/lib/x86_64-linux-gnu"],
        ["disable-device-node-modification"],
        ["update-application-profile"],
    ]


def test_files_that_name_the_driver_are_mounted_where_their_readers_look() -> None:
    icd = "/etc/vulkan/icd.d/nvidia_icd.json"
    edits = spec_of("gpu-0", tree=replace(TREE, configs={icd: "/usr/share/vulkan/icd.d/nvidia_icd.json"}))
    mounts = {mount["containerPath"]: mount["hostPath"] for mount in edits["containerEdits"]["mounts"]}
    assert mounts[icd] == "/run/nvidia/driver/usr/share/vulkan/icd.d/nvidia_icd.json"


def test_display_nodes_belong_to_the_full_gpu_only() -> None:
    card = DeviceNode("/dev/dri/card1", "/run/nvidia/driver/dev/dri/card1", 226, 1)
    bus_ids = {gpu.minor: gpu.pci_bus_id for gpu in inventory(h100(0), h100(1)).gpus}
    tree = replace(TREE, display_nodes={bus_ids[0]: (card,)})
    assert paths(spec_of("gpu-0", tree=tree)["devices"][0]["containerEdits"]) == ["/dev/nvidia0", "/dev/dri/card1"]
    for other in ("gpu-1", SLICE):
        (device,) = spec_of(other, tree=tree)["devices"]
        assert card.path not in paths(device["containerEdits"])


def test_links_in_other_folders_than_the_library_lead_to_where_it_lies() -> None:
    library = DriverFile("/usr/local/nvidia/lib64/libcuda.so.580.159.04", ("/usr/lib/libcuda.so.1",))
    tree = replace(TREE, libraries=(library,), tools=())
    (mount, other) = spec_of("gpu-0", tree=tree)["containerEdits"]["mounts"]
    assert mount["containerPath"] == library.path
    assert (other["containerPath"], other["hostPath"]) == ("/usr/lib/libcuda.so.1", mount["hostPath"])
    hooks = spec_of("gpu-0", tree=replace(tree, hook="/usr/bin/nvidia-cdi-hook"))["containerEdits"]["hooks"]
    assert [hook["args"][1:] for hook in hooks] == [
        ["create-symlinks", "--link=../local/nvidia/lib64/libcuda.so.580.159.04::/usr/lib/libcuda.so.1"],
        ["update-ldcache", "--folder=/usr/local/nvidia/lib64"],
    ]


def test_without_hooks_what_is_found_by_its_path_stays_there() -> None:
    folder = "/usr/lib/x86_64-linux-gnu"
    allocator = DriverFile(f"{folder}/libnvidia-allocator.so.580.159.04", (f"{folder}/gbm/nvidia-drm_gbm.so",))
    tree = replace(TREE, libraries=(allocator,), tools=(), loader_directories=(folder, "/usr/lib64"))
    assert [mount["containerPath"] for mount in spec_of("gpu-0", tree=tree)["containerEdits"]["mounts"]] == [
        allocator.path,
        f"{folder}/gbm/nvidia-drm_gbm.so",
        "/usr/lib64/libnvidia-allocator.so.580.159.04",
    ]


def test_a_driver_root_without_cuda_is_named_with_the_directories_that_were_searched() -> None:
    assert check_libraries(TREE, "570.158.01") is None
    nvml = DriverFile("/usr/lib64/libnvidia-ml.so.570.158.01")
    tree = replace(TREE, libraries=(nvml,), searched=("/usr/lib64", "/usr/lib"))
    lack = check_libraries(tree, "570.158.01")
    assert lack
    assert "driver root /run/nvidia/driver has no libcuda.so.570.158.01 in any of /usr/lib64, /usr/lib:" in lack
    assert "get 1 of the driver's libraries" in lack


def test_with_the_driver_on_the_host_paths_are_the_hosts() -> None:
    edits = spec_of("gpu-0", tree=replace(TREE, root="/", dev_root="/"))["containerEdits"]
    assert edits["mounts"][0]["hostPath"] == "/usr/lib/x86_64-linux-gnu/libcuda.so.570.158.01"


def test_admin_access_to_an_unused_placement_shows_no_device() -> None:
    spec = spec_of("gpu-1", SLICE, admin=True)
    assert [device["name"] for device in spec["devices"]] == ["c1-gpu-1"]


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        (replace(TREE, capability_minors={}), "the driver lists no MIG capability gpu0/gi1/access in mig-minors"),
        (replace(TREE, capabilities_major=None), "the driver lists no MIG capability"),
        (replace(TREE, gpu_nodes={}), r"has no device node \(/run/nvidia/driver/dev/nvidia0\)"),
    ],
)
def test_a_missing_node_is_named(tree: DriverTree, message: str) -> None:
    with pytest.raises(HardwareError, match=message):
        spec_of(SLICE, tree=tree)


def test_a_spec_carries_its_claims_record() -> None:
    node = Node(Hardware(inventory(h100(0))))
    record = node.prepare(claim("c1", SLICE))
    assert read_record(json.loads(json.dumps(build_cdi_spec(record, node.hardware.inventory, TREE)))) == record


def test_the_same_record_gives_the_same_spec() -> None:
    assert spec_of(SLICE, "gpu-1") == spec_of(SLICE, "gpu-1")


def test_files_are_named_after_vendor_and_claim() -> None:
    assert cdi_file_name("k8s.gpu.nvidia.com", "u1") == "k8s.gpu.nvidia.com-claim_u1.json"


def test_the_drivers_tables_are_read() -> None:
    assert parse_mig_minors("config 1\nmonitor 2\ngpu0/gi0/access 3\ngpu0/gi0/ci0/access 4\n\n") == {
        "config": 1,
        "monitor": 2,
        "gpu0/gi0/access": 3,
        "gpu0/gi0/ci0/access": 4,
    }
    devices = "Character devices:\n  1 mem\n195 nvidia-frontend\n508 nvidia-caps\n\nBlock devices:\n  8 sd\n"
    assert parse_character_majors(devices) == {"mem": 1, "nvidia-frontend": 195, "nvidia-caps": 508}
