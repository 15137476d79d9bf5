"""Work in a thread that nobody can interrupt, and who waits for it."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from kubeletplugin.threads import call_in


def test_whoever_is_cancelled_ends_when_the_thread_does_and_what_has_not_begun_never_runs() -> None:
    begun, gate, story = threading.Event(), threading.Event(), list[str]()

    def work() -> None:
        begun.set()
        gate.wait(10)
        story.append("work")

    async def scenario() -> None:
        worker = ThreadPoolExecutor(1)
        running = asyncio.ensure_future(call_in(worker, work))
        queued = asyncio.ensure_future(call_in(worker, lambda: story.append("queued")))
        await asyncio.to_thread(begun.wait, 10)
        running.cancel()
        queued.cancel()
        with pytest.raises(asyncio.CancelledError):
            await queued
        assert not running.done()
        gate.set()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert story == ["work"]
        assert await call_in(worker, lambda: 7) == 7
        assert story == ["work"]

    asyncio.run(scenario())


def test_what_goes_wrong_in_the_thread_goes_wrong_here() -> None:
    async def scenario() -> None:
        with pytest.raises(ZeroDivisionError):
            await call_in(ThreadPoolExecutor(1), lambda: 1 // 0)

    asyncio.run(scenario())
