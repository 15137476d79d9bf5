"""The driver's files on a node: where its libraries, device nodes, /proc and /sys are, read into values.

The driver root is `/` for a driver installed on the host, `/run/nvidia/driver` for one in a container.
"""

import mmap
import os
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Final

from kubeletplugin.hardware.libraries import find_library, list_directories, read_libraries, resolve_below
from kubeletplugin.model.cdi import LATER_HOOKS, DeviceNode, DriverTree, parse_character_majors, parse_mig_minors

_TOOL_DIRECTORIES: Final = ("usr/bin", "usr/sbin", "opt/bin", "bin", "sbin", "usr/local/nvidia/bin")
_TOOLS: Final = (
    "nvidia-smi",
    "nvidia-debugdump",
    "nvidia-persistenced",
    "nvidia-cuda-mps-control",
    "nvidia-cuda-mps-server",
)
_HOOKS: Final = (
    "usr/bin/nvidia-cdi-hook",
    "usr/local/nvidia/toolkit/nvidia-cdi-hook",
    "usr/bin/nvidia-ctk",
    "usr/local/nvidia/toolkit/nvidia-ctk",
)
# Where the driver has them, and where containers get them: whoever reads them looks there.
_CONFIG_FOLDERS: Final = ("etc", "usr/local/share", "usr/share")
_CONFIGS: Final = (
    ("/etc", "OpenCL/vendors/nvidia*.icd"),
    ("/etc", "vulkan/icd.d/nvidia*.json"),
    ("/etc", "vulkan/implicit_layer.d/nvidia*.json"),
    ("/usr/share", "glvnd/egl_vendor.d/*nvidia*.json"),
    ("/usr/share", "egl/egl_external_platform.d/*nvidia*.json"),
    ("/usr/share", "nvidia/nvoptix.bin"),
)
_CONTROL_NODES: Final = ("nvidiactl", "nvidia-uvm", "nvidia-uvm-tools", "nvidia-modeset")
# PCI: NVIDIA's vendor id, and the base class of display controllers (3D ones among them).
_NVIDIA: Final = "0x10de"
_DISPLAY: Final = "0x03"
_GPU_NODE: Final = re.compile(r"nvidia(\d+)")
_PCIE_ROOT: Final = re.compile(r"pci[0-9a-f]{4}:[0-9a-f]{2}")


@dataclass(frozen=True, slots=True)
class DriverRoot:
    """The driver root as the host names it and as this process sees it."""

    host: str
    seen: Path
    hook: str = ""
    """nvidia-cdi-hook on the host, where it was told."""

    def find_library(self, name: str) -> Path | None:
        return find_library(self.seen, name)

    def find_tool(self, name: str) -> Path | None:
        path = _find_tool(self.seen, name)
        return self.seen / path if path else None

    def proc(self) -> Path:
        return self.seen / "proc" if (self.seen / "proc/driver/nvidia").is_dir() else Path("/proc")

    def sys(self) -> Path:
        return self.seen / "sys" if (self.seen / "sys/bus/pci/devices").is_dir() else Path("/sys")

    def has_own_devices(self) -> bool:
        return (self.seen / "dev/nvidiactl").exists()

    def has_gpus(self) -> bool:
        """Whether NVIDIA GPUs are here, be their driver loaded already or not."""
        return self.find_library("libnvidia-ml.so.1") is not None or any(
            _read_word(device / "vendor") == _NVIDIA and _read_word(device / "class").startswith(_DISPLAY)
            for device in (self.sys() / "bus/pci/devices").glob("*")
        )

    def bound_gpus(self) -> frozenset[str]:
        """PCI bus ids of what NVIDIA's kernel driver has: `0000:65:00.0`."""
        try:
            return frozenset(p.name for p in (self.sys() / "bus/pci/drivers/nvidia").iterdir() if ":" in p.name)
        except OSError:
            return frozenset()

    def numa_node(self, pci_bus_id: str) -> int | None:
        try:
            number = int((self.sys() / "bus/pci/devices" / pci_bus_id / "numa_node").read_text())
        except (OSError, ValueError):
            return None
        return number if number >= 0 else None

    def pcie_root(self, pci_bus_id: str) -> str | None:
        """`pci0000:64`: the root that the device's own path in sysfs leads through."""
        link = self.sys() / "bus/pci/devices" / pci_bus_id
        return next((part for part in Path(os.path.realpath(link)).parts if _PCIE_ROOT.fullmatch(part)), None)


