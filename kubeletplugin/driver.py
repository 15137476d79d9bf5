"""One claim in, one result out: what every driver's prepare and unprepare have in common.

Fetches the claim, lets concurrent calls for one claim share one preparation, retries what may pass inside the call
(the kubelet's own retry comes after 60 to 90 s), and answers before the kubelet's deadline of 45 s.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Coroutine
from typing import Any, Final, Protocol

from api.client import Client, Forbidden, Json, NotFound, back_off_s, path
from api.errors import Busy, ClaimError, InvalidObject, PartitaError, Retryable
from api.events import Recorder
from api.logs import add_to_log_context, log_context
from api.names import DRA_API_VERSION
from api.ref import Ref
from kubeletplugin.hardware.backend import DeviceBusy, LibraryMissing
from kubeletplugin.metrics import RequestMetrics
from kubeletplugin.model.checkpoint import ClaimRecord
from kubeletplugin.model.devices import DeviceSet, Features
from kubeletplugin.server import ClaimRef, DeviceHealth, ReadyDevice

log = logging.getLogger(__name__)

RETRY_FOR_S: Final = 38.0
BUSY_RETRY_FOR_S: Final = 5.0  # a claim that rightly holds the device does so until its pod ends
ANSWER_AFTER_S: Final = 41.0  # the kubelet gives up after 45
_RETRY_DELAYS_S: Final = (0.25, 3.0)
_TRANSIENT: Final = (Retryable, DeviceBusy, LibraryMissing)
_OPPOSITE: Final = {"prepare": "unprepare", "unprepare": "prepare"}


class NotAllowedYet(Retryable):
    """The API server does not let us read the claim; one that has just started knows no roles yet."""

    reason = "Forbidden"


class NodeDriver(Protocol):
    """One vendor's devices on this node."""

    name: str
    interruptible: bool
    """`prepare` may be cancelled wherever it waits: it changes nothing before it has stopped waiting."""

    async def recover(self) -> None:
        """Finish or undo what an earlier run left; returns when claims can be served."""

    async def prepare(self, claim: Json, ref: ClaimRef) -> tuple[ReadyDevice, ...]:
        """`claim` as the API server has it. Raises PartitaError; what is left half done, a retry finds."""

    async def unprepare(self, ref: ClaimRef) -> None:
        """A claim that is not known is success. Raises PartitaError."""

    def offer(self, features: Features) -> DeviceSet:
        """What to publish now."""

    def health(self) -> tuple[DeviceHealth, ...]:
        """Of every device that `offer` has."""

    async def run(self, changed: Callable[[], None]) -> None:
        """Watch the hardware until cancelled, calling `changed` after whatever alters `offer` or `health`."""


def ready_devices(record: ClaimRecord) -> tuple[ReadyDevice, ...]:
    """What the kubelet is told of a prepared claim."""
    return tuple(
        ReadyDevice((device.request,), device.pool, device.device, device.cdi_ids, device.share_id)
        for device in record.devices
    )


class _Running:
    """Work on one claim that has no answer yet, and those who wait for it."""

    def __init__(self) -> None:
        self.task: asyncio.Task[None] | None = None
        self.callers: list[asyncio.Future[Any]] = []

    def tell(self, result: Any) -> None:
        """All who wait; says nothing to those who have their answer, or have gone."""
        for caller in self.callers:
            if not caller.done():
                caller.set_result(result)


