"""The caches: what the API server told, in its order, whatever the order it arrives in."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from api.client import Client
from controller.observe import Cache
from tests.unit.api.api_server import pods, stream, talk


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


def test_an_object_that_cannot_be_read_is_of_no_interest_and_hides_no_other(caplog: pytest.LogCaptureFixture) -> None:
    cache: Cache[str] = Cache("/x", lambda obj: obj["value"].strip(), {"value": lambda value: [value]})
    bad = {"metadata": {"name": "bad", "namespace": "theirs", "resourceVersion": "7"}, "value": {}}
    cache._replace([cache._reduce(obj) for obj in (bad, _object("a", 5))], lambda _: None)
    assert list(cache.values()) == ["x"]
    cache.record({**bad, "metadata": {**bad["metadata"], "resourceVersion": "8"}, "value": "good"}, lambda _: None)
    assert sorted(cache.values()) == ["good", "x"]
    assert [vars(record)["object"] for record in caplog.records] == ["theirs/bad"]


def test_a_list_of_many_pages_fills_the_cache_at_once(tmp_path: Path) -> None:
    cache, _ = _cache()
    lengths: list[int] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        if "watch" in request.query:
            return await stream(request, hold_s=1)
        lengths.append(len(cache))
        page = len(lengths)
        return pods(9, _object(f"p{page}", page), token="more" if page < 3 else "")

    async def scenario(client: Client) -> None:
        following = asyncio.create_task(cache.run(client, lambda _: None))
        await cache.synced.wait()
        following.cancel()

    talk(tmp_path, handler, scenario)
    assert lengths == [0, 0, 0] and len(cache) == 3
