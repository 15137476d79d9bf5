"""The shells around the planner, without an API server: queue, caches, lease, settings, applying, certificates."""

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st

from api.client import Conflict, Invalid, NotFound, TooManyRequests, Unavailable
from api.errors import InvalidObject, Retryable
from api.identity import ServiceAccount
from controller.apply import IN_FLIGHT, PartlyApplied, apply_stages
from controller.computedomain.tls import make_certificates
from controller.events import build_event
from controller.leader import Elector, LeadershipLost, LeaseSettings, SeenLease, build_lease, is_free
from controller.loop import WorkQueue, back_off_s
from controller.observe import Cache
from controller.settings import parse_duration, parse_settings

# --- the queue ---------------------------------------------------------------------------------------------------


def _run(work: Awaitable[Any]) -> Any:
    async def limited() -> Any:
        async with asyncio.timeout(10):
            return await work

    return asyncio.run(limited())


def test_a_key_that_comes_while_it_is_in_work_is_looked_at_once_more() -> None:
    async def scenario() -> int:
        queue, seen, done = WorkQueue(), 0, asyncio.Event()

        async def reconcile(key: str) -> None:
            nonlocal seen
            seen += 1
            if seen == 1:
                for _ in range(5):
                    queue.add(key)
            else:
                done.set()

        queue.add("a")
        queue.add("a")
        worker = asyncio.ensure_future(queue.run(reconcile, workers=4))
        await done.wait()
        await asyncio.sleep(0.01)
        worker.cancel()
        return seen

    assert _run(scenario()) == 2


def test_a_key_is_never_in_two_workers_at_once() -> None:
    async def scenario() -> int:
        queue, inside, most, rounds = WorkQueue(), 0, 0, 0
        done = asyncio.Event()

        async def reconcile(key: str) -> None:
            nonlocal inside, most, rounds
            inside += 1
            most = max(most, inside)
            await asyncio.sleep(0.001)
            inside -= 1
            rounds += 1
            if rounds == 10:
                done.set()
            queue.add(key)

        queue.add("a")
        worker = asyncio.ensure_future(queue.run(reconcile, workers=4))
        await done.wait()
        worker.cancel()
        return most

    assert _run(scenario()) == 1


def test_a_key_that_fails_comes_back_and_others_are_not_held_up() -> None:
    async def scenario() -> list[str]:
        queue, seen, done = WorkQueue(), [], asyncio.Event()

        async def reconcile(key: str) -> None:
            seen.append(key)
            if key == "bad" and seen.count("bad") < 3:
                raise Retryable("not yet")
            if seen.count("bad") == 3:
                done.set()

        queue.add("bad")
        queue.add("good")
        worker = asyncio.ensure_future(queue.run(reconcile, workers=1))
        await done.wait()
        worker.cancel()
        return seen

    assert _run(scenario())[:2] == ["bad", "good"]


def test_a_key_can_ask_to_be_looked_at_later_without_a_change() -> None:
    async def scenario() -> int:
        queue, seen, done = WorkQueue(), 0, asyncio.Event()

        async def reconcile(key: str) -> float | None:
            nonlocal seen
            seen += 1
            if seen == 3:
                done.set()
            return 0.005

        queue.add("a")
        worker = asyncio.ensure_future(queue.run(reconcile, workers=1))
        await done.wait()
        worker.cancel()
        return seen

    assert _run(scenario()) >= 3


def test_no_key_is_looked_at_while_the_api_server_wants_to_be_left_alone() -> None:
    async def scenario() -> tuple[list[str], float]:
        queue, seen, done = WorkQueue(), [], asyncio.Event()
        loop = asyncio.get_running_loop()

        async def reconcile(key: str) -> None:
            seen.append(key)
            if len(seen) == 1:
                raise PartlyApplied("too many requests", retry_after_s=0.3)
            if set(seen) == {"a", "b"} and seen.count("a") == 2:
                done.set()

        begun = loop.time()
        worker = asyncio.ensure_future(queue.run(reconcile, workers=4))
        queue.add("a")
        await asyncio.sleep(0.05)
        queue.add("a")
        queue.add("b")
        await asyncio.sleep(0.05)
        assert seen == ["a"]
        await done.wait()
        worker.cancel()
        return seen, loop.time() - begun

    seen, took_s = _run(scenario())
    assert sorted(seen) == ["a", "a", "b"]
    assert took_s >= 0.3