class ClaimService:
    """`kubeletplugin.server.Claims` for one driver."""

    def __init__(
        self,
        driver: NodeDriver,
        client: Client,
        events: Recorder,
        tasks: asyncio.TaskGroup,
        changed: Callable[[], None],
    ) -> None:
        self._driver = driver
        self._client = client
        self._events = events
        self._tasks = tasks
        self._changed = changed
        self._running: dict[tuple[str, str], _Running] = {}
        self._metrics = {operation: RequestMetrics(driver.name, operation) for operation in ("prepare", "unprepare")}

    async def prepare(self, ref: ClaimRef) -> tuple[ReadyDevice, ...] | str:
        result: tuple[ReadyDevice, ...] | str = await self._join("prepare", ref, self._prepare)
        return result

    async def unprepare(self, ref: ClaimRef) -> str | None:
        result = await self._join("unprepare", ref, self._unprepare)
        return result if isinstance(result, str) else None

    async def _join(self, operation: str, ref: ClaimRef, work: Callable[[ClaimRef], Coroutine[Any, Any, Any]]) -> Any:
        """Start the work, or share the one that is under way; a caller that goes away does not end it."""
        running = self._running.get((operation, ref.uid)) or self._start(operation, ref, work)
        answer = asyncio.get_running_loop().create_future()
        running.callers.append(answer)
        try:
            async with asyncio.timeout(ANSWER_AFTER_S):
                return await answer
        except TimeoutError:
            return (
                f"claim {ref}: {operation} is still under way after {ANSWER_AFTER_S:.0f} s; the next attempt joins it"
            )

    def _start(self, operation: str, ref: ClaimRef, work: Callable[[ClaimRef], Coroutine[Any, Any, Any]]) -> _Running:
        # Only what was there before: two that waited for each other would wait for ever. And nobody joins it any more:
        # whoever asks for the opposite after this wants it done after this.
        opposite = self._running.pop((_OPPOSITE[operation], ref.uid), None)
        earlier = opposite.task if opposite else None
        if earlier is not None and operation == "unprepare" and self._driver.interruptible:
            earlier.cancel()  # its pod is being deleted, and must not wait with it
        running = self._running[operation, ref.uid] = _Running()
        running.task = self._tasks.create_task(self._work(operation, ref, work, earlier, running))
        given_up = f"claim {ref}: {operation} was given up, for the claim is unprepared now"
        running.task.add_done_callback(lambda _: self._finish(operation, ref, running, given_up))
        return running

    def _finish(self, operation: str, ref: ClaimRef, running: _Running, result: Any) -> None:
        """Whoever comes from now on starts anew."""
        if self._running.get((operation, ref.uid)) is running:
            del self._running[operation, ref.uid]
        running.tell(result)

    async def _work(
        self,
        operation: str,
        ref: ClaimRef,
        work: Callable[[ClaimRef], Coroutine[Any, Any, Any]],
        earlier: asyncio.Task[None] | None,
        running: _Running,
    ) -> None:
        """Tell the result, or what went wrong as a sentence."""
        metrics = self._metrics[operation]
        started_s = time.perf_counter()
        with log_context(driver=self._driver.name, claim=str(ref), claim_uid=ref.uid, op=secrets.token_hex(4)):
            if earlier is not None:
                await asyncio.wait((earlier,))
            try:
                with metrics.measure():
                    result = await self._retry(work, ref)
            except PartitaError as error:
                self._finish(operation, ref, running, self._fail(operation, ref, error.reason, str(error)))
                return
            except Exception as error:  # a defect must cost one claim, not every claim of the node
                log.exception("defect")
                message = self._fail(operation, ref, "InternalError", f"{type(error).__name__}: {error}")
                self._finish(operation, ref, running, message)
                return
            took_ms = round((time.perf_counter() - started_s) * 1e3, 2)
            self._finish(operation, ref, running, result)
            await asyncio.sleep(0)  # the kubelet has its answer before anybody is told of it
            metrics.succeed()
            log.info(f"claim_{operation}d", extra={"took_ms": took_ms})
            self._changed()

    def _fail(self, operation: str, ref: ClaimRef, reason: str, message: str) -> str:
        self._metrics[operation].fail(reason)
        log.error(f"claim_not_{operation}d", extra={"reason": reason, "error": message})
        regarding = Ref("ResourceClaim", ref.namespace, ref.name, ref.uid)
        self._events.warn(regarding, reason, operation.capitalize(), message)
        return message

    async def _retry(self, work: Callable[[ClaimRef], Coroutine[Any, Any, Any]], ref: ClaimRef) -> Any:
        delays: Any = None
        started_s = time.monotonic()
        while True:
            try:
                return await work(ref)
            except InvalidObject:
                raise
            except _TRANSIENT as error:
                delays = delays or back_off_s(*_RETRY_DELAYS_S)
                delay_s = next(delays)
                patience_s = BUSY_RETRY_FOR_S if isinstance(error, Busy) else RETRY_FOR_S
                if time.monotonic() + delay_s > started_s + patience_s:
                    raise
                log.warning("retrying", extra={"error": str(error), "retry_in_s": round(delay_s, 2)})
                await asyncio.sleep(delay_s)

    async def _prepare(self, ref: ClaimRef) -> tuple[ReadyDevice, ...]:
        where = path(DRA_API_VERSION, "resourceclaims", namespace=ref.namespace, name=ref.name)
        try:
            claim = await self._client.get(where)
        except NotFound as error:
            raise ClaimError(str(ref), "it does not exist any more", reason="ClaimGone") from error
        except Forbidden as error:
            raise NotAllowedYet(f"claim {ref}: {error}") from error
        consumers = (claim.get("status") or {}).get("reservedFor") or ()
        if consumers:
            add_to_log_context(pod=",".join(f"{ref.namespace}/{each['name']}" for each in consumers))
        return await self._driver.prepare(claim, ref)

    async def _unprepare(self, ref: ClaimRef) -> None:
        await self._driver.unprepare(ref)
