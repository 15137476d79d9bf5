"""Watching a file that another program replaces as a whole, by inotify(7)."""

import asyncio
import ctypes
import json
import logging
import os
import stat
from collections.abc import AsyncGenerator, Iterator
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
MOST_BYTES: Final = 4 * 1024 * 1024
"""Of a file; more is not read. A membership of 1,000 nodes has some 250 KiB."""


async def watch_file(path: Path) -> AsyncGenerator[Json | None, None]:
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
        content = json.loads(_read_plainly(path))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        log.error("file_unreadable", extra={"path": str(path), "error": str(error)})
        return None
    return content if isinstance(content, dict) else None


def _read_plainly(path: Path) -> bytes:
    """Who writes it may be less trusted than we are: follow no link, wait at no pipe, read no more than is right."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(f"{path} is no plain file")
        with os.fdopen(fd, "rb", closefd=False) as file:
            return file.read(MOST_BYTES)
    finally:
        os.close(fd)


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
