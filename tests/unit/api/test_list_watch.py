"""What the API client makes of a server that lists page by page, forgets versions, or answers with something else."""

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from api import client as client_module
from api.client import Client, Gone, Unavailable
from tests.unit.api.api_server import PODS, pod, pods, status, stream, take, talk

LAST_PAGE = 3


@pytest.fixture(autouse=True)
def delays(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Those that the client has waited for, as their places in a row of growing delays."""
    taken: list[int] = []

    def back_off_s(**_: Any) -> Iterator[float]:
        for place in range(100):
            taken.append(place)
            yield 0.01

    monkeypatch.setattr(client_module, "back_off_s", back_off_s)
    return taken


def test_a_server_that_calls_too_old_what_it_has_just_listed_is_not_hammered(tmp_path: Path, delays: list[int]) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        return status(410, "Expired") if "watch" in request.query else pods(1)

    async def scenario(client: Client) -> None:
        assert await take(client, 4) == [("SYNC", [])] * 4

    talk(tmp_path, handler, scenario)
    assert delays == [0, 1, 2]


def test_a_watch_that_is_too_old_after_an_event_lists_again_at_once_and_later_waits(
    tmp_path: Path, delays: list[int]
) -> None:
    watches = 0

    async def handler(request: web.Request) -> web.StreamResponse:
        nonlocal watches
        if "watch" not in request.query:
            return pods(1)
        watches += 1
        gone = {"kind": "Status", "code": 410, "reason": "Expired"}
        return await stream(request, *([("ADDED", pod("a", 2))] if watches == 1 else []), ("ERROR", gone))

    async def scenario(client: Client) -> None:
        listed = ("SYNC", [])
        assert await take(client, 5) == [listed, ("ADDED", "a"), listed, listed, listed]

    talk(tmp_path, handler, scenario)
    assert delays == [0, 1]  # and three lists after the first


@pytest.mark.parametrize(
    ("first", "asked"), [(False, ["", "more", ""]), (True, [""])], ids=["of a page", "of the list itself"]
)
def test_a_list_that_stays_too_old_is_not_asked_for_again_and_again(
    tmp_path: Path, first: bool, asked: list[str]
) -> None:
    seen: list[str] = []

    async def handler(request: web.Request) -> web.Response:
        seen.append(request.query.get("continue", ""))
        return pods(5, token="more") if seen == [""] and not first else status(410, "Expired")

    async def scenario(client: Client) -> None:
        with pytest.raises(Gone):
            await client.list(PODS)

    talk(tmp_path, handler, scenario)
    assert seen == asked


async def serve_pages(request: web.Request) -> web.StreamResponse:
    """Two pods on each."""
    if "watch" in request.query:
        return await stream(request, ("ADDED", pod("last", 9)), hold_s=1)
    page = int(request.query.get("continue", 1))
    items = [{"raw": [], **pod(f"p{page}{each}", 1)} for each in "ab"]
    return pods(8, *items, token="" if page == LAST_PAGE else str(page + 1))


def count_raw() -> int:
    """Listed objects that are still in memory."""
    return sum(1 for each in gc.get_objects() if type(each) is dict and "raw" in each and "metadata" in each)


def test_what_is_kept_of_each_object_comes_at_once_and_the_rest_of_a_page_ends_with_it(tmp_path: Path) -> None:
    alive: list[int] = []

    def keep(obj: dict[str, Any]) -> str:
        alive.append(count_raw())
        return str(obj["metadata"]["name"])

    async def scenario(client: Client) -> None:
        assert await anext(client.list_watch(PODS, keep=keep)) == ("SYNC", ["p1a", "p1b", "p2a", "p2b", "p3a", "p3b"])

    talk(tmp_path, serve_pages, scenario)
    assert max(alive) == 2


def test_a_watch_does_not_hold_what_has_been_listed(tmp_path: Path) -> None:
    async def scenario(client: Client) -> None:
        events = client.list_watch(PODS)
        assert len((await anext(events))[1]) == 2 * LAST_PAGE
        await anext(events)
        assert count_raw() == 0

    talk(tmp_path, serve_pages, scenario)


@pytest.mark.parametrize("text", ["<html>Log in</html>", '["no object"]'])
def test_an_answer_that_is_no_object_makes_the_api_unavailable(tmp_path: Path, text: str) -> None:
    async def handler(request: web.Request) -> web.Response:
        return web.Response(text=text)

    async def scenario(client: Client) -> None:
        for call in (client.get(PODS), client.get(PODS, limit="1"), client.list(PODS)):
            with pytest.raises(Unavailable) as caught:
                await call
            assert str(caught.value) == f"GET {PODS}: the answer is no JSON object: {text}"
        with pytest.raises(Unavailable, match=f"POST {PODS}: the answer is no JSON object"):
            await client.create(PODS, {})

    talk(tmp_path, handler, scenario)


def test_a_watch_outlives_a_line_that_is_no_json(tmp_path: Path) -> None:
    watches = 0

    async def handler(request: web.Request) -> web.StreamResponse:
        nonlocal watches
        if "watch" not in request.query:
            return pods(1)
        watches += 1
        if watches == 1:
            return web.Response(text="<html>\n")
        return await stream(request, ("ADDED", pod("a", 2)), hold_s=1)

    async def scenario(client: Client) -> None:
        assert await take(client, 2) == [("SYNC", []), ("ADDED", "a")]

    talk(tmp_path, handler, scenario)
