"""The node around the library: /proc, /dev, /sys, nvidia-smi, what a workload sees, installing and refusing."""

import ctypes
import os
import shutil
import stat
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from nvml_node import LIBRARY, Node, bound, create_whole, make_node, profiles_of
from simulator.build import build
from simulator.compile import DRIVER_VERSION
from simulator.models import parse_spec
from simulator.tree import LIBRARIES

H100 = tuple[Node, Any, Any]
ROOT = os.geteuid() == 0
AS_ROOT = [] if ROOT else ["unshare", "--user", "--map-root-user"]


def capability(node: Node, name: str) -> int:
    text = (node.root / "proc/driver/nvidia/capabilities" / name / "access").read_text()
    return int(dict(line.split(": ") for line in text.splitlines())["DeviceFileMinor"])


def test_instances_come_and_go_in_proc_and_dev_with_the_minors_of_the_table(h100: H100) -> None:
    node, nvml, device = h100
    table = (node.root / "proc/driver/nvidia-caps/mig-minors").read_text().splitlines()
    minors = dict(line.rsplit(" ", 1) for line in table)
    instance, compute = create_whole(device, profiles_of(device)["2g.20gb"], 2)
    for name in ("gpu0/mig/gi4", "gpu0/mig/gi4/ci0"):
        minor = capability(node, name)
        assert minors[name.replace("/mig", "", 1) + "/access"] == str(minor)
        assert (node.root / f"dev/nvidia-caps/nvidia-cap{minor}").exists()
    nvml.nvmlComputeInstanceDestroy(compute)
    nvml.nvmlGpuInstanceDestroy(instance)
    assert node.capabilities() == set()
    assert node.capability_nodes() == set()


def test_device_nodes_have_the_numbers_that_proc_devices_names(h100: H100) -> None:
    node, _, device = h100
    create_whole(device, profiles_of(device)["1g.10gb"], 0)
    lines = (node.root / "proc/devices").read_text().splitlines()
    majors = {parts[1]: int(parts[0]) for line in lines if len(parts := line.split()) == 2 and parts[0].isdigit()}
    expected = {
        "nvidiactl": ("nvidiactl", 255),
        "nvidia1": ("nvidia", 1),
        "nvidia-uvm-tools": ("nvidia-uvm", 1),
    }
    expected[f"nvidia-caps/nvidia-cap{capability(node, 'gpu0/mig/gi7')}"] = ("nvidia-caps", 66)
    for name, (driver, minor) in expected.items():
        found = (node.root / "dev" / name).stat()
        assert stat.S_ISCHR(found.st_mode) == ROOT  # who may not make device nodes gets plain files
        assert not ROOT or (os.major(found.st_rdev), os.minor(found.st_rdev)) == (majors[driver], minor)


def test_sysfs_leads_from_each_gpu_to_its_pcie_root_and_numa_node(simulate: Callable[..., Node]) -> None:
    node = simulate("a100-40x2+h100x14")
    with bound(node.library) as nvml:
        for index in range(nvml.nvmlDeviceGetCount()):
            bus_id = nvml.nvmlDeviceGetPciInfo(nvml.nvmlDeviceGetHandleByIndex(index)).busId[4:].lower()
            device = node.root / "sys/bus/pci/devices" / bus_id
            assert device.is_symlink()
            assert device.resolve().parts[-3].startswith(f"pci{bus_id[:4]}:")
            assert (device / "numa_node").read_text().strip() in ("0", "1")
            assert (node.root / "proc/driver/nvidia/gpus" / bus_id / "information").exists()


def test_sysfs_describes_each_gpu_as_the_kernel_does(simulate: Callable[..., Node]) -> None:
    """Readers of the PCI bus want addresses and configuration space: NVIDIA's feature discovery reads both."""
    node = simulate("a100-40x2+h100x2")
    taken: list[range] = []
    for device in sorted((node.root / "sys/bus/pci/devices").iterdir()):
        ids = [int((device / name).read_text(), 16) for name in ("vendor", "device", "class")]
        vendor, product, revision_and_class = struct.unpack_from("<HH4xI", (device / "config").read_bytes())
        assert [vendor, product, revision_and_class >> 8] == ids
        for line in (device / "resource").read_text().splitlines():
            start, end, flags = (int(word, 16) for word in line.split())
            if flags:
                assert all(end < other.start or other.stop <= start for other in taken)
                taken.append(range(start, end + 1))
    assert len(taken) == 4 * 3


