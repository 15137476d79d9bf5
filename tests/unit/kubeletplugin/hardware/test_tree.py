"""What the driver has put on a node beside its libraries is found, and described by where containers look for it."""

from pathlib import Path

import pytest

from kubeletplugin.hardware.imex import read_imex_nodes
from kubeletplugin.hardware.tree import DriverRoot, read_driver_tree
from kubeletplugin.model.cdi import LATER_HOOKS, DriverTree

VERSION = "580.159.04"
HOOK = "/usr/bin/nvidia-cdi-hook"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A driver root with nodes of its own."""
    put(tmp_path, "dev/nvidiactl")
    return tmp_path


def put(root: Path, path: str, content: str = "") -> None:
    file = root / path.lstrip("/")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content)


def link(root: Path, path: str, target: str) -> None:
    file = root / path.lstrip("/")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.symlink_to(target)


def read(root: Path, host: str = "/run/nvidia/driver", hook: str = "") -> DriverTree:
    return read_driver_tree(DriverRoot(host, root, hook), VERSION)


def test_files_that_name_the_driver_are_given_where_their_readers_look(root: Path) -> None:
    put(root, "etc/OpenCL/vendors/nvidia.icd")
    put(root, "etc/OpenCL/vendors/other.icd")
    put(root, "usr/share/vulkan/icd.d/nvidia_icd.x86_64.json")
    put(root, "usr/share/glvnd/egl_vendor.d/10_nvidia.json")
    put(root, "usr/share/nvidia/nvoptix.bin")
    assert read(root).configs == {
        "/etc/OpenCL/vendors/nvidia.icd": "/etc/OpenCL/vendors/nvidia.icd",
        "/etc/vulkan/icd.d/nvidia_icd.x86_64.json": "/usr/share/vulkan/icd.d/nvidia_icd.x86_64.json",
        "/usr/share/glvnd/egl_vendor.d/10_nvidia.json": "/usr/share/glvnd/egl_vendor.d/10_nvidia.json",
        "/usr/share/nvidia/nvoptix.bin": "/usr/share/nvidia/nvoptix.bin",
    }


def test_links_to_such_files_are_followed_below_the_root(root: Path) -> None:
    put(root, "usr/lib/nvidia/current/nvidia_icd.json")
    link(root, "etc/vulkan/icd.d/nvidia_icd.json", "/usr/lib/nvidia/current/nvidia_icd.json")
    link(root, "etc/OpenCL/vendors/nvidia.icd", "/gone")
    assert read(root).configs == {"/etc/vulkan/icd.d/nvidia_icd.json": "/usr/lib/nvidia/current/nvidia_icd.json"}


def test_a_gpus_display_nodes_are_those_that_the_kernel_names_for_it(root: Path) -> None:
    first, second = "0000:18:00.0", "0000:2a:00.0"
    for bus_id in (first, second):
        put(root, f"sys/devices/pci0000:00/{bus_id}/vendor", "0x10de")
        for folder in ("sys/bus/pci/devices", "sys/bus/pci/drivers/nvidia"):
            link(root, f"{folder}/{bus_id}", f"{root}/sys/devices/pci0000:00/{bus_id}")
    for name in ("card1", "renderD128"):
        put(root, f"sys/devices/pci0000:00/{first}/drm/{name}/dev")
        link(root, f"dev/dri/{name}", "/dev/null")
    put(root, f"sys/devices/pci0000:00/{second}/drm/card2/dev")  # without a node
    nodes = read(root).display_nodes
    assert {bus_id: [node.host_path for node in each] for bus_id, each in nodes.items()} == {
        first: ["/run/nvidia/driver/dev/dri/card1", "/run/nvidia/driver/dev/dri/renderD128"]
    }
    assert [node.path for node in nodes[first]] == ["/dev/dri/card1", "/dev/dri/renderD128"]


@pytest.mark.parametrize("program", [HOOK, f"{HOOK}.real"])
def test_a_hook_is_asked_for_what_it_has(root: Path, program: str) -> None:
    put(root, HOOK, "exec nvidia-cdi-hook.real")
    put(root, program, "...update-ldcache\0enable-cuda-compat\0...")
    assert (read(root).hook, read(root).later_hooks) == (f"/run/nvidia/driver{HOOK}", ("enable-cuda-compat",))
    put(root, program, "a newer one: disable-device-node-modification")
    assert read(root).later_hooks == ("disable-device-node-modification",)


def test_a_hook_outside_of_the_driver_root_is_taken_for_a_recent_one(root: Path) -> None:
    told = "/usr/local/nvidia/toolkit/nvidia-cdi-hook"
    assert read(root, hook=told).later_hooks == LATER_HOOKS
    assert read(root, host="/", hook=told).later_hooks == ()  # it is not there yet
    put(root, told, " ".join(LATER_HOOKS))
    assert read(root, host="/", hook=told).later_hooks == LATER_HOOKS


def test_programs_of_imex_are_found_wherever_the_drivers_other_programs_are(root: Path) -> None:
    put(root, "usr/local/nvidia/bin/nvidia-smi")
    put(root, "usr/local/nvidia/bin/nvidia-imex")
    put(root, "usr/bin/nvidia-imex-ctl")
    programs = read_imex_nodes(DriverRoot("/run/nvidia/driver", root)).programs
    assert programs == ("/usr/local/nvidia/bin/nvidia-imex", "/usr/bin/nvidia-imex-ctl")
    assert read(root).tools == ("/usr/local/nvidia/bin/nvidia-smi",)
