"""Watching the file in which the node plugin keeps this daemon's membership, by inotify(7)."""

import asyncio
import ctypes
import json
import logging
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

log = logging.getLogger(__name__)

Json = dict[str, Any]

# inotify.h, fcntl.h
_IN_MOVED_TO: Final = 0x80
_IN_DELETE: Final = 0x200
_EVENTS_SIZE: Final = 4096

LOOK_AGAIN_S: Final = 30.0
"""The file is read again after so long in any case: not every file system tells of changes."""


async def watch_file(path: Path) -> AsyncIterator[Json | None]:
    """Yield the JSON object in the file, and again at every change; None while there is no such file. For ever.

    Whoever writes it replaces it as a whole. Raises OSError when its folder is not there.
    """
    changed = asyncio.Event()
    previous: object = watch_file  # unlike anything that is read
    with _telling(path.parent, changed):
        while True:
            changed.clear()
            content = _read(path)
            if content != previous:
                previous = content
                yield content
            try:
                async with asyncio.timeout(LOOK_AGAIN_S):
                    await changed.wait()
            except TimeoutError:
                continue


def _read(path: Path) -> Json | None:
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as error:
        log.error("membership_unreadable", extra={"path": str(path), "error": str(error)})
        return None
    return content if isinstance(content, dict) else None


@contextmanager
def _telling(folder: Path, changed: asyncio.Event) -> Iterator[None]:
    """Set `changed` whenever a file is moved into the folder, or goes."""
    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if fd < 0 or libc.inotify_add_watch(fd, os.fsencode(folder), _IN_MOVED_TO | _IN_DELETE) < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(folder))

        def take() -> None:
            os.read(fd, _EVENTS_SIZE)
            changed.set()

        loop = asyncio.get_running_loop()
        loop.add_reader(fd, take)
        try:
            yield
        finally:
            loop.remove_reader(fd)
    finally:
        if fd >= 0:
            os.close(fd)
