"""Sends Events (events.k8s.io/v1): each thing once in a while, and never in the way of the work."""

import asyncio
import logging
import time
from datetime import UTC, datetime
from typing import Any, Final, Literal

from api.client import Client, path
from api.errors import PartitaError
from api.ref import COLLECTIONS, Ref

log = logging.getLogger(__name__)

REPEAT_AFTER_S: Final = 300.0
"""The same Event on the same object again no sooner than this."""
REMEMBERED: Final = 10_000
QUEUE_LENGTH: Final = 1000
"""More Events than this at once are not for people; the rest is dropped with a log line."""
NOTE_LENGTH: Final = 1024  # events.k8s.io/v1 Event.note


def node_reference(node: str) -> Ref:
    """As in the kubelet's own Events of its node, the name stands for the UID."""
    return Ref("Node", "", node, node)


class Recorder:
    """A queue of Events and the task that sends them; they say `controller` and `instance` of who reports."""

    def __init__(self, client: Client, controller: str, instance: str) -> None:
        self._client = client
        self._controller = controller
        self._instance = instance
        self._queue: asyncio.Queue[dict[str, Any]] = asyncio.Queue(QUEUE_LENGTH)
        self._sent_s: dict[tuple[str, str, str], float] = {}
        """The latest last."""

    def warn(self, regarding: Ref, reason: str, action: str, note: str) -> None:
        self.report(regarding, "Warning", reason, action, note)

    def report(self, regarding: Ref, kind: Literal["Normal", "Warning"], reason: str, action: str, note: str) -> None:
        if self._is_repeated((regarding.uid or regarding.name, reason, note)):
            return
        # The server makes the name; an Event of an object without a namespace lives in `default`.
        metadata = {"generateName": f"{regarding.name[:200]}-", "namespace": regarding.namespace or "default"}
        event = {
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": metadata,
            "eventTime": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            "reportingController": self._controller,
            "reportingInstance": self._instance[:128],
            "action": action,
            "type": kind,
            "reason": reason,
            "note": note[:NOTE_LENGTH],
            "regarding": {
                "apiVersion": COLLECTIONS[regarding.kind][0],
                "kind": regarding.kind,
                "namespace": regarding.namespace,
                "name": regarding.name,
                "uid": regarding.uid,
            },
        }
        try:
            self._queue.put_nowait(event)
        except asyncio.QueueFull:
            log.warning("event_dropped", extra={"regarding": str(regarding), "reason": reason, "note": note})

    def _is_repeated(self, key: tuple[str, str, str]) -> bool:
        now_s = time.monotonic()
        while self._sent_s and now_s - next(iter(self._sent_s.values())) >= REPEAT_AFTER_S:
            del self._sent_s[next(iter(self._sent_s))]
        if key in self._sent_s:
            return True
        self._sent_s[key] = now_s
        if len(self._sent_s) > REMEMBERED:
            del self._sent_s[next(iter(self._sent_s))]
        return False

    async def run(self) -> None:
        """Send for ever. An Event that is refused is logged and dropped: what it says stands elsewhere, too."""
        while True:
            event = await self._queue.get()
            collection = path("events.k8s.io/v1", "events", namespace=event["metadata"]["namespace"])
            try:
                await self._client.create(collection, event)
            except PartitaError as error:
                extra = {"reason": event["reason"], "note": event["note"], "error": str(error)}
                log.warning("event_not_sent", extra=extra)