@given(st.integers(1, 500), st.floats(0, 1, exclude_max=True))
def test_back_off_stays_between_its_bounds(failures: int, chance: float) -> None:
    assert 0.05 <= back_off_s(failures, chance) <= 45.0


# --- the caches --------------------------------------------------------------------------------------------------


def _object(name: str, version: int, value: str | None = "x") -> dict[str, Any]:
    return {"metadata": {"name": name, "resourceVersion": str(version)}, "value": value}


def _cache() -> tuple[Cache[str], list[str]]:
    return Cache("/x", lambda obj: obj["value"], {"value": lambda value: [value]}), []


def test_an_older_object_does_not_replace_a_newer_one() -> None:
    cache, changed = _cache()
    cache.record(_object("a", 5, "new"), changed.append)
    cache.record(_object("a", 4, "old"), changed.append)
    assert list(cache.find("value", "new")) == ["new"] and not list(cache.find("value", "old"))


def test_a_change_is_told_with_what_was_and_what_is() -> None:
    cache, changed = _cache()
    cache.record(_object("a", 1, "x"), changed.append)
    cache.record(_object("a", 2, "y"), changed.append)
    cache.record(_object("a", 3, "y"), changed.append)
    assert changed == ["x", "x", "y"]


def test_what_was_deleted_is_not_brought_back_by_a_late_answer() -> None:
    cache, changed = _cache()
    cache.record(_object("a", 1), changed.append)
    cache.forget(_object("a", 3), changed.append)
    cache.record(_object("a", 2), changed.append)
    assert len(cache) == 0
    cache.record(_object("a", 4), changed.append)
    assert len(cache) == 1


def test_an_object_that_stops_being_of_interest_leaves_the_indexes() -> None:
    cache, changed = _cache()
    cache.record(_object("a", 1, "x"), changed.append)
    cache.record(_object("a", 2, None), changed.append)
    assert len(cache) == 0 and cache.keys("value") == []


# --- the lease ---------------------------------------------------------------------------------------------------

LEASE = LeaseSettings("ns", "lease", "me")


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
        self._slow = slow

    async def service_account(self) -> None:
        return None

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
        await asyncio.sleep(self._slow(len(self.written_at) - 1))
        return {**body, "metadata": metadata}


def _elect(server: LeaseServer, settings: LeaseSettings) -> Elector:
    client: Any = server
    return Elector(client, settings)


def test_a_leader_whose_renewals_are_answered_late_has_stopped_before_another_may_begin() -> None:
    """Another counts from the write; so the deadline does from before it, and no answer is waited for past it."""
    settings = LeaseSettings("ns", "lease", "me", duration_s=1.5, renew_deadline_s=1.0, retry_period_s=0.1)
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

    assert _run(scenario()) < settings.duration_s


def test_a_stop_during_a_renewal_gives_the_lease_up_all_the_same() -> None:
    """The server has taken the renewal whose answer is not waited for, so what we know of the lease is old."""
    settings = LeaseSettings("ns", "lease", "me", retry_period_s=0.01)
    server = LeaseServer(lambda number: 60.0 if number == 1 else 0.0)

    async def scenario() -> None:
        leading = asyncio.ensure_future(_elect(server, settings).run(asyncio.Event().wait))
        await server.renewing.wait()
        leading.cancel()
        await asyncio.gather(leading, return_exceptions=True)

    _run(scenario())
    assert server.stored["spec"]["holderIdentity"] == ""


# --- settings ----------------------------------------------------------------------------------------------------


def test_flags_beat_the_environment() -> None:
    settings = parse_settings(["--lease-name", "flag"], {"LEASE_NAME": "environment", "IMEX_TLS": "false"})
    assert settings.lease_name == "flag" and settings.imex_tls is False


