"""The API client against a small server that says what real ones say."""

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from api import client as client_module
from api.client import (
    Client,
    Conflict,
    Forbidden,
    Gone,
    Invalid,
    NotFound,
    TooManyRequests,
    Unauthorized,
    Unavailable,
    path,
)
from api.connection import ConnectionUnknown
from api.errors import Retryable
from api.nesting import allow_deep_objects
from tests.unit.api.api_server import PODS, kubeconfig, pod, pods, status, stream, take, talk


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "back_off_s", lambda **_: iter(lambda: 0.01, None))


def test_a_watch_may_ask_for_metadata_alone(tmp_path: Path) -> None:
    asked: list[str] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        asked.append(request.headers["Accept"])
        if "watch" in request.query:
            return await stream(request, ("ADDED", pod("b", 2)), hold_s=1)
        return pods(1, pod("a", 1))

    async def scenario(client: Client) -> None:
        events = client.list_watch(PODS, metadata_only=True)
        assert [(await anext(events))[0] for _ in range(2)] == ["SYNC", "ADDED"]

    talk(tmp_path, handler, scenario)
    form = "application/json;as=PartialObjectMetadata{};g=meta.k8s.io;v=v1"
    assert asked == [form.format("List"), form.format("")]


def test_paths() -> None:
    assert path("v1", "nodes", name="n1") == "/api/v1/nodes/n1"
    claim = path("resource.k8s.io/v1", "resourceclaims", namespace="x", name="y", subresource="status")
    assert claim == "/apis/resource.k8s.io/v1/namespaces/x/resourceclaims/y/status"


@pytest.mark.parametrize(
    ("code", "reason", "error"),
    [
        (400, "BadRequest", Invalid),
        (401, "Unauthorized", Unauthorized),
        (403, "Forbidden", Forbidden),
        (404, "NotFound", NotFound),
        (409, "Conflict", Conflict),
        (410, "Expired", Gone),
        (422, "Invalid", Invalid),
        (429, "TooManyRequests", TooManyRequests),
        (500, "InternalError", Unavailable),
        (503, "ServiceUnavailable", Unavailable),
    ],
)
def test_every_refusal_has_its_error(tmp_path: Path, code: int, reason: str, error: type[Exception]) -> None:
    async def handler(request: web.Request) -> web.Response:
        return status(code, reason)

    async def scenario(client: Client) -> None:
        with pytest.raises(error, match=rf"GET /api/v1/pods: it is {reason} \({code}\)") as caught:
            await client.get(PODS)
        assert isinstance(caught.value, Retryable) == (code in (401, 429, 500, 503))

    talk(tmp_path, handler, scenario)


def test_a_server_that_is_not_there_is_unavailable(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with await Client.connect(str(kubeconfig(tmp_path, "http://127.0.0.1:9", {"token": "x"}))) as client:
            with pytest.raises(Unavailable, match="GET /api/v1/pods"):
                await client.get(PODS)

    asyncio.run(scenario())


def test_a_missing_kubeconfig_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConnectionUnknown, match=r"kubeconfig .*/nowhere"):
        asyncio.run(Client.connect(str(tmp_path / "nowhere")))


def test_what_is_written_says_who_writes_and_how(tmp_path: Path) -> None:
    seen: list[tuple[str, str, str, Any]] = []

    async def handler(request: web.Request) -> web.Response:
        body = await request.json()
        seen.append((request.method, request.content_type, str(request.query_string), body))
        assert request.headers["Authorization"] == "Bearer secret"
        return web.json_response({"metadata": {}})

    async def scenario(client: Client) -> None:
        await client.create(PODS, {"a": 1})
        await client.apply(f"{PODS}/x", {"b": 2})
        await client.patch(f"{PODS}/x", [{"op": "test"}], "application/json-patch+json")
        await client.delete(f"{PODS}/x", uid="u", resource_version="7", propagationPolicy="Background")

    talk(tmp_path, handler, scenario)
    assert seen[0] == ("POST", "application/json", "fieldManager=partita", {"a": 1})
    assert seen[1] == ("PATCH", "application/apply-patch+yaml", "fieldManager=partita&force=true", {"b": 2})
    assert seen[2][:2] == ("PATCH", "application/json-patch+json")
    assert seen[3][3]["preconditions"] == {"uid": "u", "resourceVersion": "7"}
    assert seen[3][3]["propagationPolicy"] == "Background"


def test_a_list_is_read_page_by_page_and_says_what_its_items_are(tmp_path: Path) -> None:
    async def handler(request: web.Request) -> web.Response:
        return pods(5, pod("b", 2)) if "continue" in request.query else pods(5, pod("a", 1), token="more")

    async def scenario(client: Client) -> None:
        items = await client.list(PODS)
        assert [(item["apiVersion"], item["kind"], item["metadata"]["name"]) for item in items] == [
            ("v1", "Pod", "a"),
            ("v1", "Pod", "b"),
        ]

    talk(tmp_path, handler, scenario)


def test_a_list_whose_pages_expired_begins_again(tmp_path: Path) -> None:
    async def handler(request: web.Request) -> web.Response:
        if "continue" in request.query:
            return status(410, "Expired")
        return pods(5, pod("a", 1), token="more") if "limit" in request.query else pods(6, pod("a", 1), pod("b", 2))

    async def scenario(client: Client) -> None:
        assert [item["metadata"]["name"] for item in await client.list(PODS)] == ["a", "b"]

    talk(tmp_path, handler, scenario)


