"""Watching files that another program replaces as a whole, by inotify(7)."""

import asyncio
import ctypes
import errno
import json
import logging
import os
import stat
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager
from pathlib import Path
from typing import Any, Final

from api.errors import StateUnreadable

log = logging.getLogger(__name__)

Json = dict[str, Any]

# inotify.h, fcntl.h
_IN_MOVED_TO: Final = 0x80
_IN_DELETE: Final = 0x200
_EVENTS_SIZE: Final = 4096
_NO_ROOM: Final = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC)

LOOK_AGAIN_S: Final = 30.0
"""What is watched is read again after so long in any case: not every file system tells of changes."""
LOOK_OFTEN_S: Final = 1.0
"""The same where the kernel tells of nothing: the inotify instances of a user are few, and others use them up."""
MOST_BYTES: Final = 4 * 1024 * 1024
"""Of a file; more is not read. A membership of 1,000 nodes has some 250 KiB."""


async def watch_file(path: Path) -> AsyncGenerator[Json | None, None]:
    """Yield the JSON object in the file, and again at every change; None while none can be read. For ever.

    Whoever writes it replaces it as a whole. Raises OSError when its folder is not there.
    """
    previous: object = watch_file  # unlike anything that is read
    async with aclosing(watch_folder(path.parent)) as looks:
        async for _ in looks:
            try:
                content = read_json(path)
            except StateUnreadable as error:
                log.error("file_unreadable", extra={"path": str(path), "error": str(error)})
                content = None
            if content != previous:
                previous = content
                yield content


async def watch_folder(folder: Path) -> AsyncGenerator[None, None]:
    """Yield at once, and again whenever a file is moved into the folder, or goes; now and then without cause. For ever.

    Raises OSError when it is not there.
    """
    changed = asyncio.Event()
    with _telling(folder, changed) as is_told:
        while True:
            changed.clear()
            yield
            try:
                async with asyncio.timeout(LOOK_AGAIN_S if is_told else LOOK_OFTEN_S):
                    await changed.wait()
            except TimeoutError:
                continue


def read_json(path: Path) -> Json | None:
    """The JSON object in the file; None where there is no file. Raises StateUnreadable."""
    try:
        content = json.loads(_read_plainly(path))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise StateUnreadable(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise StateUnreadable(f"{path} cannot be read: it has no JSON object")
    return content


def _read_plainly(path: Path) -> bytes:
    """Who writes it may be less trusted than we are: follow no link, wait at no pipe, read no more than is right."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError("it is no plain file")
        with os.fdopen(fd, "rb", closefd=False) as file:
            return file.read(MOST_BYTES)
    finally:
        os.close(fd)


@contextmanager
def _telling(folder: Path, changed: asyncio.Event) -> Iterator[bool]:
    """Set `changed` whenever a file is moved into the folder, or goes. False: the kernel has no room for that."""
    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if fd < 0 or libc.inotify_add_watch(fd, os.fsencode(folder), _IN_MOVED_TO | _IN_DELETE) < 0:
            number = ctypes.get_errno()
            if number not in _NO_ROOM:
                raise OSError(number, os.strerror(number), str(folder))
            told = f"{os.strerror(number)}: are fs.inotify.max_user_instances or max_user_watches used up?"
            log.warning("watched_by_looking", extra={"path": str(folder), "error": told, "every_s": LOOK_OFTEN_S})
            yield False
            return

        def take() -> None:
            os.read(fd, _EVENTS_SIZE)
            changed.set()

        loop = asyncio.get_running_loop()
        loop.add_reader(fd, take)
        try:
            yield True
        finally:
            loop.remove_reader(fd)
    finally:
        if fd >= 0:
            os.close(fd)
