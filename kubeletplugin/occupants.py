"""Processes that still work on what a claim holds that is gone from the API server.

A pod that was deleted by force may run out a grace period that is longer than ours, on a node whose kubelet has
forgotten the claim. Then the hardware is the last to know that its GPU is not free.
"""

import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

from api.errors import HardwareError
from api.events import Recorder, node_reference
from kubeletplugin.model.checkpoint import ClaimRecord
from kubeletplugin.model.occupation import describe_occupation, is_of_a_pod, list_held

log = logging.getLogger(__name__)

ASK_AGAIN_S: Final = 30.0  # a question takes milliseconds, and somebody may be waiting for the GPU


class Occupants:
    """`read_processes`: ids of the processes on the device with this UUID. Raises HardwareError."""

    def __init__(
        self,
        read_processes: Callable[[str], Awaitable[tuple[int, ...]]],
        events: Recorder,
        node: str,
        proc: Path = Path("/proc"),
    ) -> None:
        self._read_processes = read_processes
        self._events = events
        self._node = node
        self._proc = proc
        self._unanswered: set[str] = set()
        """Claims about whose devices the last question had no answer, by UID."""

    async def remain(self, record: ClaimRecord) -> bool:
        """Whether the claim's devices are in use; where they are, that is told."""
        try:
            found = {name: await self._find(uuid) for name, uuid in list_held(record).items()}
        except HardwareError as error:
            return self._wait_once(record, error)
        self._unanswered.discard(record.uid)
        found = {name: pids for name, pids in found.items() if pids}
        if found:
            note = describe_occupation(record, found)
            log.warning("stale_claim_in_use", extra={"claim": record.claim, "claim_uid": record.uid, "why": note})
            self._events.warn(node_reference(self._node), "StaleClaimInUse", "Sweep", note)
        return bool(found)

    async def _find(self, uuid: str) -> tuple[int, ...]:
        return tuple(pid for pid in await self._read_processes(uuid) if self._may_be_of_a_pod(pid))

    def _may_be_of_a_pod(self, pid: int) -> bool:
        try:
            return is_of_a_pod((self._proc / str(pid) / "cgroup").read_text())
        except OSError:
            return True  # what the library knows, and we cannot look up, is rather taken for a pod's

    def _wait_once(self, record: ClaimRecord, error: HardwareError) -> bool:
        """A library that cannot tell is asked a second time; one that can never tell holds no claim for ever."""
        is_first = record.uid not in self._unanswered
        if is_first:
            self._unanswered.add(record.uid)
        else:
            self._unanswered.discard(record.uid)
        extra = {"claim": record.claim, "claim_uid": record.uid, "error": str(error), "kept": is_first}
        log.warning("stale_claim_not_looked_into", extra=extra)
        return is_first
