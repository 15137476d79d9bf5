"""Writing files so that they last, and what is said when that fails."""

import asyncio
import contextlib
import errno
import fcntl
import os
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Final

from api.errors import Retryable

_LOCK_POLL_S: Final = 0.02


class DiskFull(Retryable):
    """The file system of our state has no room; nothing was lost, and the same call succeeds once there is."""

    reason = "DiskFull"


class DiskFailed(Retryable):
    """The file system of our state refuses writes."""

    reason = "DiskFailed"


def disk_error(error: OSError, path: Path) -> Retryable:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFull(f"{path}: the file system is full; free space on it")
    return DiskFailed(f"{path}: {error.strerror or error}")


@contextlib.contextmanager
def disk_errors(path: Path | str) -> Iterator[None]:
    """Within it, an OSError about this file becomes DiskFull or DiskFailed."""
    try:
        yield
    except OSError as error:
        raise disk_error(error, Path(path)) from error


def write_whole(path: Path | str, data: bytes, *, durable: bool, private: bool = False) -> None:
    """Create or replace by writing in place; use with a name nobody reads yet. Raises OSError (ENOSPC when short).

    `private`: for its owner alone.
    """
    fd = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC, 0o600 if private else 0o644)
    try:
        if private:
            os.fchmod(fd, 0o600)  # one that a crash has left may have another mode
        if os.write(fd, data) < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if durable:
            os.fsync(fd)
    finally:
        os.close(fd)


def replace_whole(path: Path | str, data: bytes, *, durable: bool, private: bool = False) -> None:
    """Create or replace so that readers, and a crash, find the old or the new file, whole; `durable`: before returning.

    Written beside it, under a name that no other instance of the program uses. `private`: for its owner alone.
    Raises OSError; what is there then is the old file or the new.
    """
    temporary = f"{path}.{os.getpid()}.tmp"
    try:
        write_whole(temporary, data, durable=durable, private=private)
        Path(temporary).rename(path)
    except OSError:
        with contextlib.suppress(OSError):
            Path(temporary).unlink()
        raise
    if durable:
        sync_directory(Path(path).parent)


def timed_sync(fd: int) -> float:
    """Seconds that it took."""
    started_s = time.perf_counter()
    os.fdatasync(fd)
    return time.perf_counter() - started_s


def sync_and_close(fd: int) -> float:
    try:
        return timed_sync(fd)
    finally:
        os.close(fd)


@contextlib.asynccontextmanager
async def locked(path: Path) -> AsyncIterator[None]:
    """Against other instances of the program, and other tasks of this one. Nobody waits for anything while having it.

    Raises DiskFull, DiskFailed.
    """
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        while True:
            if try_lock(fd):
                break
            await asyncio.sleep(_LOCK_POLL_S)
        yield
    finally:
        os.close(fd)


def try_lock(fd: int) -> bool:
    """flock(2), exclusive; False while somebody else has it."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_locked(path: Path) -> bool | None:
    """Whether a living process holds a flock(2) on this file; None where that cannot be told.

    Whoever writes into its folder may be less trusted than we are: no link is followed, and no pipe waited for.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    except OSError:
        return None
    finally:
        os.close(fd)


def sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
