"""What amdgpu and KFD say about the GPUs of a node, read from sysfs into values.

A change of mode shows in several files one after another, and a reload takes all away and brings it back. So the whole
is read until two passes agree; a GPU that still differs, or whose files do not fit together, is named unreadable.
"""

import os
import re
import stat
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from api.errors import HardwareError
from kubeletplugin.model.amd_partitions import AmdGpu, AmdInventory, Mode, ModeOffer, Partition
from kubeletplugin.model.cdi import DeviceNode

PASSES: Final = 5
PAUSE_S: Final = 0.05
_PCI_ADDRESS: Final = re.compile(r"[0-9a-f]{4,}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")
_PCIE_ROOT: Final = re.compile(r"pci[0-9a-f]{4}:[0-9a-f]{2}")
_AMDGPU: Final = Path("module/amdgpu")
_NODES: Final = Path("class/kfd/kfd/topology/nodes")
_PLACE_MASK: Final = 0x0FFF_FFF8  # of `location_id`: bus and device; then there is the partition, in one of two ways
_SLOT_MASK: Final = 7
_NEWER_SLOT_SHIFT: Final = 28
_PARTITIONS: Final = {"SPX": 1, "DPX": 2, "TPX": 3, "QPX": 4}
"""CPX has as many as the GPU has compute dies."""
_DIES: Final = {"QPX": 8, "TPX": 6, "DPX": 4}
"""Compute dies of a GPU, by the first of these modes that it has (amdgpu_xcp_update_supported_modes)."""
COMPUTE_MODES: Final = frozenset({*_PARTITIONS, "CPX"})
_MEMORY_MODE: Final = re.compile(r"NPS[1-9]")

Offers = Mapping[str, tuple[ModeOffer, ...]]
"""By PCI address: the modes that the library says a GPU can be brought into."""


@dataclass(frozen=True, slots=True)
class AmdRoot:
    """Where the amdgpu driver shows itself: `/` on an ordinary node."""

    host: str
    seen: Path

    @property
    def sys(self) -> Path:
        return self.seen / "sys"

    @property
    def library_folder(self) -> Path:
        return self.seen / "opt/rocm/lib"

    @property
    def library(self) -> Path:
        return self.library_folder / "libamd_smi.so"

    @classmethod
    def find(cls, host: str, seen: Path) -> "AmdRoot":
        """The driver root, where amdgpu or ROCm is seen there; else what this process sees as `/`."""
        root = cls(host, seen)
        is_there = root.library.exists() or (root.sys / _AMDGPU).is_dir()
        return root if is_there else cls("/", Path("/"))

    def has_gpus(self) -> bool:
        """Whether amdgpu drives anything here; says nothing about what."""
        return any(_gpu_folders(self.sys))

    def device_nodes(self, paths: Iterable[str]) -> dict[str, DeviceNode]:
        """Those of these device nodes that there are, by path in containers (`/dev/kfd`)."""
        found = {}
        for path in paths:
            try:
                status = Path(f"{self.seen}{path}").stat()
            except OSError:
                continue
            if stat.S_ISCHR(status.st_mode):
                host = self.host.rstrip("/") + path
                found[path] = DeviceNode(path, host, os.major(status.st_rdev), os.minor(status.st_rdev))
        return found


def read_inventory(root: AmdRoot, sleep: Callable[[float], None] = time.sleep) -> AmdInventory:
    """What sysfs tells; of the modes that can be had, those of the present memory mode. Raises HardwareError."""
    try:
        return _read_until_steady(root, sleep)
    except OSError as error:  # of one GPU's files it is that GPU's own; these are the driver's
        raise HardwareError(f"the amdgpu driver cannot be read: {error}") from error


def _read_until_steady(root: AmdRoot, sleep: Callable[[float], None]) -> AmdInventory:
    last = _read_pass(root.sys)
    for _ in range(PASSES):
        current = _read_pass(root.sys)
        if current == last and not current.unreadable:
            return current
        last = current
        sleep(PAUSE_S)
    settled = _read_pass(root.sys)
    steady = tuple(gpu for gpu in settled.gpus if last.gpu(gpu.pci_address) == gpu)
    unsteady = tuple(f"GPU {gpu.pci_address} changes while it is read" for gpu in settled.gpus if gpu not in steady)
    return replace(settled, gpus=steady, unreadable=settled.unreadable + unsteady)