def test_a_watch_that_was_cut_goes_on_after_the_last_bookmark(tmp_path: Path) -> None:
    versions: list[str] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        if "watch" not in request.query:
            assert request.query["fieldSelector"] == "spec.nodeName=n1"
            return pods(5, pod("a", 1))
        versions.append(request.query["resourceVersion"])
        if len(versions) == 1:
            return await stream(request, ("ADDED", pod("b", 6)), ("BOOKMARK", pod("", 9)))
        return await stream(request, ("DELETED", pod("a", 10)), hold_s=1)

    async def scenario(client: Client) -> None:
        found = await take(client, 3, field_selector="spec.nodeName=n1")
        assert found == [("SYNC", ["a"]), ("ADDED", "b"), ("DELETED", "a")]

    talk(tmp_path, handler, scenario)
    assert versions == ["5", "9"]


@pytest.mark.parametrize("as_event", [True, False], ids=["as an event", "as a status"])
def test_a_watch_that_is_too_old_lists_again(tmp_path: Path, as_event: bool) -> None:
    lists = 0

    async def handler(request: web.Request) -> web.StreamResponse:
        nonlocal lists
        if "watch" not in request.query:
            lists += 1
            return pods(lists, pod(f"p{lists}", lists))
        if lists > 1:
            return await stream(request, ("MODIFIED", pod("p2", 3)), hold_s=1)
        gone = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"}
        return await stream(request, ("ERROR", gone)) if as_event else status(410, "Expired")

    async def scenario(client: Client) -> None:
        assert await take(client, 3) == [("SYNC", ["p1"]), ("SYNC", ["p2"]), ("MODIFIED", "p2")]

    talk(tmp_path, handler, scenario)


def test_a_watch_outlives_an_overloaded_and_an_absent_server(tmp_path: Path) -> None:
    answers = [status(429, "TooManyRequests"), status(500, "InternalError")]

    async def handler(request: web.Request) -> web.StreamResponse:
        if answers:
            return answers.pop()
        if "watch" not in request.query:
            return pods(1)
        return await stream(request, ("ADDED", pod("a", 2)), hold_s=1)

    async def scenario(client: Client) -> None:
        assert await take(client, 2) == [("SYNC", []), ("ADDED", "a")]

    talk(tmp_path, handler, scenario)


def test_a_silent_watch_is_dead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "SILENCE_S", 0.2)
    watches = 0

    async def handler(request: web.Request) -> web.StreamResponse:
        nonlocal watches
        if "watch" not in request.query:
            return pods(1)
        watches += 1
        return await stream(request, *([("ADDED", pod("a", 2))] if watches > 1 else []), hold_s=5)

    async def scenario(client: Client) -> None:
        assert await take(client, 2) == [("SYNC", []), ("ADDED", "a")]

    talk(tmp_path, handler, scenario)


def test_a_watch_that_is_forbidden_says_so(tmp_path: Path) -> None:
    async def handler(request: web.Request) -> web.Response:
        return status(403, "Forbidden")

    async def scenario(client: Client) -> None:
        with pytest.raises(Forbidden):
            await take(client, 1)

    talk(tmp_path, handler, scenario)


def test_an_event_of_any_length_is_one_event(tmp_path: Path) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        if "watch" not in request.query:
            return pods(1)
        return await stream(request, ("ADDED", pod("x" * 3_000_000, 2)), hold_s=1)

    async def scenario(client: Client) -> None:
        found = await take(client, 2)
        assert len(found[1][1]) == 3_000_000

    talk(tmp_path, handler, scenario)


@pytest.fixture
def deep_objects() -> Iterator[None]:
    before = sys.getrecursionlimit()
    allow_deep_objects()
    yield
    sys.setrecursionlimit(before)


@pytest.mark.usefixtures("deep_objects")
@pytest.mark.parametrize(
    "nested", ["[" * 5119 + "]" * 5119, '{"":' * 2047 + "1" + "}" * 2047], ids=["lists", "objects"]
)
def test_an_object_that_is_nested_as_deep_as_kubernetes_lets_it_is_read(tmp_path: Path, nested: str) -> None:
    """In a list, and in a watch. 10 KiB of a claim are anybody's to write."""
    claim = f'{{"metadata": {{"name": "c", "resourceVersion": "2"}}, "spec": {{"x": {nested}}}}}'

    async def handle(request: web.Request) -> web.StreamResponse:
        if "watch" not in request.query:
            text = f'{{"metadata": {{"resourceVersion": "1"}}, "items": [{claim}]}}'
            return web.Response(text=text, content_type="application/json")
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(f'{{"type": "ADDED", "object": {claim}}}'.encode() + b"\n")
        return response

    async def scenario(client: Client) -> None:
        events = client.list_watch(PODS)
        kind, listed = await anext(events)
        assert kind == "SYNC" and listed[0]["spec"]["x"]
        kind, watched = await anext(events)
        assert kind == "ADDED" and watched["spec"]["x"]

    talk(tmp_path, handle, scenario)
