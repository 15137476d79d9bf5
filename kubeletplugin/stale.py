"""Claims that are gone from the API server while this node still holds devices for them.

The kubelet gives back what a pod held when its containers have ended, also when somebody deleted the pod by force and
its claim went at once. So a claim that is gone may still be used: its devices are given back here only when the kubelet
has had time to do so, and has forgotten.
"""

import time
from collections.abc import Callable, Iterable
from typing import Protocol, TypeVar

from api.client import Client, NotFound, path
from api.resources import allocated_devices
from kubeletplugin.driver import CLAIM_API


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

    async def find(self, records: Iterable[Held]) -> list[Held]:
        """Those to be given back: gone for as long as the grace, or never completed. Raises ApiError."""
        return [record for record in tuple(records) if await self._is_stale(record)]

    def next_due_s(self, otherwise_s: float) -> float:
        """Seconds until the next may be given back, at most `otherwise_s`."""
        now = self._clock()
        return min([otherwise_s, *(max(0.0, since + self._grace_s - now) for since in self._gone_since.values())])

    def postpone(self, uid: str, for_s: float) -> None:
        """It is in use all the same: due again after that, at most after the grace."""
        self._gone_since[uid] = self._clock() - max(0.0, self._grace_s - for_s)

    def forget(self, uid: str) -> None:
        """Its record is gone, or its claim is back."""
        self._gone_since.pop(uid, None)

    async def _is_stale(self, record: HeldClaim) -> bool:
        if await self._still_holds(record):
            self.forget(record.uid)
            return False
        now = self._clock()
        since = self._gone_since.setdefault(record.uid, now)
        is_due = not record.is_complete or now >= since + self._grace_s
        if is_due:
            self._gone_since[record.uid] = now  # where giving it back fails, the next attempt has its time
        return is_due

    async def _still_holds(self, record: HeldClaim) -> bool:
        """Whether the claim is there, and has these devices of this node."""
        where = path(CLAIM_API, "resourceclaims", namespace=record.namespace, name=record.name)
        try:
            claim = await self._client.get(where)
        except NotFound:
            return False
        if claim["metadata"]["uid"] != record.uid:
            return False
        allocated = {result["device"] for result in allocated_devices(claim, record.driver, self._node)}
        return allocated.issuperset(record.device_names)
