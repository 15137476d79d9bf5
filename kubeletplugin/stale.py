"""Claims that are gone from the API server while this node still holds devices for them.

The kubelet gives back what a pod held when its containers have ended, also when somebody deleted the pod by force and
its claim went at once. So a claim that is gone may still be used: its devices are given back here only when the kubelet
has had time to do so, and has forgotten.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Iterable
from typing import Final, Protocol, TypeVar

from api.client import ApiError, Client, NotFound, path
from api.errors import PartitaError
from api.names import DRA_API_VERSION
from api.resources import allocated_devices

log = logging.getLogger(__name__)

SWEEP_INTERVAL_S: Final = 600.0
_FAILED_AGAIN_S: Final = 30.0  # what refused may refuse for long, and whoever waits for a device asks himself
_LEAST_PAUSE_S: Final = 1.0


class HeldClaim(Protocol):
    """A claim that this node has prepared, or has begun to."""

    @property
    def driver(self) -> str: ...
    @property
    def uid(self) -> str: ...
    @property
    def namespace(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def claim(self) -> str: ...
    @property
    def is_complete(self) -> bool: ...
    @property
    def device_names(self) -> tuple[str, ...]: ...


Held = TypeVar("Held", bound=HeldClaim)


class StaleClaims:
    """What is known of the claims of one driver that are gone."""

    def __init__(self, client: Client, node: str, grace_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        """`node` is also the name of the pool that its devices are in."""
        self._client = client
        self._node = node
        self._grace_s = grace_s
        self._clock = clock
        self._gone_since: dict[str, float] = {}
        self._asked = asyncio.Event()

    def ask(self) -> None:
        """Let `run` sweep now: somebody waits for what a claim holds."""
        self._asked.set()

    async def run(
        self, driver: str, sweep: Callable[[], Awaitable[float]], recorded: Callable[[], Collection[str]]
    ) -> None:
        """Call `sweep` until cancelled: when the next claim is due, or `ask` was called, at the latest after as many
        seconds as it returns.

        `recorded`: UIDs of all claims that have a record.
        """
        while True:
            self._asked.clear()
            at_least_s, otherwise_s = 0.0, SWEEP_INTERVAL_S
            try:
                otherwise_s = await sweep()
            except PartitaError as error:
                log.warning("sweep_failed", extra={"driver": driver, "error": str(error)})
                at_least_s = _FAILED_AGAIN_S
            try:
                async with asyncio.timeout(max(at_least_s, self.next_due_s(recorded(), otherwise_s))):
                    await self._asked.wait()
            except TimeoutError:
                continue  # nobody asked: it is time

    async def sweep(self, records: Iterable[Held], give_back: Callable[[Held], Awaitable[bool]]) -> int:
        """Give back what those of these claims hold that are stale, each when it was asked for; how many. Raises
        ApiError, after which the rest has not been asked for.

        `give_back` is false where it must not be, for now. One that cannot be given back keeps no other waiting. Nobody
        holds a lock while the API server is asked: when `give_back` has those that it needs, the claim may be back.
        """
        swept = 0
        for record in tuple(records):
            if not await self.is_stale(record):
                continue
            try:
                if not await give_back(record):
                    continue
            except PartitaError as error:
                log.error("stale_claim_stays", extra={"claim": record.claim, "error": str(error)})
                self.postpone(record.uid, _FAILED_AGAIN_S)
                continue
            log.warning("stale_claim", extra={"claim": record.claim, "claim_uid": record.uid})
            swept += 1
        return swept

    async def try_sweep(
        self, driver: str, records: Iterable[Held], give_back: Callable[[Held], Awaitable[bool]]
    ) -> int:
        """The same for somebody who waits; an API server that is away says nothing of claims."""
        try:
            return await self.sweep(records, give_back)
        except ApiError as error:
            log.warning("sweep_failed", extra={"driver": driver, "error": str(error)})
            return 0

    def is_gone(self, uid: str) -> bool:
        """Whether nobody has asked for the claim, or has seen it, since it was found gone."""
        return uid in self._gone_since

    def next_due_s(self, recorded: Collection[str], otherwise_s: float) -> float:
        """Seconds until the next may be given back, at most `otherwise_s`.

        `recorded` as in `run`: another instance may have removed the record of a claim that is known here.
        """
        self._gone_since = {uid: since for uid, since in self._gone_since.items() if uid in recorded}
        now = self._clock()
        due_s = min([otherwise_s, *(since + self._grace_s - now for since in self._gone_since.values())])
        return max(_LEAST_PAUSE_S, due_s)

    def postpone(self, uid: str, for_s: float) -> None:
        """It is in use all the same, or cannot be given back: due again after that, at most after the grace."""
        self._gone_since[uid] = self._clock() - max(0.0, self._grace_s - for_s)

    def forget(self, uid: str) -> None:
        """Its record is gone, its claim is back, or somebody asks for it."""
        self._gone_since.pop(uid, None)

    async def is_stale(self, record: HeldClaim) -> bool:
        """Whether it is to be given back: gone for as long as the grace, or never completed. Raises ApiError."""
        if await self._still_holds(record):
            self.forget(record.uid)
            return False
        now = self._clock()
        since = self._gone_since.setdefault(record.uid, now)
        return not record.is_complete or now >= since + self._grace_s

    async def _still_holds(self, record: HeldClaim) -> bool:
        """Whether the claim is there, and has these devices of this node."""
        where = path(DRA_API_VERSION, "resourceclaims", namespace=record.namespace, name=record.name)
        try:
            claim = await self._client.get(where)
        except NotFound:
            return False
        if claim["metadata"]["uid"] != record.uid:
            return False
        allocated = {result["device"] for result in allocated_devices(claim, record.driver, self._node)}
        return allocated.issuperset(record.device_names)