def read_driver_tree(root: DriverRoot, driver_version: str) -> DriverTree:
    """Everything that CDI specs may name. Cheap: directory listings, two small files, once the hook."""
    own = root.has_own_devices()
    dev = root.seen / "dev" if own else Path("/dev")
    host_dev = _join(root.host, "dev") if own else "/dev"
    control = [node for name in _CONTROL_NODES if (node := _read_node(dev, host_dev, name))]
    gpus: dict[int, tuple[DeviceNode, ...]] = {}
    for name in sorted(path.name for path in dev.iterdir()):
        match = _GPU_NODE.fullmatch(name)
        node = _read_node(dev, host_dev, name) if match else None
        if match and node:
            gpus[int(match.group(1))] = (node,)
    proc = root.proc()
    searched = list_directories(root.seen)
    hook = _find_hook(root)
    return DriverTree(
        root=root.host,
        dev_root=root.host if own else "/",
        control_nodes=tuple(control),
        gpu_nodes=gpus,
        display_nodes=_read_display_nodes(root, dev, host_dev),
        capabilities_major=parse_character_majors(read_text(proc / "devices")).get("nvidia-caps"),
        capability_minors=parse_mig_minors(read_text(proc / "driver/nvidia-caps/mig-minors")),
        libraries=read_libraries(root.seen, searched, driver_version),
        searched=searched,
        tools=find_tools(root.seen, _TOOLS),
        configs=_find_configs(root.seen),
        hook=hook,
        later_hooks=_read_later_hooks(root, hook) if hook else (),
        driver_version=driver_version,
        loader_directories=(f"/usr/lib/{os.uname().machine}-linux-gnu", "/usr/lib64"),
    )


def _join(root: str, *parts: str) -> str:
    return str(PurePosixPath(root, *parts))


def read_text(path: Path) -> str:
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""  # a driver without MIG, or without IMEX, has no such file


def _read_node(dev: Path, host_dev: str, name: str) -> DeviceNode | None:
    try:
        status = (dev / name).stat()
    except OSError:
        return None
    if not stat.S_ISCHR(status.st_mode):
        return None
    return DeviceNode(f"/dev/{name}", _join(host_dev, name), os.major(status.st_rdev), os.minor(status.st_rdev))


def find_tools(seen: Path, names: Sequence[str]) -> tuple[str, ...]:
    """Paths below the driver root, absolute, of those that are there."""
    return tuple(f"/{path}" for name in names if (path := _find_tool(seen, name)))


def _find_tool(seen: Path, name: str) -> str | None:
    paths = (f"{directory}/{name}" for directory in _TOOL_DIRECTORIES)
    return next((path for path in paths if (seen / path).is_file()), None)


def _read_display_nodes(root: DriverRoot, dev: Path, host_dev: str) -> dict[str, tuple[DeviceNode, ...]]:
    devices = root.sys() / "bus/pci/devices"
    found = {}
    for bus_id in sorted(root.bound_gpus()):
        names = sorted(path.name for path in (devices / bus_id / "drm").glob("*"))
        found[bus_id] = tuple(node for name in names if (node := _read_node(dev, host_dev, f"dri/{name}")))
    return {bus_id: nodes for bus_id, nodes in found.items() if nodes}


def _find_configs(seen: Path) -> dict[str, str]:
    """Path in containers -> path under the driver root. Of two with one name the first counts."""
    found: dict[str, str] = {}
    for place, pattern in _CONFIGS:
        for folder in _CONFIG_FOLDERS:
            for path in sorted((seen / folder).glob(pattern)):
                real = resolve_below(seen, f"/{path.relative_to(seen)}")
                if real and (seen / real.lstrip("/")).is_file():
                    found.setdefault(f"{place}/{path.relative_to(seen / folder)}", real)
    return found


def _read_later_hooks(root: DriverRoot, hook: str) -> tuple[str, ...]:
    """A program that we do not see was told to us; it is taken for one that passes over what it lacks."""
    if not PurePosixPath(hook).is_relative_to(root.host):
        return LATER_HOOKS
    below = f"/{PurePosixPath(hook).relative_to(root.host)}"
    # Before toolkit 1.20 the GPU Operator's is a script beside the program itself.
    real = resolve_below(root.seen, f"{below}.real") or resolve_below(root.seen, below)
    if real is None:
        return ()
    program = root.seen / real.lstrip("/")
    status = program.stat()
    return _search_hooks(program, status.st_ino, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=4)
def _search_hooks(program: Path, inode: int, size: int, changed_ns: int) -> tuple[str, ...]:
    """A program of Go holds the names of its commands as they are."""
    if not size:
        return ()
    with program.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return tuple(command for command in LATER_HOOKS if content.find(command.encode()) >= 0)


def _find_hook(root: DriverRoot) -> str | None:
    if root.hook:
        return root.hook
    return next((_join(root.host, path) for path in _HOOKS if (root.seen / path).is_file()), None)


def _read_word(path: Path) -> str:
    """The content of a file of sysfs; empty where it cannot be read."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""
