"""The modes that an administrator left the GPUs in, kept over restarts of this program: where an idle node returns to.

A node that claims have brought into another memory mode could otherwise never serve a claim for several GPUs in the
first one: changing the memory mode is offered to one GPU at a time (`model.amd_devices`).

Beside them are the modes that were seen last. Where they are others now, and claims have not changed them, an
administrator has, and the way home is forgotten; so, too, for what happened while this program was not running. A
memory mode that a failed reload of ours has left asked for in the kernel stays ours when another reload brings it.
"""

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

from api.errors import Retryable
from kubeletplugin.disk import disk_errors, replace_whole
from kubeletplugin.model.amd_partitions import AmdInventory

log = logging.getLogger(__name__)

Profiles = Mapping[str, str]
"""`cpx_nps4` by PCI address."""


@dataclass(frozen=True, slots=True)
class _Kept:
    modes: Profiles
    seen: Profiles
    pending: str = ""
    """`nps4`: asked for in the kernel, for the next reload."""

    def is_choice(self, now: Profiles) -> bool:
        """Whether modes have changed as nothing of ours explains."""
        return any(
            mode != self.seen.get(pci, mode) and (not self.pending or _memory(mode) != self.pending)
            for pci, mode in now.items()
        )

    def with_seen(self, now: Profiles) -> "_Kept":
        is_there = any(_memory(mode) == self.pending for mode in now.values())
        return _Kept(self.modes, {**self.seen, **now}, "" if is_there else self.pending)


class HomeModes:
    """One file; what it says counts until the node boots again, which resets modes anyway."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def remember(self, boot_id: str, inventory: AmdInventory) -> None:
        """Before the first change of this boot. Raises DiskFailed."""
        if self._read(boot_id) is None:
            self._write(boot_id, _Kept(_profiles(inventory), _profiles(inventory)))

    def observe(self, boot_id: str, inventory: AmdInventory, *, is_ours: bool) -> None:
        """After every look. `is_ours`: claims may have changed modes since the last one."""
        kept, now = self._read(boot_id), _profiles(inventory)
        if kept is None or now.items() <= kept.seen.items():
            return
        if not is_ours and kept.is_choice(now):
            log.info("modes_chosen", extra={"seen": kept.seen, "now": now})
            self._try(self.forget)
        else:
            self._try(partial(self._write, boot_id, kept.with_seen(now)))

    def expect(self, boot_id: str, memory_mode: str) -> None:
        """After a reload for it has failed."""
        kept = self._read(boot_id)
        if kept is not None:
            self._try(partial(self._write, boot_id, replace(kept, pending=memory_mode.lower())))

    def _try(self, change: Callable[[], None]) -> None:
        """What was seen is no reason to serve nobody: a full disk costs the way home at the most."""
        try:
            change()
        except Retryable as error:
            log.error("modes_not_kept", extra={"error": str(error)})

    def forget(self) -> None:
        """Somebody has decided on the present modes. Raises DiskFailed."""
        with disk_errors(self._path):
            self._path.unlink(missing_ok=True)

    def target(self, boot_id: str, inventory: AmdInventory) -> tuple[str | None, ...]:
        """For `plan_target`: the modes to return to where a memory mode differs; empty where none does."""
        kept = self._read(boot_id)
        modes = tuple(kept.modes.get(gpu.pci_address) if kept else None for gpu in inventory.gpus)
        differs = any(
            gpu.mode is not None and mode is not None and _memory(mode) != gpu.mode.memory.lower()
            for gpu, mode in zip(inventory.gpus, modes, strict=True)
        )
        return modes if differs else ()

    def _read(self, boot_id: str) -> _Kept | None:
        """None where nothing was changed in this boot."""
        try:
            kept = json.loads(self._path.read_text())
            if kept["bootID"] != boot_id:
                return None
            return _Kept(dict(kept["modes"]), dict(kept.get("seen", {})), str(kept.get("pending", "")))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            # It only says where to return to: without it the GPUs stay as they are.
            log.error("home_modes_unreadable", extra={"path": str(self._path), "error": repr(error)})
            self._try(self.forget)
            return None

    def _write(self, boot_id: str, kept: _Kept) -> None:
        with disk_errors(self._path):
            replace_whole(self._path, json.dumps({"bootID": boot_id, **asdict(kept)}).encode(), durable=True)


def _memory(profile: str) -> str:
    return profile.rpartition("_")[2]


def _profiles(inventory: AmdInventory) -> dict[str, str]:
    return {gpu.pci_address: gpu.mode.profile for gpu in inventory.gpus if gpu.mode is not None}
