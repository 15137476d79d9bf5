"""What NVIDIA's driver still holds for claims that are gone, and what an earlier run left half made."""

import logging
from collections.abc import Awaitable, Callable
from typing import Final

from api.errors import Busy, PartitaError
from api.events import Recorder, node_reference
from api.names import NVIDIA_GPU_DRIVER
from kubeletplugin.files import Store
from kubeletplugin.model.checkpoint import ClaimRecord
from kubeletplugin.occupants import ASK_AGAIN_S, Occupants
from kubeletplugin.stale import SWEEP_INTERVAL_S, StaleClaims

log = logging.getLogger(__name__)

Release = Callable[[ClaimRecord, Callable[[], bool]], Awaitable[bool]]

_UNDO_AGAIN_S: Final = 30.0


class Leftovers:
    """`release` gives back what a claim holds, if the condition still holds when its GPUs are held; whether it did."""

    def __init__(
        self, node: str, events: Recorder, store: Store, stale: StaleClaims, occupants: Occupants, release: Release
    ) -> None:
        self._node = node
        self._events = events
        self._store = store
        self._stale = stale
        self._occupants = occupants
        self._release = release
        self._changed: Callable[[], None] = lambda: None
        self._not_undone: dict[str, ClaimRecord] = {}
        """What an earlier run left half made and could not be undone at the start, by claim UID."""

    async def run(self, changed: Callable[[], None]) -> None:
        """Give back what is left over, until cancelled; `changed` is called after it."""
        self._changed = changed
        await self._stale.run(NVIDIA_GPU_DRIVER, self._sweep_all, lambda: self._store.checkpoint.records)

    def forget(self, uid: str) -> None:
        """Its record is gone, or somebody asks for the claim."""
        self._stale.forget(uid)

    async def sweep_holders(self, busy: Busy) -> int:
        """Give back what the holders hold, where they are stale; how many."""
        holders = [record for uid in busy.holders if (record := self._store.checkpoint.get(uid)) is not None]
        return await self._stale.try_sweep(NVIDIA_GPU_DRIVER, holders, self._give_back)

    async def _sweep_all(self) -> float:
        await self._undo_the_rest()
        await self._stale.sweep(self._store.checkpoint.records.values(), self._give_back)
        return _UNDO_AGAIN_S if self._not_undone else SWEEP_INTERVAL_S

    async def _give_back(self, record: ClaimRecord) -> bool:
        if await self._occupants.remain(record):
            self._stale.postpone(record.uid, ASK_AGAIN_S)
            return False
        return await self._try_release(record, lambda: self._stale.is_gone(record.uid))

    async def _undo_the_rest(self) -> None:
        """Try again what could not be undone at the start, where nobody has asked for the claim since."""
        for uid, record in tuple(self._not_undone.items()):
            try:
                await self._try_release(record, lambda: True)
                del self._not_undone[uid]
            except PartitaError as error:
                self.report_not_undone(record, error)

    async def _try_release(self, record: ClaimRecord, condition: Callable[[], bool]) -> bool:
        async with self._store.lease():
            if not await self._release(record, condition):
                return False
            self._store.sync_soon()
        self._changed()
        return True

    def report_not_undone(self, record: ClaimRecord, error: PartitaError) -> None:
        """It is tried again, and told, until it succeeds."""
        self._not_undone[record.uid] = record
        message = f"claim {record.claim}: what an earlier run left half made cannot be undone yet: {error}"
        log.error("not_undone", extra={"claim": record.claim, "claim_uid": record.uid, "error": str(error)})
        self._events.warn(node_reference(self._node), "ClaimNotUndone", "Recover", message)