@pytest.mark.parametrize(("text", "seconds"), [("15s", 15.0), ("1m30s", 90.0), ("500ms", 0.5), ("1h", 3600.0)])
def test_durations_are_gos(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "environment",
    [
        {"LEASE_DURATION": "15"},
        {"LEASE_DURATION": "5s"},
        {"IMEX_TLS": "yes"},
        {"IMEX_NODE_LIST": "dns"},
        {"MAX_NODES_PER_IMEX_DOMAIN": "0"},
        {"LOG_VERBOSITY": "loud"},
    ],
)
def test_a_setting_that_cannot_be_is_refused_by_name(environment: dict[str, str]) -> None:
    with pytest.raises(InvalidObject, match=next(iter(environment)).split("_")[0] + "|duration"):
        parse_settings([], environment)


# --- applying ----------------------------------------------------------------------------------------------------


def _apply(stages: list[list[str]], errors: dict[str, Exception]) -> tuple[tuple[str, ...] | str, list[str]]:
    done: list[str] = []

    async def execute(action: str) -> None:
        if action in errors:
            raise errors[action]
        done.append(action)

    async def scenario() -> tuple[str, ...] | str:
        try:
            return await apply_stages(stages, execute)
        except PartlyApplied as error:
            return f"again: {error}"

    return _run(scenario()), done


def test_stages_are_carried_out_in_order_and_stop_at_what_is_refused() -> None:
    refused, done = _apply([["a", "b"], ["c"], ["d"]], {"b": Invalid("b is wrong", 422)})
    assert refused == ("b is wrong",) and done == ["a"]


@pytest.mark.parametrize("error", [Unavailable("away"), Conflict("newer", 409)])
def test_what_may_pass_by_itself_is_tried_again_and_not_told(error: Exception) -> None:
    outcome, done = _apply([["a"], ["b"]], {"a": error})
    assert outcome == f"again: {error}" and done == []


def test_an_api_server_that_sheds_load_gets_no_more_of_the_stage_and_what_it_asks_for_is_passed_on() -> None:
    sent: list[int] = []

    async def execute(action: int) -> None:
        sent.append(action)
        await asyncio.sleep(0)
        raise TooManyRequests("too many requests (429)", 429, retry_after_s=7.0)

    with pytest.raises(PartlyApplied) as refusal:
        _run(apply_stages([range(1000), range(1000)], execute))
    assert len(sent) == IN_FLIGHT
    assert refusal.value.retry_after_s == 7.0


# --- certificates and Events -------------------------------------------------------------------------------------

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def test_a_renewed_certificate_is_of_the_same_authority_and_names_every_daemon(tmp_path: Any) -> None:
    made = make_certificates("domain", ["compute-domain-daemon-0000"], NOW, None)
    renewed = make_certificates("domain", ["compute-domain-daemon-0000"], NOW + timedelta(days=300), made.authority)
    assert renewed.authority == made.authority and renewed.key != made.key
    issuer = x509.load_pem_x509_certificate(made.authority.certificate)
    for certificates in (made, renewed):
        certificate = x509.load_pem_x509_certificate(certificates.certificate)
        certificate.verify_directly_issued_by(issuer)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert names.get_values_for_type(x509.DNSName) == ["compute-domain-daemon-0000"]
        assert NOW < certificates.renew_at < certificate.not_valid_after_utc


def test_two_domains_do_not_trust_each_other() -> None:
    one = make_certificates("one", ["a"], NOW, None)
    other = make_certificates("other", ["a"], NOW, None)
    with pytest.raises(ValueError, match="Issuer"):
        x509.load_pem_x509_certificate(one.certificate).verify_directly_issued_by(
            x509.load_pem_x509_certificate(other.authority.certificate)
        )


def test_the_files_are_what_tls_libraries_load(tmp_path: Any) -> None:
    made = make_certificates("domain", ["localhost"], datetime.now(UTC), None)
    for name, content in made.files.items():
        (tmp_path / name).write_bytes(content)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "tls.crt", tmp_path / "tls.key")
    context.load_verify_locations(tmp_path / "ca.crt")
    assert len(context.get_ca_certs()) == 1


def test_a_long_note_is_cut_to_what_the_api_takes() -> None:
    class Regarding:
        kind, namespace, name, uid = "Pod", "ns", "p", "u"

    event = build_event(Regarding(), "Warning", "Why", "x" * 5000, NOW, "me")
    assert len(event["note"]) == 1024
    assert event["regarding"]["apiVersion"] == "v1"