def test_nvidia_smi_lists_what_the_library_has(h100: H100) -> None:
    node, nvml, device = h100
    create_whole(device, profiles_of(device)["3g.40gb"], 4)
    listed = node.smi("-L").stdout.splitlines()
    assert [line.split(":")[0] for line in listed] == ["GPU 0", "  MIG 3g.40gb         Device  0", "GPU 1"]
    assert nvml.nvmlDeviceGetUUID(device) in listed[0]
    assert node.smi("--version").returncode == 0


def test_nvidia_smi_sets_what_drivers_set_with_it(h100: H100) -> None:
    node, nvml, _ = h100
    uuid = nvml.nvmlDeviceGetUUID(nvml.nvmlDeviceGetHandleByIndex(1))
    assert node.smi("compute-policy", "-i", uuid, "--set-timeslice", "2").returncode == 0
    assert node.smi("-i", uuid, "-c", "EXCLUSIVE_PROCESS").returncode == 0
    with node.state() as state:
        assert [gpu.now.timeslice for gpu in state.gpus[:2]] == [0, 2]
    assert nvml.nvmlDeviceGetComputeMode(nvml.nvmlDeviceGetHandleByIndex(1)) == 3


def make_container(node: Node, folder: Path, devices: list[str]) -> Path:
    """A file system as a claiming container has it: driver files at their usual places, some device nodes."""
    libraries = folder / LIBRARIES
    libraries.mkdir(parents=True)
    for name in (LIBRARY, f"libnvidia-simulator.so.{DRIVER_VERSION}"):
        shutil.copy(node.root / LIBRARIES / name, libraries / name)
    (folder / "usr/bin").mkdir()
    shutil.copy(node.root / "usr/bin/nvidia-smi", folder / "usr/bin")
    (folder / "dev/nvidia-caps").mkdir(parents=True)
    for name in devices:
        (folder / "dev" / name).touch()
    return folder


