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
    loop = asyncio.get_running_loop()
    done = loop.create_future()
    work = worker.submit(function)
    work.add_done_callback(lambda _: loop.call_soon_threadsafe(_tell, done))
    try:
        await done  # and not `asyncio.wrap_future(work)`, which takes half as long again
    except asyncio.CancelledError:
        if not work.cancel():
            await asyncio.wait((asyncio.wrap_future(work),))
        raise
    return work.result()


def _tell(done: asyncio.Future[None]) -> None:
    if not done.done():
        done.set_result(None)
