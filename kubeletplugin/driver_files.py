"""What NVIDIA's driver has put on this node, kept current: the files that CDI specs name."""

import asyncio
import logging
from typing import Final

from api.events import Recorder, node_reference
from api.names import NVIDIA_GPU_DRIVER
from kubeletplugin.hardware.tree import DriverRoot, read_driver_tree
from kubeletplugin.model.cdi import DriverTree, check_libraries
from kubeletplugin.model.inventory import Inventory

log = logging.getLogger(__name__)

_DRIVER: Final = {"driver": NVIDIA_GPU_DRIVER}


class DriverFiles:
    """Nodes, tools, a hook or libraries may come later than we; claims do not wait for them, but a lack is told.

    `tree` stays the same object for as long as it says the same: CDI specs have its part ready.
    """

    def __init__(self, root: DriverRoot, events: Recorder, node: str) -> None:
        self.tree = DriverTree("/", "/")
        self._root = root
        self._events = events
        self._node = node
        self._lack: str | None = None

    def read(self, inventory: Inventory) -> None:
        """Raises OSError, ValueError."""
        self._use(read_driver_tree(self._root, inventory.driver_version), inventory)

    async def read_again(self, inventory: Inventory) -> None:
        """In a thread of its own; what cannot be read leaves what is known."""
        try:
            self._use(await asyncio.to_thread(read_driver_tree, self._root, inventory.driver_version), inventory)
        except (OSError, ValueError) as error:
            log.error("driver_files_not_read", extra={**_DRIVER, "error": str(error)})

    def _use(self, tree: DriverTree, inventory: Inventory) -> None:
        if not tree.says_the_same_as(self.tree):
            self.tree = tree
        lack = check_libraries(self.tree, inventory.driver_version) if inventory.gpus else None
        if lack != self._lack:
            if lack:
                log.error("driver_libraries_missing", extra={**_DRIVER, "error": lack})
            else:
                log.info("driver_libraries_found", extra=_DRIVER)
        if lack:
            self._events.warn(node_reference(self._node), "DriverLibrariesMissing", "ReadDriver", lack)
        self._lack = lack
