"""Leader election by a Lease (coordination.k8s.io/v1): one controller acts, the others wait.

The rules are client-go's: the holder renews; who sees no renewal for a lease's duration, by its own clock, takes over;
writes are conditional on the resource version; a holder that cannot renew in time stops before another may begin.
A clean stop gives the lease up, so that the next one begins at its next look.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from api.client import ApiError, Client, Conflict, NotFound, path
from api.errors import PartitaError
from api.identity import ServiceAccount

log = logging.getLogger(__name__)

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class LeaseSettings:
    """`duration_s` > `renew_deadline_s` > `retry_period_s`."""

    namespace: str
    name: str
    identity: str
    duration_s: float
    renew_deadline_s: float
    retry_period_s: float


class LeadershipLost(PartitaError):
    """Another may lead by now: everything that we were doing must end."""

    reason = "LeadershipLost"


@dataclass(frozen=True, slots=True)
class SeenLease:
    """The Lease as last read, and when (by our monotonic clock) it last changed. `version` None: there is none."""

    version: str | None
    holder: str
    transitions: int
    changed_at: float
    acquired: str = ""
    """`acquireTime` of its holder."""


def is_free(lease: SeenLease, settings: LeaseSettings, now: float) -> bool:
    """We may take it: nobody holds it, we do, or its holder was silent for the lease's whole duration."""
    return lease.holder in ("", settings.identity) or now - lease.changed_at >= settings.duration_s


def build_lease(
    settings: LeaseSettings,
    before: SeenLease,
    now: datetime,
    owner: ServiceAccount | None = None,
    *,
    release: bool = False,
) -> Json:
    """The Lease as its holder writes it. It goes with its `owner`: what was uninstalled holds up no successor."""
    moment = now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    taken = before.holder != settings.identity
    metadata: Json = {"name": settings.name, "namespace": settings.namespace}
    if before.version is not None:
        metadata["resourceVersion"] = before.version
    if owner is not None and owner.namespace == settings.namespace:
        metadata["ownerReferences"] = [
            {"apiVersion": "v1", "kind": "ServiceAccount", "name": owner.name, "uid": owner.uid}
        ]
    spec: Json = {
        "holderIdentity": "" if release else settings.identity,
        "leaseDurationSeconds": 1 if release else max(1, round(settings.duration_s)),
        "renewTime": moment,
        "leaseTransitions": before.transitions + (1 if taken else 0),
    }
    acquired = moment if taken else before.acquired
    if acquired:
        spec["acquireTime"] = acquired
    return {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata, "spec": spec}