def with_offers(inventory: AmdInventory, offers: Offers) -> AmdInventory:
    """The inventory with what the library says beyond sysfs: all modes, and how many partitions the present one has."""
    gpus, unreadable = [], list(inventory.unreadable)
    for gpu in inventory.gpus:
        told = offers.get(gpu.pci_address, ())
        wanted = next((offer.partitions for offer in told if offer.mode == gpu.mode), len(gpu.partitions))
        if len(gpu.partitions) == wanted:
            gpus.append(replace(gpu, offers=_merge(gpu.offers, told)) if told else gpu)
        else:
            unreadable.append(f"GPU {gpu.pci_address}: KFD shows {len(gpu.partitions)} of its {wanted} partitions")
    return replace(inventory, gpus=tuple(gpus), unreadable=tuple(unreadable))


def without_changes(inventory: AmdInventory) -> AmdInventory:
    """The inventory of a node where nobody can change modes: every GPU offers the one that it is in."""
    return replace(
        inventory,
        gpus=tuple(
            replace(gpu, offers=(ModeOffer(gpu.mode, len(gpu.partitions)),) if gpu.mode else ())
            for gpu in inventory.gpus
        ),
    )


def _merge(seen: Iterable[ModeOffer], told: Iterable[ModeOffer]) -> tuple[ModeOffer, ...]:
    return tuple(sorted({*seen, *told}, key=lambda offer: (offer.mode.memory, offer.partitions)))


def _read_pass(sys: Path) -> AmdInventory:
    gpus, unreadable = [], []
    nodes = _read_kfd_nodes(sys)
    for folder in _gpu_folders(sys):
        try:
            gpus.append(_read_gpu(folder, sys / "class/drm", nodes))
        except (OSError, ValueError, KeyError) as error:
            unreadable.append(f"GPU {folder.name} cannot be read: {error}")
    return AmdInventory(
        _read_optional(sys / _AMDGPU / "version"),
        _read_optional(sys / _AMDGPU / "srcversion"),
        tuple(gpus),
        tuple(unreadable),
    )


def _gpu_folders(sys: Path) -> list[Path]:
    found = (sys / _AMDGPU / "drivers/pci:amdgpu").glob("*:*")
    return sorted(path for path in found if _PCI_ADDRESS.fullmatch(path.name))


def _read_optional(path: Path) -> str:
    """The content without its line end; empty where there is no such file."""
    try:
        return path.read_text().strip()
    except FileNotFoundError:
        return ""


@dataclass(frozen=True, slots=True)
class _KfdNode:
    properties: Mapping[str, int]
    memory_bytes: int


def _read_kfd_nodes(sys: Path) -> dict[int, _KfdNode]:
    """KFD's GPU nodes by render minor."""
    found: dict[int, _KfdNode] = {}
    for folder in (sys / _NODES).glob("*"):
        try:
            properties = _read_properties(folder / "properties")
            bank = _read_properties(folder / "mem_banks/0/properties")
        except OSError:
            continue  # it goes while it is read; the GPU that lacks it is then unreadable
        minor = properties.get("drm_render_minor", 0)
        if minor:
            found[minor] = _KfdNode(properties, bank.get("size_in_bytes", 0))
    return found


def _read_properties(path: Path) -> dict[str, int]:
    pairs = (line.split(maxsplit=1) for line in _read_optional(path).splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}


def _read_gpu(folder: Path, drm: Path, nodes: Mapping[int, _KfdNode]) -> AmdGpu:
    compute, memory = (_read_optional(folder / f"current_{kind}_partition") for kind in ("compute", "memory"))
    mode = _parse_mode(compute, memory)
    render = _minor(folder / "drm", "renderD")
    first = nodes.get(render)
    if first is None:
        raise ValueError(f"KFD shows no node with render minor {render}")
    dies = first.properties.get("num_xcc", 1)
    partitions = _read_partitions(folder, drm, render, nodes)
    wanted = _read_dies(folder)
    offers = _read_offers(folder, mode, partitions, wanted or dies * len(partitions))
    _check_partitions(mode, partitions, dies, wanted)
    numa = int(_read_optional(folder / "numa_node") or -1)
    hive = first.properties.get("hive_id", 0)
    real = folder.resolve()
    return AmdGpu(
        pci_address=folder.name,
        device_id=_read_optional(folder / "device"),
        unique_id=_read_optional(folder / "unique_id"),
        product_name=_read_optional(folder / "product_name"),
        compute_units=sum(partition.compute_units for partition in partitions),
        simd_units=sum(partition.simd_units for partition in partitions),
        memory_bytes=int(_read_optional(folder / "mem_info_vram_total") or sum(p.memory_bytes for p in partitions)),
        partitions=partitions,
        mode=mode,
        offers=offers,
        numa_node=numa if numa >= 0 else None,
        pcie_root=next((part for part in real.parts if _PCIE_ROOT.fullmatch(part)), None),
        hive_id=str(hive) if hive else None,
    )


