"""The hardware boundary: what a vendor's library is to the rest of the program.

Methods block: shells call them in threads of their own. A back-end lets one thread at a time into its library,
beside the one that waits for events.
"""

from collections.abc import Callable
from typing import Protocol

from api.errors import HardwareError
from kubeletplugin.model.inventory import Gpu, Inventory, MigInstance
from kubeletplugin.model.steps import HardwareStep


class LibraryMissing(HardwareError):
    """The vendor's library, driver or devices are not on this node."""

    reason = "LibraryMissing"


class DeviceBusy(HardwareError):
    """A process or a child instance still uses what was to be changed; try again later."""

    reason = "DeviceBusy"


class PlacementOccupied(HardwareError):
    """The GPU has no room at the placement that was asked for."""

    reason = "PlacementOccupied"


class DeviceLost(HardwareError):
    """The GPU fell off the bus or needs a reset."""

    reason = "DeviceLost"


class NotPermitted(HardwareError):
    """The library refuses for want of privilege."""

    reason = "NotPermitted"


class NvidiaBackend(Protocol):
    """NVIDIA GPUs of this node."""

    def read_inventory(self) -> Inventory:
        """Everything, freshly read. Raises LibraryMissing where there is no driver."""

    def read_gpu(self, uuid: str) -> Gpu:
        """One GPU, freshly read. Raises DeviceLost."""

    def apply_step(self, step: HardwareStep) -> MigInstance | None:
        """Do one step; the instance for CreateMigInstance, else None. Raises the errors above."""

    def read_processes(self, uuid: str) -> tuple[int, ...]:
        """Ids of the processes on this GPU or MIG device, ascending; none on what is lost, gone or cannot tell.

        Raises HardwareError where another attempt may get an answer.
        """

    def watch_events(self, on_event: Callable[[str, int], None], stopped: Callable[[], bool]) -> None:
        """Block, calling `on_event(gpu_uuid, xid)` for critical XIDs, until `stopped()`; a lost GPU is XID 79."""

    def close(self) -> None:
        """Give the library back; the next call opens it again."""
