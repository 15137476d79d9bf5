"""The mark of a reload of the amdgpu driver that this program has begun, kept over restarts of this program.

A reload takes the driver away and loads it again. A program that is killed in between takes what reloads with it, and
the node has no AMD GPUs until somebody loads the driver. Where the mark says that it was us, we do; where it does not,
an administrator has unloaded the driver, and it stays so.
"""

from pathlib import Path

from kubeletplugin.disk import disk_errors, write_whole


class ReloadMark:
    """One file with the boot's id: a node that booted since has loaded its driver itself."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def set(self, boot_id: str) -> None:
        """Before the driver is taken away. Need not be durable: what a power cut takes, the next boot makes up for."""
        with disk_errors(self._path):
            write_whole(self._path, boot_id.encode(), durable=False)

    def is_set(self, boot_id: str) -> bool:
        with disk_errors(self._path):
            try:
                return self._path.read_text() == boot_id
            except FileNotFoundError:
                return False

    def clear(self) -> None:
        """The driver is there."""
        with disk_errors(self._path):
            self._path.unlink(missing_ok=True)
