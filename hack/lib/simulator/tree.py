"""The driver root of a simulated node: libraries, tools, /proc, /dev and /sys as NVIDIA's driver container has them."""

import os
import shutil
import stat
import struct
from pathlib import Path

from simulator.build import LIBRARY, MOUNT, STAND_INS, STATE_STUB, TOOL
from simulator.files import remove, write_bytes
from simulator.imex.build import PROGRAMS as IMEX_PROGRAMS
from simulator.layout import Fixed, State

LIBRARIES = Path("usr/lib/x86_64-linux-gnu")
MARKER = Path(".nvidia-simulator")
HIDDEN = Path("run/nvidia-simulator/hidden")
"""Where the library keeps what instances that are gone showed (`native/tree.c`)."""
SHOWN_VERSION = Path("/proc/driver/nvidia/version")
NVIDIA_MAJOR = 195  # Documentation/admin-guide/devices.txt
CONTROL_MINOR = 255
MIG_CONFIG_MINOR, MIG_MONITOR_MINOR, FIRST_GPU_MINOR = 1, 2, 3
MIG_CONFIG_MODE, MIG_MONITOR_MODE = 0o400, 0o444
MINORS_PER_GPU, MINORS_PER_INSTANCE, CAPABILITY_GPUS = 135, 9, 32
IMEX_MANAGEMENT_MINOR = FIRST_GPU_MINOR + MINORS_PER_GPU * CAPABILITY_GPUS
"""Assumption: the table of the driver puts `fabric-imex-mgmt` behind the last GPU."""
PCI_CLASS = 0x030200  # 3D controller
MEMORY_REGION, WIDE_REGION = 0x40200, 0x14220C  # include/linux/ioport.h: memory; with prefetching and 64 bits
DYNAMIC_MAJORS = [*range(254, 233, -1), *range(511, 383, -1)]  # Documentation/admin-guide/devices.txt
DYNAMIC_DEVICES = ("nvidia-caps-imex-channels", "nvidia-caps", "nvidia-nvlink", "nvidia-nvswitch", "nvidia-uvm")
MODULE_PARAMETERS = {
    "ResmanDebugLevel": 4294967295,
    "ModifyDeviceFiles": 0,
    "DeviceFileUID": 0,
    "DeviceFileGID": 0,
    "DeviceFileMode": 438,
    "ImexChannelCount": 2048,
    "CreateImexChannel0": 0,
}
"""Of the driver's own list those that clients read, in its order. Nobody makes device files of their own accord: the
library does not, and hooks that forbid it to containers would look for this file in a container's /proc in vain."""


def bus_id(fixed: Fixed) -> str:
    """As in sysfs: `0000:18:00.0`."""
    return f"{fixed.pci_domain:04x}:{fixed.pci_bus:02x}:{fixed.pci_device:02x}.0"


def read_devices() -> tuple[list[tuple[int, str]], list[tuple[int, str]]]:
    """Character and block devices of this machine, as (major, name); simulated ones, where they are shown, left out."""
    characters, _, blocks = Path("/proc/devices").read_text().partition("Block devices:")
    return parse_devices(characters), parse_devices(blocks)


def parse_devices(section: str) -> list[tuple[int, str]]:
    pairs = [line.split() for line in section.splitlines()[1:] if line.strip()]
    return [(int(major), name) for major, name in pairs if not name.startswith("nvidia") or not is_simulated()]


def is_simulated() -> bool:
    """A simulated driver lies over this machine's /proc (`native/mount.c`)."""
    return SHOWN_VERSION.exists() and "(simulated)" in SHOWN_VERSION.read_text()


def choose_majors() -> dict[str, int]:
    """Device numbers that no real driver of this machine has, so that a simulated node never opens a real device."""
    taken = {major for major, _ in read_devices()[0]}
    free = [major for major in DYNAMIC_MAJORS if major not in taken]
    if NVIDIA_MAJOR in taken:
        raise ValueError("this machine has a real NVIDIA driver (/proc/devices lists major 195)")
    return {"nvidia": NVIDIA_MAJOR, "nvidiactl": NVIDIA_MAJOR, **dict(zip(DYNAMIC_DEVICES, free, strict=False))}


def write_text(path: Path, text: str, mode: int = 0o444) -> None:
    write_bytes(path, text.encode(), mode)


def remove_hardware(root: Path) -> None:
    """Takes what an earlier installation shows in /proc, /sys and /dev away, and nothing of other vendors."""
    (root / MARKER).unlink(missing_ok=True)
    for folder in ("proc/driver", HIDDEN):
        shutil.rmtree(root / folder, ignore_errors=True)
    for driver_link in (root / "sys/bus/pci/drivers/nvidia").glob("*"):
        shutil.rmtree(driver_link.resolve(), ignore_errors=True)
        (root / "sys/bus/pci/devices" / driver_link.name).unlink(missing_ok=True)
        driver_link.unlink()
    for node in (root / "dev").glob("nvidia*"):
        remove(node)


