"""Waiting in tests that play everything in one event loop."""

import asyncio
from collections.abc import Callable


async def until(holds: Callable[[], object]) -> None:
    """Raises TimeoutError after ten seconds."""
    async with asyncio.timeout(10):
        while True:
            if holds():
                return
            await asyncio.sleep(0.01)
