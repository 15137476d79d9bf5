"""AMD GPUs of one node as values, their partition modes, and the names of what can be claimed.

A GPU is in one mode: a compute mode (how many partitions) with a memory mode (how many memory ranges). The compute mode
can be changed while nothing uses the GPU. The memory mode can only be changed for a whole hive, by loading the driver
again, which needs every GPU of the node to be free and resets the compute modes.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from kubeletplugin.model.checkpoint import Checkpoint, ClaimRecord, PartitionHolding, PreparedDevice

FIRMWARE_BYTES: Final = 16 << 20
"""Kept by the firmware; the last memory range lacks it (captures of MI300X and MI308X)."""


@dataclass(frozen=True, slots=True, order=True)
class Mode:
    """`CPX` with `NPS4`; spelt as amdgpu's sysfs files do."""

    compute: str
    memory: str

    @property
    def profile(self) -> str:
        """`cpx_nps4`, the value of attribute `partitionProfile`."""
        return f"{self.compute}_{self.memory}".lower()

    @property
    def memory_ranges(self) -> int:
        return int(self.memory.removeprefix("NPS"))


@dataclass(frozen=True, slots=True)
class ModeOffer:
    """A mode that a GPU can be brought into, and how many partitions it then has."""

    mode: Mode
    partitions: int


@dataclass(frozen=True, slots=True)
class Partition:
    """A partition that exists; a GPU that cannot be partitioned has one."""

    slot: int
    """From 0; fixed to a place on the GPU."""
    card: int
    """Minor number of `/dev/dri/card<N>`; may be another one after a reboot."""
    render: int
    compute_units: int
    simd_units: int
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class AmdGpu:
    """One physical AMD GPU."""

    pci_address: str
    """`0000:05:00.0`: what identifies the GPU for us."""
    device_id: str
    """PCI device id, `0x74a1`."""
    unique_id: str
    """Serial number of the GPU, hexadecimal without prefix; empty where the driver tells none."""
    product_name: str
    compute_units: int
    simd_units: int
    memory_bytes: int
    partitions: tuple[Partition, ...]
    """By slot."""
    mode: Mode | None = None
    """None: the model cannot be partitioned."""
    offers: tuple[ModeOffer, ...] = ()
    """Every mode that the hardware says it can be brought into, its present one included."""
    numa_node: int | None = None
    pcie_root: str | None = None
    hive_id: str | None = None
    """Decimal; GPUs of a hive have one, and change their memory mode together."""

    def partitions_in(self, mode: Mode) -> int:
        """Number of partitions; 0 where the GPU cannot be brought into `mode`."""
        return next((offer.partitions for offer in self.offers if offer.mode == mode), 0)


@dataclass(frozen=True, slots=True)
class AmdInventory:
    """All AMD GPUs of one node, by PCI address."""

    driver_version: str = ""
    """`6.12.12`; empty where the driver is the kernel's own."""
    driver_source_version: str = ""
    gpus: tuple[AmdGpu, ...] = ()
    unreadable: tuple[str, ...] = field(default=())
    """One sentence per GPU that could not be read, or was read in the middle of a change; it is not in `gpus`."""

    def gpu(self, pci_address: str) -> AmdGpu | None:
        return next((gpu for gpu in self.gpus if gpu.pci_address == pci_address), None)


def smallest_partition_bytes(memory_bytes: int, offer: ModeOffer) -> int:
    """Memory of the smallest partition of a mode: one of the last range, which lacks the firmware's part."""
    ranges = offer.mode.memory_ranges
    last_range = (memory_bytes + FIRMWARE_BYTES) // ranges - FIRMWARE_BYTES
    return last_range // max(1, offer.partitions // ranges)


# --- names ---
#
# A name says which GPU, which mode and which partition, and never means anything else: card and render numbers, which
# AMD's driver puts into names, change with reboots, and mean another partition after a change of mode.


@dataclass(frozen=True, slots=True)
class DeviceRef:
    """What a device name stands for."""

    pci_address: str
    mode: Mode | None
    """None: a GPU that cannot be partitioned."""
    slot: int | None
    """None: any partition of that mode."""


_NAME: Final = re.compile(r"gpu-([0-9a-f]{4,})-([0-9a-f]{2})-([0-9a-f]{2})-([0-7])(?:-([sdtqc]px)-(nps\d)(?:-(\d+))?)?")


def gpu_name(pci_address: str) -> str:
    """`0000:05:00.0` -> `gpu-0000-05-00-0`"""
    return "gpu-" + pci_address.replace(":", "-").replace(".", "-")


def mode_device_name(pci_address: str, mode: Mode) -> str:
    """`gpu-0000-05-00-0-cpx-nps4`: the whole GPU where the mode has one partition, else any one of its partitions."""
    return f"{gpu_name(pci_address)}-{mode.compute}-{mode.memory}".lower()


def partition_device_name(gpu: AmdGpu, slot: int) -> str:
    """Name of a partition of the GPU's present mode: `gpu-0000-05-00-0-cpx-nps4-3`, `gpu-0000-05-00-0-spx-nps1`."""
    if gpu.mode is None:
        return gpu_name(gpu.pci_address)
    name = mode_device_name(gpu.pci_address, gpu.mode)
    return name if len(gpu.partitions) == 1 else f"{name}-{slot}"


def parse_device_name(name: str) -> DeviceRef | None:
    """The inverse of the functions above; None for a name of another form."""
    found = _NAME.fullmatch(name)
    if found is None:
        return None
    domain, bus, device, function, compute, memory, slot = found.groups()
    mode = Mode(compute.upper(), memory.upper()) if compute else None
    return DeviceRef(f"{domain}:{bus}:{device}.{function}", mode, int(slot) if slot is not None else None)


# --- what claims hold ---


@dataclass(frozen=True, slots=True)
class Held:
    """One partition that a claim holds."""

    record: ClaimRecord
    device: PreparedDevice
    holding: PartitionHolding

    @property
    def mode(self) -> Mode | None:
        if self.holding.compute_mode is None or self.holding.memory_mode is None:
            return None
        return Mode(self.holding.compute_mode, self.holding.memory_mode)


def held_partitions(checkpoint: Checkpoint, without: Iterable[str] = ()) -> list[Held]:
    """Everything that claims hold, admin access and the claims of the UIDs in `without` left out."""
    skipped = frozenset(without)
    return [
        Held(record, device, device.holding)
        for record in checkpoint.records.values()
        if record.uid not in skipped
        for device in record.devices
        if isinstance(device.holding, PartitionHolding) and not device.admin_access
    ]
