"""Waiting in tests that play everything in one event loop."""

import asyncio
from collections.abc import Callable


async def until(found: Callable[[], object], patience_s: float = 60.0) -> None:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + patience_s
    while not found():
        where = f"{found.__qualname__}, line {found.__code__.co_firstlineno}"
        assert loop.time() < deadline, f"not within {patience_s:.0f} s: {where}"
        await asyncio.sleep(0.01)
