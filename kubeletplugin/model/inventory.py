"""What a node's hardware is, as values: read once by a back-end, decided on by everything else.

Units: memory in bytes, placements in the GPU's own memory-slice units.
"""

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, slots=True, order=True)
class Placement:
    """Where an instance lies on a GPU: `start` and `size` in memory slices (nvml.h nvmlGpuInstancePlacement_t)."""

    start: int
    size: int

    def overlaps(self, other: "Placement") -> bool:
        return self.start < other.start + other.size and other.start < self.start + self.size


@dataclass(frozen=True, slots=True)
class MigProfile:
    """One GPU instance profile that a GPU offers (nvml.h nvmlGpuInstanceProfileInfo_v2_t)."""

    name: str
    """As the vendor prints it, without the `MIG ` prefix: `1g.10gb`, `1g.10gb+me`."""
    profile_id: int
    """The id that creation calls take; not the index that profile look-ups take."""
    max_instances: int
    memory_bytes: int
    multiprocessors: int
    copy_engines: int
    decoders: int
    encoders: int
    jpeg_engines: int
    ofa_engines: int
    placements: tuple[Placement, ...]
    """Every legal placement on an empty GPU, ascending by start."""


@dataclass(frozen=True, slots=True)
class MigInstance:
    """A GPU instance that exists, with its compute instance if it has one.

    `compute_instance_id`, `uuid` are None for a GPU instance without compute instance: a leftover of an
    interrupted creation, which still occupies its placement.
    """

    gpu_instance_id: int
    profile_id: int
    placement: Placement
    compute_instance_id: int | None = None
    uuid: str | None = None
    """`MIG-...`; new at every creation, whereas ids are reused."""
    foreign: bool = False
    """True where the compute side is not the single whole-instance one that we create (an admin's own layout)."""


@dataclass(frozen=True, slots=True)
class Mig:
    """MIG on one GPU that supports it."""

    enabled: bool
    mode_change_needs_reset: bool
    """True on Ampere: the mode is the admin's to change, we never do."""
    profiles: tuple[MigProfile, ...]
    instances: tuple[MigInstance, ...] = ()


@dataclass(frozen=True, slots=True)
class Fabric:
    """Membership in an NVLink fabric (nvml.h nvmlGpuFabricInfo)."""

    cluster_uuid: str
    clique_id: int
    state: Literal["not_supported", "not_started", "in_progress", "completed"]
    status: int = 0
    """NVML return code of the registration; 0 is success. Meaningful only when `state` is `completed`."""
    healthy: bool = True

    @property
    def clique(self) -> str:
        """`<clusterUUID>.<cliqueID>`, the form of the node label `nvidia.com/gpu.clique`."""
        return f"{self.cluster_uuid}.{self.clique_id}"


@dataclass(frozen=True, slots=True)
class Gpu:
    """One physical NVIDIA GPU."""

    minor: int
    uuid: str
    index: int
    pci_bus_id: str
    """`0000:65:00.0`: four-digit domain, lower case, as in sysfs."""
    product_name: str
    brand: str
    architecture: str
    cuda_compute_capability: str
    """`9.0`"""
    memory_bytes: int
    pcie_root: str | None = None
    """`pci0000:64`"""
    numa_node: int | None = None
    addressing_mode: str | None = None
    mig: Mig | None = None
    fabric: Fabric | None = None
    monitored: bool = True
    """The library reports this GPU's critical errors."""
    lost: bool = False
    """The library knows the GPU but can no longer reach it."""


@dataclass(frozen=True, slots=True)
class Inventory:
    """All NVIDIA GPUs of one node, ascending by PCI bus id."""

    driver_version: str
    cuda_driver_version: str
    """`12.8`"""
    gpus: tuple[Gpu, ...] = ()
    unreadable: tuple[str, ...] = field(default=())
    """One sentence per GPU that could not be read at all; such GPUs are not in `gpus`."""

    def gpu(self, uuid: str) -> Gpu | None:
        return next((gpu for gpu in self.gpus if gpu.uuid == uuid), None)
