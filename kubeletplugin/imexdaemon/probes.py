"""GET /readyz and /livez. A kubelet's /readyz is held open until the state changes, so that it learns of it at once.

A kubelet that asks every second learns of readiness half a second late, and asks 3,600 times an hour. Held, one request
is open all the time: it is answered 200 the moment the state becomes ready, 503 the moment it stops being so. Everybody
else is answered at once.

Who the kubelet is cannot be told: its address depends on the network plugin, and anybody may use its name. So what an
asker was told is remembered for its own address only, and little is held: who takes that from the kubelet makes it ask
every second again, and no more.
"""

import asyncio
import logging
from typing import Final

from api.clique import DAEMON_PROBE_TIMEOUT_S
from kubeletplugin.imexdaemon.readiness import Readiness

log = logging.getLogger(__name__)

HOLD_S: Final = DAEMON_PROBE_TIMEOUT_S - 5.0
RECENT_S: Final = 3.0
"""A kubelet asks again within its period of 1 s; one that comes later was restarted, and may know nothing."""

MOST_HELD: Final = 4
MOST_ASKERS: Final = 16
MOST_CONNECTIONS: Final = 64

_REQUEST_TIMEOUT_S: Final = 5.0


class State:
    """The daemon's readiness, and a way to wait for its change."""

    def __init__(self) -> None:
        self._value = Readiness(False, "the daemon has just started")
        self._changed = asyncio.Event()

    @property
    def value(self) -> Readiness:
        return self._value

    def set(self, value: Readiness) -> None:
        if value.ready != self._value.ready:
            log.info("readiness", extra={"ready": value.ready, "reason": value.message})
            self._changed.set()
            self._changed = asyncio.Event()
        self._value = value

    async def wait_for_change(self, limit_s: float) -> None:
        """Returns when `ready` flips, or after `limit_s`."""
        try:
            async with asyncio.timeout(limit_s):
                await self._changed.wait()
        except TimeoutError:
            return


class Probes:
    """The HTTP server."""

    def __init__(self, state: State, hold_s: float = HOLD_S) -> None:
        self._state = state
        self._hold_s = hold_s
        self._told: dict[str, tuple[bool, float]] = {}
        """By address of the askers: whether they were told that it is ready, and when. The last is the newest."""
        self._connections = self._held = 0

    async def serve(self, port: int) -> asyncio.Server:
        return await asyncio.start_server(self._answer, port=port, reuse_address=True)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections += 1
        try:
            if self._connections > MOST_CONNECTIONS:
                return
            async with asyncio.timeout(_REQUEST_TIMEOUT_S):
                head = await reader.readuntil(b"\r\n\r\n")
            status, text = await self._find(head, reader, str(writer.get_extra_info("peername", ("",))[0]))
            body = f"{text}\n".encode()
            phrase = {200: "OK", 404: "Not Found", 503: "Service Unavailable"}[status]
            fields = f"Content-Type: text/plain; charset=utf-8\r\nContent-Length: {len(body)}\r\nConnection: close"
            writer.write(f"HTTP/1.1 {status} {phrase}\r\n{fields}\r\n\r\n".encode() + body)
            await writer.drain()
        except (OSError, TimeoutError, IndexError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
            log.debug("probe_broken_off", extra={"error": str(error)})
        finally:
            self._connections -= 1
            writer.close()

    async def _find(self, head: bytes, reader: asyncio.StreamReader, asker: str) -> tuple[int, str]:
        path = head.split(b" ", 2)[1].partition(b"?")[0]
        if path == b"/livez":
            return 200, "ok"
        if path != b"/readyz":
            return 404, "right would be /readyz or /livez"
        if b"kube-probe/" in head:
            await self._tell_kubelet(reader, asker)
        value = self._state.value
        return (200 if value.ready else 503), value.message

    async def _tell_kubelet(self, reader: asyncio.StreamReader, asker: str) -> None:
        """Hold while the kubelet knows the state already; it takes a pod for not ready until it is told otherwise."""
        loop = asyncio.get_running_loop()
        told_ready, told_at_s = self._told.get(asker, (False, 0.0))
        knows = self._state.value.ready is told_ready and (not told_ready or loop.time() - told_at_s < RECENT_S)
        if knows and self._held < MOST_HELD:
            await self._hold(reader)
        self._told.pop(asker, None)
        self._told[asker] = self._state.value.ready, loop.time()
        if len(self._told) > MOST_ASKERS:
            del self._told[next(iter(self._told))]

    async def _hold(self, reader: asyncio.StreamReader) -> None:
        """Until the state changes, or the asker goes away."""
        self._held += 1
        change = asyncio.create_task(self._state.wait_for_change(self._hold_s))
        gone = asyncio.create_task(reader.read(1))
        try:
            await asyncio.wait((change, gone), return_when=asyncio.FIRST_COMPLETED)
            if gone.done() and not change.done():
                raise ConnectionResetError("the asker went away")
        finally:
            self._held -= 1
            change.cancel()
            gone.cancel()
