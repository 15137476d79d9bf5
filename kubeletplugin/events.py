"""Events on the objects that people look at, for what somebody must act on. Sending one never delays anything."""

import asyncio
import logging
import time
from datetime import UTC, datetime
from typing import Any, Final

from api.client import Client, path
from api.errors import PartitaError

log = logging.getLogger(__name__)

_REPEAT_AFTER_S: Final = 300.0
_QUEUE: Final = 100
_REMEMBERED: Final = 1000
_NOTE_LIMIT: Final = 1024  # events.k8s.io/v1 Event.note


def node_reference(node: str) -> dict[str, str]:
    """For `Recorder.warn`. As in kubelet's own Events of its node, the name stands for the UID."""
    return {"apiVersion": "v1", "kind": "Node", "name": node, "uid": node}


class Recorder:
    """Writes events.k8s.io/v1 Events; the same one on the same object at most every five minutes."""

    def __init__(self, client: Client, driver: str, node: str) -> None:
        self._client = client
        self._driver = driver
        self._node = node
        self._queue: asyncio.Queue[dict[str, Any]] = asyncio.Queue(_QUEUE)
        self._sent_s: dict[tuple[str, str, str], float] = {}

    def warn(self, regarding: dict[str, str], reason: str, action: str, note: str) -> None:
        """`regarding`: ObjectReference (apiVersion, kind, namespace, name, uid)."""
        key = (regarding.get("uid", regarding["name"]), reason, note)
        now_s = time.monotonic()
        if now_s - self._sent_s.get(key, -_REPEAT_AFTER_S) < _REPEAT_AFTER_S:
            return
        if len(self._sent_s) >= _REMEMBERED:
            self._sent_s.clear()
        self._sent_s[key] = now_s
        # Events of objects without a namespace live in `default`.
        namespace = regarding.get("namespace") or "default"
        now = datetime.now(UTC)
        event = {
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": {"name": f"{regarding['name']}.{time.time_ns():x}", "namespace": namespace},
            "eventTime": now.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            "reportingController": self._driver,
            "reportingInstance": self._node,
            "action": action,
            "reason": reason,
            "regarding": regarding,
            "note": note[:_NOTE_LIMIT],
            "type": "Warning",
        }
        try:
            self._queue.put_nowait(event)
        except asyncio.QueueFull:
            log.warning("event_dropped", extra={"reason": reason, "note": note})

    async def run(self) -> None:
        """Send until cancelled."""
        while True:
            event = await self._queue.get()
            collection = path("events.k8s.io/v1", "events", namespace=event["metadata"]["namespace"])
            try:
                await self._client.create(collection, event)
            except PartitaError as error:
                # An Event is a courtesy: what it says stands in the log and in the reply, too.
                log.warning("event_not_sent", extra={"reason": event["reason"], "error": str(error)})
