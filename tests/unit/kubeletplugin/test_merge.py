"""Several sources of news as one."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest

from kubeletplugin.merge import merge


async def source(items: list[str], closed: list[str], *, fails: bool = False) -> AsyncGenerator[str, None]:
    try:
        for item in items:
            yield item
        if fails:
            raise ValueError("broken")
        await asyncio.Event().wait()
    finally:
        closed.append("".join(items))


def test_items_of_all_sources_come_and_all_end_with_the_reader() -> None:
    closed: list[str] = []

    async def scenario() -> list[str]:
        found = []
        async with aclosing(merge(source(["a", "b"], closed), source(["c"], closed))) as news:
            async for each in news:
                found.append(each)
                if len(found) == 3:
                    break
        return found

    assert sorted(asyncio.run(scenario())) == ["a", "b", "c"]
    assert sorted(closed) == ["ab", "c"]


def test_the_error_of_one_is_raised_and_ends_the_others() -> None:
    closed: list[str] = []

    async def scenario() -> None:
        async for _ in merge(source([], closed), source(["x"], closed, fails=True)):
            pass

    with pytest.raises(ValueError, match="broken"):
        asyncio.run(scenario())
    assert sorted(closed) == ["", "x"]