class Elector:
    """Campaigns for one Lease, for one process."""

    def __init__(self, client: Client, settings: LeaseSettings) -> None:
        self._client = client
        self._settings = settings
        self._collection = path("coordination.k8s.io/v1", "leases", namespace=settings.namespace)
        self._lease = SeenLease(None, "", 0, 0.0)
        self._owner: ServiceAccount | None = None
        self._renewed_at = 0.0
        """By our monotonic clock, when we began the request that took or renewed the lease last."""
        self.leading = False
        self.seen = False
        """The lease was read: the API server can be reached, and lets us."""

    async def run(self, lead: Callable[[], Awaitable[None]]) -> None:
        """Wait until we lead, then `lead` for as long as that lasts. Raises LeadershipLost; on cancel gives it up."""
        self._owner = await self._client.service_account()
        await self._campaign()
        self.leading = True
        log.info("leading", extra={"lease": self._settings.name, "identity": self._settings.identity})
        try:
            await self._lead_and_renew(lead)
        finally:
            self.leading = False
            await self._release()

    async def _campaign(self) -> None:
        holder = ""
        while not await self._try():
            if self._lease.holder != holder:
                holder = self._lease.holder
                log.info("standing_by", extra={"lease": self._settings.name, "holder": holder})
            await asyncio.sleep(self._settings.retry_period_s)

    async def _lead_and_renew(self, lead: Callable[[], Awaitable[None]]) -> None:
        work = asyncio.ensure_future(lead())
        renewal = asyncio.ensure_future(self._renew())
        try:
            await asyncio.wait({work, renewal}, return_when=asyncio.FIRST_COMPLETED)
            for task in (work, renewal):
                if task.done():
                    task.result()
        finally:
            # What we do ends before the lease is given up: two leaders at once are what it prevents.
            for task in (work, renewal):
                task.cancel()
            await asyncio.gather(work, renewal, return_exceptions=True)

    async def _renew(self) -> None:
        """For ever. Raises LeadershipLost, at the latest when the deadline after the last renewal has come."""
        # A request that hangs for a third of the deadline leaves time for another.
        most_s = self._settings.renew_deadline_s / 4
        pause_s = min(self._settings.retry_period_s * 2, most_s)
        while True:
            left_s = self._renewed_at + self._settings.renew_deadline_s - time.monotonic()
            try:
                async with asyncio.timeout(max(left_s, 0.0)):
                    await asyncio.sleep(pause_s)
                    renewed = await self._try()
            except TimeoutError as error:
                raise LeadershipLost(f"lease {self._settings.name} could not be renewed in time") from error
            if renewed:
                pause_s = min(pause_s * 2, most_s)
            elif self._lease.holder != self._settings.identity:
                raise LeadershipLost(f"lease {self._settings.name} is held by {self._lease.holder}")
            else:
                pause_s = self._settings.retry_period_s / 2

    async def _try(self) -> bool:
        """Take or renew the lease; False when it is another's, or when nothing can be said."""
        begun_at = time.monotonic()
        try:
            async with asyncio.timeout(self._settings.renew_deadline_s / 3):
                if self._lease.version is None or self._lease.holder != self._settings.identity:
                    await self._look()
                if not is_free(self._lease, self._settings, time.monotonic()):
                    return False
                await self._write(release=False)
                self._renewed_at = begun_at
                return True
        except NotFound:
            self._lease = SeenLease(None, "", 0, time.monotonic())  # deleted: another may have made its own by now
        except Conflict:
            await self._look_again()
        except (ApiError, TimeoutError) as error:
            log.warning("lease_unreachable", extra={"lease": self._settings.name, "error": str(error)})
        return False

    async def _look_again(self) -> None:
        try:
            await self._look()
        except ApiError as error:
            log.warning("lease_unreachable", extra={"lease": self._settings.name, "error": str(error)})

    async def _look(self) -> None:
        try:
            raw = await self._client.get(f"{self._collection}/{self._settings.name}")
        except NotFound:
            self._lease = SeenLease(None, "", 0, time.monotonic())
        else:
            self._take(raw)
        self.seen = True

    async def _write(self, *, release: bool) -> None:
        body = build_lease(self._settings, self._lease, datetime.now(UTC), self._owner, release=release)
        if self._lease.version is None:
            self._take(await self._client.create(self._collection, body))
        else:
            self._take(await self._client.update(f"{self._collection}/{self._settings.name}", body))

    def _take(self, raw: Json) -> None:
        version, spec = raw["metadata"]["resourceVersion"], raw.get("spec") or {}
        if version != self._lease.version:
            holder, transitions = spec.get("holderIdentity") or "", int(spec.get("leaseTransitions") or 0)
            self._lease = SeenLease(version, holder, transitions, time.monotonic(), spec.get("acquireTime") or "")

    async def _release(self) -> None:
        if self._lease.holder != self._settings.identity:
            return
        try:
            async with asyncio.timeout(2.0):
                await self._give_up()
            log.info("lease_released", extra={"lease": self._settings.name})
        except (PartitaError, TimeoutError) as error:
            log.warning("lease_not_released", extra={"lease": self._settings.name, "error": str(error)})

    async def _give_up(self) -> None:
        """A renewal whose answer we did not wait for may have come before, so that the lease is newer than we know."""
        try:
            await self._write(release=True)
        except Conflict:
            await self._look()
            if self._lease.holder == self._settings.identity:
                await self._write(release=True)