def _read_partitions(folder: Path, drm: Path, render: int, nodes: Mapping[int, _KfdNode]) -> tuple[Partition, ...]:
    """By slot. A partition's device is the GPU's own for the first, a platform device for each of the others."""
    own = {minor: node for minor, node in nodes.items() if _is_of_gpu(node, nodes[render])}
    function = int(folder.name[-1])
    slots = {minor: _slot(node, function) for minor, node in own.items()}
    if len(set(slots.values())) < len(slots):  # a driver that tells of no partition: minors are given out in order
        slots = {minor: minor - render for minor in own}
    return tuple(
        _partition(slots[minor], _minor(drm / f"renderD{minor}/device/drm", "card"), minor, own[minor])
        for minor in sorted(own, key=slots.__getitem__)
    )


def _slot(node: _KfdNode, function: int) -> int:
    """`function`: of the GPU on the PCI bus; the first partition has it, too."""
    place = node.properties["location_id"]
    return place >> _NEWER_SLOT_SHIFT or (place & _SLOT_MASK) - function


def _is_of_gpu(node: _KfdNode, first: _KfdNode) -> bool:
    """Same PCI domain, bus and device; the partition is in the function bits, or in bits 31:28 with newer drivers."""
    one, other = node.properties, first.properties
    is_same_place = one["location_id"] & _PLACE_MASK == other["location_id"] & _PLACE_MASK
    return is_same_place and one.get("domain") == other.get("domain")


def _parse_mode(compute: str, memory: str) -> Mode | None:
    """None for a GPU that cannot be partitioned: older drivers show it no modes, or the compute mode alone."""
    if compute in ("", "SPX") and not memory:
        return None
    if compute not in COMPUTE_MODES or not _MEMORY_MODE.fullmatch(memory):
        raise ValueError(f"current_compute_partition is {compute!r}, current_memory_partition {memory!r}")
    return Mode(compute, memory)


def _minor(folder: Path, kind: str) -> int:
    names = [path.name.removeprefix(kind) for path in folder.glob(f"{kind}[0-9]*")]
    if not names:
        raise ValueError(f"no {folder.parent.name}/drm/{kind}<N>")
    return int(names[0])


def _partition(slot: int, card: int, render: int, node: _KfdNode) -> Partition:
    simd = node.properties["simd_count"]
    return Partition(slot, card, render, simd // node.properties["simd_per_cu"], simd, node.memory_bytes)


def _read_offers(
    folder: Path, mode: Mode | None, partitions: tuple[Partition, ...], dies: int
) -> tuple[ModeOffer, ...]:
    """The modes that can be had without a reload."""
    if mode is None:
        return ()
    names = _read_names(folder / "available_compute_partition")
    counts = {**_PARTITIONS, "CPX": dies}
    offers = {ModeOffer(Mode(name, mode.memory), counts[name]) for name in names if name in counts}
    offers.add(ModeOffer(mode, len(partitions)))
    return tuple(sorted(offers, key=lambda offer: offer.partitions))


def _read_names(path: Path) -> list[str]:
    return [name.strip() for name in _read_optional(path).split(",") if name.strip()]


def _read_dies(folder: Path) -> int | None:
    """Compute dies of the whole GPU; None where the modes that it has do not tell."""
    # The second has those modes only that go with the present memory mode, with newer drivers.
    known = {
        *_read_names(folder / "compute_partition_config/supported_xcp_configs"),
        *_read_names(folder / "available_compute_partition"),
    }
    return next((dies for name, dies in _DIES.items() if name in known), None)


def _check_partitions(mode: Mode | None, partitions: tuple[Partition, ...], dies: int, wanted: int | None) -> None:
    """`dies`: of each partition, `wanted`: of the GPU. A CPX partition is one; other modes have their own number."""
    slots = [partition.slot for partition in partitions]
    if mode is None:
        if slots != [0]:
            raise ValueError(f"it shows no mode, but KFD shows partitions {slots}")
        return
    if mode.compute == "CPX":
        is_complete = dies == 1 and len(slots) >= (wanted or 1)
    else:
        is_complete = len(slots) == _PARTITIONS[mode.compute]
    if not is_complete or slots != list(range(len(slots))):
        raise ValueError(f"it is in mode {mode.profile}, but KFD shows partitions {slots} of {dies} dies each")
