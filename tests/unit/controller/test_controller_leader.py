"""Leader election: one acts at a time, and the next one soon."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from limited import run_limited

from api.client import Conflict, NotFound
from api.identity import ServiceAccount
from controller.leader import Elector, LeadershipLost, LeaseSettings, SeenLease, build_lease, is_free

LEASE = LeaseSettings("ns", "lease", "me", duration_s=15.0, renew_deadline_s=10.0, retry_period_s=1.0)


@pytest.mark.parametrize(
    ("holder", "silent_s", "free"),
    [("", 0.0, True), ("me", 0.0, True), ("other", 14.9, False), ("other", 15.0, True)],
)
def test_a_lease_is_free_when_nobody_we_or_somebody_silent_holds_it(holder: str, silent_s: float, free: bool) -> None:
    assert is_free(SeenLease("1", holder, 0, changed_at=100.0), LEASE, now=100.0 + silent_s) is free


def test_taking_a_lease_counts_and_releasing_it_names_nobody() -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    taken = build_lease(LEASE, SeenLease("7", "other", 3, 0.0), now)
    assert taken["spec"]["leaseTransitions"] == 4 and taken["spec"]["holderIdentity"] == "me"
    assert taken["metadata"]["resourceVersion"] == "7"
    released = build_lease(LEASE, SeenLease("8", "me", 4, 0.0), now, release=True)
    assert released["spec"]["holderIdentity"] == "" and released["spec"]["leaseTransitions"] == 4


def test_a_lease_goes_with_the_account_of_its_namespace() -> None:
    before, now = SeenLease("7", "me", 3, 0.0), datetime.now(UTC)
    owned = build_lease(LEASE, before, now, ServiceAccount("ns", "sa", "u"))
    assert [owner["uid"] for owner in owned["metadata"]["ownerReferences"]] == ["u"]
    for owner in (ServiceAccount("elsewhere", "sa", "u"), None):
        assert "ownerReferences" not in build_lease(LEASE, before, now, owner)["metadata"]


def test_a_renewal_leaves_it_told_since_when_the_lease_is_held() -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    taken = build_lease(LEASE, SeenLease("7", "other", 3, 0.0, "2025-01-01T00:00:00.000000Z"), now)
    assert taken["spec"]["acquireTime"] == "2026-01-01T00:00:00.000000Z"
    renewed = build_lease(LEASE, SeenLease("8", "me", 4, 0.0, "2025-06-01T00:00:00.000000Z"), now)
    assert renewed["spec"]["acquireTime"] == "2025-06-01T00:00:00.000000Z"


class LeaseServer:
    """The API server, for one Lease. `slow` says of each write, counted from 0, how long its answer takes."""

    def __init__(self, slow: Callable[[int], float]) -> None:
        self.stored: dict[str, Any] = {}
        self.written_at: list[float] = []
        self.renewing = asyncio.Event()
        self._written = asyncio.Condition()
        self._slow = slow

    async def service_account(self) -> None:
        return None

    async def wait_written(self, times: int) -> None:
        async with self._written:
            await self._written.wait_for(lambda: len(self.written_at) >= times)

    async def get(self, path: str) -> dict[str, Any]:
        if not self.stored:
            raise NotFound("no lease (404)", 404)
        return self.stored

    async def create(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        return await self.update(path, body)

    async def update(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        version = self.stored.get("metadata", {}).get("resourceVersion")
        if body["metadata"].get("resourceVersion") != version:
            raise Conflict("the lease is newer (409)", 409)
        metadata = {**body["metadata"], "resourceVersion": str(int(version or 0) + 1)}
        self.stored = {**body, "metadata": metadata}
        self.written_at.append(asyncio.get_running_loop().time())
        if len(self.written_at) == 2:
            self.renewing.set()
        async with self._written:
            self._written.notify_all()
        await asyncio.sleep(self._slow(len(self.written_at) - 1))
        return {**body, "metadata": metadata}


def _elect(server: LeaseServer, settings: LeaseSettings) -> Elector:
    client: Any = server
    return Elector(client, settings)


def test_a_leader_whose_renewals_are_answered_late_has_stopped_before_another_may_begin() -> None:
    """Another counts from the write; so the deadline does from before it, and no answer is waited for past it."""
    settings = replace(LEASE, duration_s=1.5, renew_deadline_s=1.0, retry_period_s=0.1)
    server = LeaseServer(lambda number: (0.0, 0.45)[number] if number < 2 else 60.0)

    async def scenario() -> float:
        stopped_at = 0.0

        async def lead() -> None:
            nonlocal stopped_at
            try:
                await asyncio.Event().wait()
            finally:
                stopped_at = asyncio.get_running_loop().time()

        with pytest.raises(LeadershipLost):
            await _elect(server, settings).run(lead)
        return stopped_at - server.written_at[1]

    assert run_limited(scenario()) < settings.duration_s


@pytest.mark.parametrize("hangs", [1, 2, 5])
def test_one_renewal_that_is_never_answered_costs_no_leadership(hangs: int) -> None:
    settings = replace(LEASE, duration_s=1.5, renew_deadline_s=1.0, retry_period_s=0.1)
    server = LeaseServer(lambda number: 60.0 if number == hangs else 0.0)

    async def scenario() -> None:
        leading = asyncio.ensure_future(_elect(server, settings).run(asyncio.Event().wait))
        waited = asyncio.ensure_future(server.wait_written(hangs + 3))
        await asyncio.wait({leading, waited}, return_when=asyncio.FIRST_COMPLETED)
        assert not leading.done()
        leading.cancel()
        await asyncio.gather(leading, return_exceptions=True)

    run_limited(scenario())


def test_a_stop_during_a_renewal_gives_the_lease_up_all_the_same() -> None:
    """The server has taken the renewal whose answer is not waited for, so what we know of the lease is old."""
    settings = replace(LEASE, retry_period_s=0.01)
    server = LeaseServer(lambda number: 60.0 if number == 1 else 0.0)

    async def scenario() -> None:
        leading = asyncio.ensure_future(_elect(server, settings).run(asyncio.Event().wait))
        await server.renewing.wait()
        leading.cancel()
        await asyncio.gather(leading, return_exceptions=True)

    run_limited(scenario())
    assert server.stored["spec"]["holderIdentity"] == ""
