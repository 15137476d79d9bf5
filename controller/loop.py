"""The work queue: a set of keys, some workers, and a clock.

Level-based: a key says "look again", never what happened. A key is in the queue at most once and in work at most once;
one that comes while it is in work is looked at again afterwards. A key that fails comes back later and later. When the
API server asks for time, no key is looked at before that is over: to it they are all one client's.
"""

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from typing import Final

from api.errors import PartitaError

log = logging.getLogger(__name__)

BACK_OFF_FIRST_S: Final = 0.1
BACK_OFF_MOST_S: Final = 30.0

Reconcile = Callable[[str], Awaitable[float | None]]
"""Brings one key's objects in order; answers after how many seconds to look again, None when only a change matters."""


def back_off_s(failures: int, chance: float) -> float:
    """Doubling from 0.1 s to 30 s, spread by +-50 % so that keys that failed together do not return together.

    `chance` is uniform in [0, 1).
    """
    return float(min(BACK_OFF_FIRST_S * 2 ** min(failures - 1, 20), BACK_OFF_MOST_S)) * (0.5 + chance)


class WorkQueue:
    """Keys to look at, now or later."""

    def __init__(self) -> None:
        self._ready: asyncio.Queue[str] = asyncio.Queue()
        self._queued: set[str] = set()
        self._working: set[str] = set()
        self._again: set[str] = set()
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._failures: dict[str, int] = {}
        self._quiet_until = 0.0
        """By the loop's clock."""

    def __len__(self) -> int:
        return len(self._queued) + len(self._again)

    def add(self, key: str) -> None:
        """Look at it as soon as a worker is free."""
        self._cancel_timer(key)
        if key in self._working:
            self._again.add(key)
        elif key not in self._queued:
            self._queued.add(key)
            self._ready.put_nowait(key)

    def add_after(self, key: str, delay_s: float) -> None:
        """Look at it in `delay_s`, or sooner when a timer or a change says so."""
        loop = asyncio.get_running_loop()
        timer = self._timers.get(key)
        if timer is not None and timer.when() <= loop.time() + delay_s:
            return
        self._cancel_timer(key)
        self._timers[key] = loop.call_later(delay_s, self.add, key)

    async def run(self, reconcile: Reconcile, workers: int) -> None:
        """Work until cancelled. A defect of ours, which raises what is no PartitaError, costs its key and no other."""
        async with asyncio.TaskGroup() as group:
            for _ in range(workers):
                group.create_task(self._work(reconcile))

    async def _work(self, reconcile: Reconcile) -> None:
        while True:
            key = await self._ready.get()
            await asyncio.sleep(0)  # a full queue of keys that await nothing would keep the loop from all else
            await self._keep_quiet()
            self._queued.discard(key)
            self._working.add(key)
            delay_s: float | None = None
            started = time.monotonic()
            try:
                delay_s = await reconcile(key)
                self._failures.pop(key, None)
            except PartitaError as error:
                delay_s = max(self._count_failure(key), self._note_wish(error))
                log.warning(
                    "reconcile_failed",
                    extra={"key": key, "error": str(error), "reason": error.reason, "retry_in_s": round(delay_s, 2)},
                )
            except Exception:
                delay_s = self._count_failure(key)
                log.exception("defect", extra={"key": key, "retry_in_s": round(delay_s, 2)})
            finally:
                self._working.discard(key)
            log.debug("reconciled", extra={"key": key, "took_s": round(time.monotonic() - started, 4)})
            if key in self._again:
                self._again.discard(key)
                self.add(key)
            elif delay_s is not None:
                self.add_after(key, delay_s)

    def _count_failure(self, key: str) -> float:
        """After how many seconds to look at it again."""
        failures = self._failures[key] = self._failures.get(key, 0) + 1
        return back_off_s(failures, random.random())

    def _note_wish(self, error: PartitaError) -> float:
        """For how many seconds the API server wants to be left alone."""
        wish_s = min(float(getattr(error, "retry_after_s", None) or 0.0), BACK_OFF_MOST_S)
        self._quiet_until = max(self._quiet_until, asyncio.get_running_loop().time() + wish_s)
        return wish_s

    async def _keep_quiet(self) -> None:
        while (left_s := self._quiet_until - asyncio.get_running_loop().time()) > 0:  # noqa: ASYNC110  it may be extended
            await asyncio.sleep(left_s)

    def _cancel_timer(self, key: str) -> None:
        timer = self._timers.pop(key, None)
        if timer is not None:
            timer.cancel()