def write_libraries(root: Path, artefacts: Path, version: str) -> None:
    """The libraries, with the links that ldconfig would make, and the programs."""
    folder = root / LIBRARIES
    folder.mkdir(parents=True, exist_ok=True)
    for name, soname in {LIBRARY: "libnvidia-ml.so.1", **STAND_INS}.items():
        file = f"{name}.{version}"
        write_bytes(folder / file, (artefacts / name).read_bytes(), 0o755)
        if soname != file:
            link(folder / soname, file)
            link(folder / name, soname)
    for program in (TOOL, MOUNT, *IMEX_PROGRAMS):
        write_bytes(root / "usr/bin" / program, (artefacts / program).read_bytes(), 0o755)


def link(path: Path, target: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_symlink() or path.exists():
        path.unlink()
    path.symlink_to(target)


def write_proc(root: Path, state: State, majors: dict[str, int]) -> None:
    nvidia, caps = root / "proc/driver/nvidia", root / "proc/driver/nvidia-caps"
    version = state.driver_version.decode()
    characters, blocks = read_devices()
    characters += [(number, name) for name, number in majors.items()]
    sections = [("Character devices:", sorted(characters, key=lambda pair: pair[0])), ("\nBlock devices:", blocks)]
    lines = [line for title, pairs in sections for line in (title, *(f"{major:3} {name}" for major, name in pairs))]
    write_text(root / "proc/devices", "\n".join(lines) + "\n")
    banner = f"NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  {version}  Release Build  (simulated)"
    write_text(nvidia / "version", f"{banner}\nGCC version:  gcc version 12.2.0\n")
    write_text(nvidia / "params", "".join(f"{name}: {value}\n" for name, value in MODULE_PARAMETERS.items()))
    capabilities = nvidia / "capabilities"
    for name, minor, mode in (
        ("mig/config", MIG_CONFIG_MINOR, MIG_CONFIG_MODE),
        ("mig/monitor", MIG_MONITOR_MINOR, MIG_MONITOR_MODE),
        ("fabric-imex-mgmt", IMEX_MANAGEMENT_MINOR, 0o400),
    ):
        write_text(capabilities / name, f"DeviceFileMinor: {minor}\nDeviceFileMode: {mode}\nDeviceFileModify: 1\n")
    write_text(caps / "mig-minors", mig_minors())
    write_text(caps / "sys-minors", f"fabric-imex-mgmt {IMEX_MANAGEMENT_MINOR}\n")
    write_text(caps / "nvlink-minors", "fabric-mgmt 0\n")
    for gpu in state.gpus[: state.gpu_count]:
        (capabilities / f"gpu{gpu.fixed.minor}/mig").mkdir(parents=True, exist_ok=True)
        write_text(nvidia / "gpus" / bus_id(gpu.fixed) / "information", gpu_information(gpu.fixed))


def mig_minors() -> str:
    """The driver's fixed table: every capability that it could ever hand out, with its minor number."""
    lines = [f"config {MIG_CONFIG_MINOR}", f"monitor {MIG_MONITOR_MINOR}"]
    for gpu in range(CAPABILITY_GPUS):
        for instance in range(MINORS_PER_GPU // MINORS_PER_INSTANCE):
            minor = FIRST_GPU_MINOR + MINORS_PER_GPU * gpu + MINORS_PER_INSTANCE * instance
            lines.append(f"gpu{gpu}/gi{instance}/access {minor}")
            lines += [f"gpu{gpu}/gi{instance}/ci{ci}/access {minor + 1 + ci}" for ci in range(MINORS_PER_INSTANCE - 1)]
    return "\n".join(lines) + "\n"


def gpu_information(fixed: Fixed) -> str:
    fields = {
        "Model": fixed.name.decode(),
        "IRQ": str(64 + fixed.minor),
        "GPU UUID": fixed.uuid.decode(),
        "Video BIOS": fixed.vbios.decode(),
        "Bus Type": "PCIe",
        "DMA Size": "52 bits",
        "DMA Mask": "0xfffffffffffff",
        "Bus Location": bus_id(fixed),
        "Device Minor": str(fixed.minor),
        "GPU Excluded": "No",
    }
    return "".join(f"{name}: \t {value}\n" for name, value in fields.items())


def write_sys(root: Path, state: State) -> None:
    """PCI devices below a root of their own each, as links from /sys/bus/pci/devices."""
    for gpu in state.gpus[: state.gpu_count]:
        fixed, address = gpu.fixed, bus_id(gpu.fixed)
        bridge_bus = max(fixed.pci_bus - 1, 0)
        root_name = f"pci{fixed.pci_domain:04x}:{bridge_bus:02x}"
        device = Path(f"sys/devices/{root_name}/{fixed.pci_domain:04x}:{bridge_bus:02x}:01.0/{address}")
        attributes = {
            "vendor": "0x10de",
            "device": f"0x{fixed.pci_device_id >> 16:04x}",
            "subsystem_vendor": f"0x{fixed.pci_subsystem_id & 0xFFFF:04x}",
            "subsystem_device": f"0x{fixed.pci_subsystem_id >> 16:04x}",
            "class": f"0x{PCI_CLASS:06x}",
            "numa_node": str(fixed.numa_node),
            "local_cpulist": "0",
            "max_link_width": str(fixed.pcie_width),
            "resource": pci_resources(fixed),
        }
        for name, value in attributes.items():
            write_text(root / device / name, f"{value}\n")
        write_bytes(root / device / "config", pci_config(fixed), 0o644)
        link(root / device / "driver", "../../../../bus/pci/drivers/nvidia")
        show_device(root, fixed, present=True)


def pci_resources(fixed: Fixed) -> str:
    """A line `start end flags` for each region: registers, memory, another window of the driver's."""
    registers, window = 16 << 20, 32 << 20
    memory = (1 << 45) + 2 * fixed.minor * fixed.bar1_bytes
    regions = {
        0: (0x9000_0000 + fixed.minor * registers, registers, MEMORY_REGION),
        1: (memory, fixed.bar1_bytes, WIDE_REGION),
        3: (memory + fixed.bar1_bytes, window, WIDE_REGION),
    }
    spans = [regions.get(number, (0, 1, 0)) for number in range(13)]
    return "\n".join(f"0x{start:016x} 0x{start + size - 1:016x} 0x{flags:016x}" for start, size, flags in spans)


def pci_config(fixed: Fixed) -> bytes:
    """The standard part of the configuration space (PCI 3.0, 6.1), without capabilities."""
    config = bytearray(256)
    command = 0x0006  # memory, bus master
    vendor, device = fixed.pci_device_id & 0xFFFF, fixed.pci_device_id >> 16
    struct.pack_into("<HHHHI", config, 0, vendor, device, command, 0, PCI_CLASS << 8 | 0xA1)
    struct.pack_into("<I", config, 0x2C, fixed.pci_subsystem_id)
    return bytes(config)


def show_device(root: Path, fixed: Fixed, *, present: bool) -> None:
    """What the kernel lists on its buses; a device that is taken out is in neither list."""
    address = bus_id(fixed)
    (device,) = root.glob(f"sys/devices/*/*/{address}")
    for folder in ("sys/bus/pci/devices", "sys/bus/pci/drivers/nvidia"):
        if present:
            link(root / folder / address, os.path.relpath(device, root / folder))
        else:
            (root / folder / address).unlink(missing_ok=True)


def write_dev(root: Path, state: State, majors: dict[str, int]) -> bool:
    """Device nodes. False where this process may not make them: plain files then stand in."""
    dev = root / "dev"
    (dev / "nvidia-caps").mkdir(parents=True, exist_ok=True)
    (root / HIDDEN).mkdir(parents=True, exist_ok=True)
    nodes = {
        "nvidiactl": (NVIDIA_MAJOR, CONTROL_MINOR, 0o666),
        "nvidia-uvm": (majors["nvidia-uvm"], 0, 0o666),
        "nvidia-uvm-tools": (majors["nvidia-uvm"], 1, 0o666),
        f"nvidia-caps/nvidia-cap{MIG_CONFIG_MINOR}": (majors["nvidia-caps"], MIG_CONFIG_MINOR, MIG_CONFIG_MODE),
        f"nvidia-caps/nvidia-cap{MIG_MONITOR_MINOR}": (majors["nvidia-caps"], MIG_MONITOR_MINOR, MIG_MONITOR_MODE),
    }
    for gpu in state.gpus[: state.gpu_count]:
        nodes[f"nvidia{gpu.fixed.minor}"] = (NVIDIA_MAJOR, gpu.fixed.minor, 0o666)
    made = [make_node(dev / name, *numbers) for name, numbers in nodes.items()]
    return all(made)


def make_node(path: Path, major: int, minor: int, mode: int) -> bool:
    device = os.makedev(major, minor)
    if os.path.lexists(path):
        found = path.lstat()
        if stat.S_ISCHR(found.st_mode) and found.st_rdev == device:
            return True
        path.unlink()
    try:
        os.mknod(path, mode | stat.S_IFCHR, device)
        path.chmod(mode)
        return True
    except PermissionError:
        path.touch()
        return False


def state_path(root: Path, version: str) -> Path:
    return root / LIBRARIES / f"{STATE_STUB}.{version}"