def in_container(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [*AS_ROOT, "chroot", str(folder), "/usr/bin/nvidia-smi", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_container_sees_the_gpus_whose_nodes_it_has(h100: H100, tmp_path: Path) -> None:
    node, nvml, _ = h100
    container = make_container(node, tmp_path / "container", ["nvidiactl", "nvidia1"])
    (line,) = in_container(container, "-L").stdout.splitlines()
    assert nvml.nvmlDeviceGetUUID(nvml.nvmlDeviceGetHandleByIndex(1)) in line
    assert line.startswith("GPU 0:")


def test_a_container_sees_the_mig_devices_whose_capability_nodes_it_has_and_changes_nothing(
    h100: H100, tmp_path: Path
) -> None:
    node, nvml, device = h100
    info = profiles_of(device)["1g.10gb"]
    computes = [create_whole(device, info, start)[1] for start in (0, 1, 2)]
    minors = [capability(node, name) for name in ("gpu0/mig/gi8", "gpu0/mig/gi8/ci0")]
    nodes = [f"nvidia-caps/nvidia-cap{minor}" for minor in minors]
    container = make_container(node, tmp_path / "container", ["nvidiactl", "nvidia0", *nodes])
    _, mig = in_container(container, "-L").stdout.splitlines()
    assert nvml.nvmlDeviceGetUUID(nvml.nvmlComputeInstanceGetInfo_v2(computes[1]).device) in mig
    assert in_container(container, "mig", "-dci").returncode == nvml.NVML_ERROR_NO_PERMISSION
    assert in_container(container, "-i", "0", "-pm", "1").returncode == nvml.NVML_ERROR_NO_PERMISSION


def test_a_container_without_devices_has_no_driver(h100: H100, tmp_path: Path) -> None:
    node, nvml, _ = h100
    container = make_container(node, tmp_path / "container", [])
    assert in_container(container, "-L").returncode == nvml.NVML_ERROR_DRIVER_NOT_LOADED


def test_a_privileged_client_changes_hardware_through_a_read_only_mount(h100: H100, tmp_path: Path) -> None:
    node, _, _ = h100
    view = tmp_path / "driver-root"
    view.mkdir()
    script = f"mount --bind {node.root} {view} && mount -o remount,ro,bind {view} && "
    script += f"! touch {view}/x && {view}/usr/bin/nvidia-smi mig -i 0 -cgi 19:3 -C"
    done = subprocess.run(
        ["unshare", *AS_ROOT[1:], "--mount", "sh", "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr + done.stdout
    assert node.capabilities() == {"gpu0/mig/gi10", "gpu0/mig/gi10/ci0"}


def test_installing_again_keeps_the_instances(h100: H100) -> None:
    node, nvml, device = h100
    create_whole(device, profiles_of(device)["2g.20gb"])
    before = node.instances()
    make_node(node.root, "h100x2")
    assert node.instances() == before != set()
    assert nvml.nvmlDeviceGetMigMode(device) == [1, 1]


def test_installing_another_profile_over_one_is_refused_unless_forced(simulate: Callable[..., Node]) -> None:
    node = simulate("h100x1")
    with pytest.raises(ValueError, match="--force"):
        make_node(node.root, "a30")
    make_node(node.root, "a30", "--force")
    with bound(node.library) as nvml:
        assert nvml.nvmlDeviceGetCount() == 4


def test_replacing_a_node_leaves_what_others_put_into_the_same_root(simulate: Callable[..., Node]) -> None:
    node = simulate("h100x2")
    other = node.root / "sys/class/kfd"
    other.mkdir(parents=True)
    make_node(node.root, "a30x1", "--force")
    assert other.is_dir()
    assert not (node.root / "dev/nvidia1").exists()
    assert len(list((node.root / "sys/bus/pci/devices").iterdir())) == 1


def test_a_real_library_is_never_replaced(tmp_path: Path) -> None:
    library = tmp_path / LIBRARIES / f"libnvidia-ml.so.{DRIVER_VERSION}"
    library.parent.mkdir(parents=True)
    library.write_bytes(b"\x7fELF real")
    with pytest.raises(ValueError, match="real NVIDIA library"):
        make_node(tmp_path, "h100x1")
    assert library.read_bytes() == b"\x7fELF real"


def test_a_node_without_gpus_gets_nothing(simulate: Callable[..., Node]) -> None:
    assert not simulate("none").root.exists()


@pytest.mark.parametrize("spec", ["h1000", "h100x0", "h100x33", "h100+", "gb200:clique=a", "gb200:rack=1"])
def test_a_profile_that_does_not_exist_is_refused_by_name(spec: str) -> None:
    with pytest.raises(ValueError, match="profile"):
        parse_spec(spec)


def test_plain_python_installs_prebuilt_artefacts(tmp_path: Path) -> None:
    sources = Path(__file__).parents[2] / "hack/lib"
    command = [
        sys.executable,
        "-S",
        "-m",
        "simulator",
        "install",
        "--root",
        str(tmp_path / "driver"),
        "--profile",
        "h100x1",
    ]
    command += ["--artefacts", str(build())]
    subprocess.run(command, check=True, env={"PYTHONPATH": str(sources), "PATH": ""}, capture_output=True)
    assert Node(tmp_path / "driver").smi("-L").stdout.startswith("GPU 0: NVIDIA H100")


def test_the_library_has_the_name_that_loaders_look_for(simulate: Callable[..., Node]) -> None:
    library = ctypes.CDLL(str(simulate("h100x1").library))
    for name in ("nvmlInit", "nvmlInit_v2", "nvmlDeviceGetCount", "nvmlDeviceGetHandleByIndex_v2", "nvmlEventSetWait"):
        assert getattr(library, name)
    assert not hasattr(library, "nvmlDeviceGetGpuFabricInfo_v4")
