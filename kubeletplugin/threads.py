"""Calls of vendor libraries in threads: they block, and nobody can interrupt them."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


async def call_in(worker: ThreadPoolExecutor, function: Callable[[], T]) -> T:
    """Its result. Who is cancelled meanwhile is so when the thread is done: until then hardware may change, and locks
    that keep others off it (other instances of the program, too) must not be given up. What has not begun is dropped.
    """
    work = worker.submit(function)
    try:
        return await asyncio.wrap_future(work)
    except asyncio.CancelledError:
        if not work.cancel():
            await asyncio.wait((asyncio.wrap_future(work),))
        raise
