"""One claim in, one result out: sharing, order, retries and errors, whatever the driver."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from api.client import Forbidden, Json, NotFound, Unavailable
from api.errors import Busy, ClaimError
from api.ref import Ref
from kubeletplugin import driver as driver_module
from kubeletplugin.driver import ClaimService
from kubeletplugin.model.devices import DeviceSet, Features
from kubeletplugin.server import ClaimRef, DeviceHealth, ReadyDevice

REF = ClaimRef("x", "y", "u1")
DEVICE = ReadyDevice(("r0",), "n1", "gpu-0", ("v/claim=u1",))


class Api:
    """Knows claims by path; `failures` are raised first."""

    def __init__(self, *failures: Exception, known: bool = True) -> None:
        self._failures = list(failures)
        self._known = known

    async def get(self, path: str) -> Json:
        if self._failures:
            raise self._failures.pop(0)
        if not self._known:
            raise NotFound(f"GET {path}: not found (404)", 404)
        return {"metadata": {"uid": "u1"}}


class Rack:
    """A driver of one device: what it holds, in which order it was used, and how it is made to fail."""

    name = "rack.example.com"
    interruptible = False

    def __init__(self, *failures: Exception) -> None:
        self.held: set[str] = set()
        self.story: list[str] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self._failures = list(failures)

    async def recover(self) -> None:
        self.story.append("recover")

    async def prepare(self, claim: Json, ref: ClaimRef) -> tuple[ReadyDevice, ...]:
        self.story.append("prepare")
        await self.gate.wait()
        if self._failures:
            raise self._failures.pop(0)
        self.held.add(ref.uid)
        return (DEVICE,)

    async def unprepare(self, ref: ClaimRef) -> None:
        self.story.append("unprepare")
        await self.gate.wait()
        self.held.discard(ref.uid)

    def offer(self, features: Features) -> DeviceSet:
        return DeviceSet()

    def health(self) -> tuple[DeviceHealth, ...]:
        return ()

    async def run(self, changed: Callable[[], None]) -> None:
        await asyncio.Event().wait()


class Board:
    """Where Events go."""

    def __init__(self) -> None:
        self.pinned: list[tuple[str, str, str]] = []

    def warn(self, regarding: Ref, reason: str, action: str, note: str) -> None:
        self.pinned.append((str(regarding), reason, action))


def run(rack: Rack, api: Api, scenario: Callable[[ClaimService, Board], Awaitable[None]]) -> None:
    async def main() -> None:
        board: Any = Board()
        client: Any = api
        async with asyncio.TaskGroup() as tasks:
            await scenario(ClaimService(rack, client, board, tasks, lambda: None), board)

    asyncio.run(main())


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver_module, "_RETRY_DELAYS_S", (0.01, 0.01))
    monkeypatch.setattr(driver_module, "BUSY_RETRY_FOR_S", 0.1)


def test_concurrent_calls_for_one_claim_share_one_preparation() -> None:
    rack = Rack()

    async def scenario(claims: ClaimService, _: Board) -> None:
        assert set(await asyncio.gather(*(claims.prepare(REF) for _ in range(5)))) == {(DEVICE,)}
        assert rack.story == ["prepare"]

    run(rack, Api(), scenario)


def test_whoever_asks_again_the_moment_it_has_its_answer_starts_anew() -> None:
    """The work before is still being logged then."""
    rack = Rack()

    async def scenario(claims: ClaimService, _: Board) -> None:
        assert [await claims.prepare(REF) for _ in range(3)] == [(DEVICE,)] * 3
        assert rack.story == ["prepare"] * 3

    run(rack, Api(), scenario)


def test_a_caller_that_goes_away_does_not_end_the_work() -> None:
    rack = Rack()
    rack.gate.clear()

    async def scenario(claims: ClaimService, _: Board) -> None:
        caller = asyncio.ensure_future(claims.prepare(REF))
        await asyncio.sleep(0)
        caller.cancel()
        await asyncio.sleep(0)
        rack.gate.set()
        assert await claims.prepare(REF) == (DEVICE,)
        assert rack.held == {"u1"}

    run(rack, Api(), scenario)


def test_unprepare_waits_for_the_preparation_before_it_and_the_other_way_round() -> None:
    rack = Rack()

    async def scenario(claims: ClaimService, _: Board) -> None:
        await asyncio.gather(claims.prepare(REF), claims.unprepare(REF))
        assert rack.held == set()
        await asyncio.gather(claims.unprepare(REF), claims.prepare(REF))
        assert rack.held == {"u1"}

    run(rack, Api(), scenario)


def test_a_preparation_that_is_asked_for_after_an_unprepare_comes_after_it() -> None:
    """It does not join the one before: what that yields is taken away again at once."""
    rack = Rack()
    rack.gate.clear()

    async def scenario(claims: ClaimService, _: Board) -> None:
        calls = [asyncio.ensure_future(each(REF)) for each in (claims.prepare, claims.unprepare, claims.prepare)]
        await asyncio.sleep(0)
        rack.gate.set()
        assert await asyncio.gather(*calls) == [(DEVICE,), None, (DEVICE,)]
        assert (rack.story, rack.held) == (["prepare", "unprepare", "prepare"], {"u1"})
        calls = [asyncio.ensure_future(each(REF)) for each in (claims.unprepare, claims.prepare, claims.unprepare)]
        assert await asyncio.gather(*calls) == [None, (DEVICE,), None]
        assert rack.held == set()

    run(rack, Api(), scenario)


def test_what_may_pass_is_retried_inside_the_call() -> None:
    rack = Rack(Busy("held"))

    async def scenario(claims: ClaimService, board: Board) -> None:
        assert await claims.prepare(REF) == (DEVICE,)
        assert board.pinned == []

    run(rack, Api(Unavailable("no answer"), Unavailable("no answer")), scenario)


def test_an_api_server_that_knows_no_roles_yet_is_asked_again_inside_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    refusal = Forbidden("GET claim: cannot get resourceclaims (403)", 403)

    async def scenario(claims: ClaimService, board: Board) -> None:
        assert await claims.prepare(REF) == (DEVICE,)
        assert board.pinned == []

    async def in_vain(claims: ClaimService, board: Board) -> None:
        assert await claims.prepare(REF) == "claim x/y: GET claim: cannot get resourceclaims (403)"
        assert board.pinned == [("x/y", "Forbidden", "Prepare")]

    run(Rack(), Api(refusal, refusal), scenario)
    monkeypatch.setattr(driver_module, "RETRY_FOR_S", 0.1)
    run(Rack(), Api(*[refusal] * 1000), in_vain)


@pytest.mark.parametrize(
    ("api", "rack", "message", "reason"),
    [
        (Api(known=False), Rack, "claim x/y: it does not exist any more", "ClaimGone"),
        (Api(), lambda: Rack(ClaimError("x/y", "wrong")), "claim x/y: wrong", "InvalidClaim"),
        (Api(), lambda: Rack(*[Busy("claim a/b holds it")] * 99), "claim a/b holds it", "Busy"),
        (Api(), lambda: Rack(ZeroDivisionError("oops")), "ZeroDivisionError: oops", "InternalError"),
    ],
    ids=["gone", "invalid", "busy too long", "defect"],
)
def test_a_failure_is_the_claims_own_answer_and_an_event_on_it(
    api: Api, rack: Callable[[], Rack], message: str, reason: str
) -> None:
    async def scenario(claims: ClaimService, board: Board) -> None:
        assert await claims.prepare(REF) == message
        assert board.pinned == [("x/y", reason, "Prepare")]

    run(rack(), api, scenario)


def test_an_answer_comes_before_the_kubelets_deadline_and_the_work_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver_module, "ANSWER_AFTER_S", 0.05)
    rack = Rack()
    rack.gate.clear()

    async def scenario(claims: ClaimService, _: Board) -> None:
        assert "still under way" in str(await claims.prepare(REF))
        rack.gate.set()
        assert await claims.prepare(REF) == (DEVICE,)
        assert rack.story == ["prepare"]

    run(rack, Api(), scenario)
