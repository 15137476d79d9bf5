"""Coroutines of unit tests, which must not hang."""

import asyncio
from collections.abc import Awaitable
from typing import Any


def run_limited(work: Awaitable[Any]) -> Any:
    """The result; a test that hangs fails after ten seconds."""

    async def limited() -> Any:
        async with asyncio.timeout(10):
            return await work

    return asyncio.run(limited())
