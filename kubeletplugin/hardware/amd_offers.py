"""When to ask AMD SMI which modes the GPUs of a node have.

An open library makes every GPU look used, so it is asked once. A GPU that it would not tell of is asked again less and
less often; a library that was installed, or replaced, is noticed by its file.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from kubeletplugin.hardware.amd_sysfs import Offers
from kubeletplugin.model.amd_partitions import AmdInventory

FIRST_PAUSE_S: Final = 10.0
LONGEST_PAUSE_S: Final = 3600.0

GpuKey = tuple[str, str, str]
"""PCI address, device id, serial number: another GPU in the same place is another one."""
LibraryFile = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Asked:
    """What the library has been asked, and what it has answered."""

    gpus: frozenset[GpuKey] = frozenset()
    offers: Offers = field(default_factory=dict)
    library: LibraryFile | None = None
    has_library: bool = True
    """False: modes are read from sysfs, and stay as they are."""
    again_at_s: float | None = None
    """On the monotonic clock; None: it has told of every GPU, or is not there."""
    pause_s: float = FIRST_PAUSE_S

    def is_due(self, gpus: frozenset[GpuKey], library: LibraryFile | None, now_s: float) -> bool:
        is_over = self.again_at_s is not None and now_s >= self.again_at_s
        return bool(gpus) and (not gpus <= self.gpus or library != self.library or is_over)

    def answered(self, gpus: frozenset[GpuKey], offers: Offers, library: LibraryFile | None, now_s: float) -> "Asked":
        """After the library has told of those GPUs that `offers` has."""
        if all(gpu[0] in offers for gpu in gpus):
            return Asked(gpus, offers, library)
        # GPUs that came or a library that changed begin anew.
        is_repeated = gpus == self.gpus and library == self.library and self.again_at_s is not None
        pause_s = min(2 * self.pause_s, LONGEST_PAUSE_S) if is_repeated else FIRST_PAUSE_S
        return Asked(gpus, offers, library, again_at_s=now_s + pause_s, pause_s=pause_s)


def without_library(gpus: frozenset[GpuKey], library: LibraryFile | None) -> Asked:
    """After it could not be loaded."""
    return Asked(gpus, {}, library, has_library=False)


def partitionable(inventory: AmdInventory) -> frozenset[GpuKey]:
    """The GPUs whose modes are worth asking for."""
    return frozenset((gpu.pci_address, gpu.device_id, gpu.unique_id) for gpu in inventory.gpus if gpu.mode is not None)


def look_at_library(path: Path) -> LibraryFile | None:
    """Differs after every installation; None where there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size
