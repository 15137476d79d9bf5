"""The modes that an administrator left the GPUs in, kept over restarts of this program: where an idle node returns to.

A node that claims have brought into another memory mode could otherwise never serve a claim for several GPUs in the
first one: changing the memory mode is offered to one GPU at a time (`model.amd_devices`).
"""

import json
import logging
from pathlib import Path

from kubeletplugin.disk import disk_error, write_whole
from kubeletplugin.model.amd_partitions import AmdInventory

log = logging.getLogger(__name__)


class HomeModes:
    """One file; what it says counts until the node boots again, which resets modes anyway."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def remember(self, boot_id: str, inventory: AmdInventory) -> None:
        """Before the first change of this boot."""
        if self.read(boot_id) is None:
            modes = {gpu.pci_address: gpu.mode.profile for gpu in inventory.gpus if gpu.mode is not None}
            text = json.dumps({"bootID": boot_id, "modes": modes})
            fresh = self._path.with_suffix(".fresh")
            try:
                write_whole(fresh, text.encode(), durable=True)
                fresh.rename(self._path)
            except OSError as error:
                raise disk_error(error, self._path) from error

    def read(self, boot_id: str) -> dict[str, str] | None:
        """Mode by PCI address; None where nothing was changed in this boot."""
        try:
            kept = json.loads(self._path.read_text())
            return dict(kept["modes"]) if kept["bootID"] == boot_id else None
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            # It only says where to return to: without it the GPUs stay as they are.
            log.error("home_modes_unreadable", extra={"path": str(self._path), "error": repr(error)})
            self.forget()
            return None

    def forget(self) -> None:
        """Somebody has decided on the present modes. Raises DiskFailed."""
        try:
            self._path.unlink(missing_ok=True)
        except OSError as error:
            raise disk_error(error, self._path) from error

    def target(self, boot_id: str, inventory: AmdInventory) -> tuple[str | None, ...]:
        """For `plan_target`: the modes to return to where a memory mode differs; empty where none does."""
        home = self.read(boot_id) or {}
        modes = tuple(home.get(gpu.pci_address) for gpu in inventory.gpus)
        differs = any(
            gpu.mode is not None and mode is not None and mode.rpartition("_")[2] != gpu.mode.memory.lower()
            for gpu, mode in zip(inventory.gpus, modes, strict=True)
        )
        return modes if differs else ()
