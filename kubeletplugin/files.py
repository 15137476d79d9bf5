"""The checkpoint's journal: what the node plugin keeps on disk of claims, beside their CDI files.

Several instances of the program (a rolling update) share one journal under a lock file; one of them writes at a time.
"""

import asyncio
import contextlib
import errno
import fcntl
import logging
import os
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from api.errors import NewerState, Retryable, StateUnreadable
from kubeletplugin.disk import (
    DiskFailed,
    DiskFull,
    disk_error,
    disk_errors,
    replace_whole,
    sync_and_close,
    timed_sync,
    try_lock,
)
from kubeletplugin.model.checkpoint import (
    Checkpoint,
    ClaimRecord,
    decode_journal,
    encode_checkpoint,
    encode_record,
    encode_removal,
)

log = logging.getLogger(__name__)

_COMPACT_ABOVE_LINES: Final = 2000
_LOCK_POLL_S: Final = 0.02
LOCK_TIMEOUT_S: Final = 10.0
# A sync in the event loop's own thread saves handing it to another and back, which costs more than the sync itself
# on a fast disk (0.2 ms); on a slow one the loop must not stand still for it.
_SLOW_SYNC_S: Final = 0.01
_SOON_S: Final = 0.1
_SYNC_SMOOTHING: Final = 0.2  # weight of the newest duration: one hiccup does not make a disk slow


class Locked(Retryable):
    """Another instance of the program has the journal."""

    reason = "JournalLocked"


class Store:
    """One driver's checkpoint: in memory, and as an append-only journal on disk.

    `put` and `remove` append at once, so that a killed process loses nothing; `sync` waits until what was appended
    survives a power cut, one fdatasync for all who wait; `sync_soon` does not wait. `reserve` is in memory only.
    Any thread may `put`; everything else is for the event loop's.
    """

    def __init__(self, directory: Path, driver: str, syncer: ThreadPoolExecutor) -> None:
        self.checkpoint = Checkpoint()
        self.path = directory / "claims.journal"
        self.loads = 0
        """How often the journal was read: at the start, and whenever another instance had written in it."""
        self._driver = driver
        self._lock_path = directory / "claims.lock"
        self._syncer = syncer
        self._fd = -1
        self._lock_fd = -1
        self._inode = 0
        self._size = 0
        self._lines = 0
        self._suspect = False
        self._sync_s = 0.0
        self._holders = 0
        self._locking: asyncio.Lock = asyncio.Lock()
        self._appended = 0
        self._synced = 0
        self._syncing: asyncio.Future[float] | None = None
        self._later: asyncio.TimerHandle | None = None
        self._reserved: dict[str, ClaimRecord | None] = {}
        self._changing = threading.RLock()

    # Sharing with other instances

    @contextlib.asynccontextmanager
    async def lease(self, *, read: bool = True) -> AsyncIterator[None]:
        """Hold the journal against other instances; any number of tasks of this one share it.

        Unless `read`, the caller calls `refresh`, before anybody else here can have the lease. Raises Locked, DiskFull,
        DiskFailed, StateUnreadable.
        """
        async with self._locking:
            if self._holders == 0:
                await self._lock()
                try:
                    if read:
                        self.refresh()
                except BaseException:
                    self._unlock()
                    raise
            self._holders += 1
        try:
            yield
        finally:
            self._holders -= 1
            if self._holders == 0:
                self._unlock()

    async def _lock(self) -> None:
        if self._lock_fd < 0:
            with disk_errors(self._lock_path):
                self._lock_path.parent.mkdir(parents=True, exist_ok=True)
                self._lock_fd = os.open(self._lock_path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        if try_lock(self._lock_fd):
            return
        try:
            async with asyncio.timeout(LOCK_TIMEOUT_S):
                while True:
                    await asyncio.sleep(_LOCK_POLL_S)
                    if try_lock(self._lock_fd):
                        return
        except TimeoutError as error:
            raise Locked(f"{self._lock_path}: another instance of this plugin has been working for too long") from error

    def _unlock(self) -> None:
        fcntl.flock(self._lock_fd, fcntl.LOCK_UN)

    def refresh(self) -> None:
        """Read the journal where it is not what this instance wrote last. Call under the lease.

        Raises StateUnreadable, DiskFull, DiskFailed.
        """
        with disk_errors(self.path):
            try:
                status = self.path.stat()
            except FileNotFoundError:
                self._replace(self.checkpoint if self._fd >= 0 else Checkpoint())
                return
            if self._fd < 0 or (status.st_size, status.st_ino) != (self._size, self._inode):
                self._load()

    def _load(self) -> None:
        try:
            data = self.path.read_bytes()
        except OSError as error:
            raise StateUnreadable(f"{self.path}: {error.strerror}") from error
        try:
            journal = decode_journal(self._driver, data)
        except StateUnreadable as error:
            if self._fd < 0 or isinstance(error, NewerState):
                raise type(error)(f"{self.path}: {error}") from error
            # Altered under a running program: what is in memory is what it held.
            log.error("journal_written_anew", extra={"path": str(self.set_aside()), "error": str(error)})
            self._replace(self.checkpoint)
            return
        self._open()
        if journal.valid_bytes < len(data):
            log.warning("journal_tail_torn", extra={"path": str(self.path), "bytes": len(data) - journal.valid_bytes})
            os.ftruncate(self._fd, journal.valid_bytes)
        self.checkpoint, self._size, self._lines = journal.checkpoint, journal.valid_bytes, journal.lines
        self.loads += 1

    def _open(self) -> None:
        before, self._fd = self._fd, os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        if before >= 0:
            os.close(before)
        self._inode = os.fstat(self._fd).st_ino

    def set_aside(self) -> Path:
        """Keep the unreadable journal as `.unreadable-<n>`. It stays in place too, until `adopt` has replaced it.

        Raises OSError.
        """
        number = 1
        while (aside := self.path.with_name(f"{self.path.name}.unreadable-{number}")).exists():
            if aside.samefile(self.path):
                return aside  # an attempt before this one got no further
            number += 1
        aside.hardlink_to(self.path)
        return aside

    def adopt(self, checkpoint: Checkpoint) -> None:
        """Begin a new journal with that content, durable on return; under the lease. Raises DiskFull, DiskFailed."""
        self._replace(checkpoint)

    # Changing

    def reserve(self, record: ClaimRecord) -> None:
        """Let later plans of this process see what is under way; a crash forgets it."""
        with self._changing:
            self._reserved.setdefault(record.uid, self.checkpoint.get(record.uid))
            self.checkpoint = self.checkpoint.with_record(record)

    def release(self, uid: str) -> None:
        """Undo `reserve`, back to what the journal holds; what was put or removed meanwhile stays as it is."""
        with self._changing:
            if uid in self._reserved:
                self.checkpoint = self.without_reservation(uid)
                del self._reserved[uid]

    def without_reservation(self, uid: str) -> Checkpoint:
        """The checkpoint as it would be had nobody reserved anything for that claim."""
        return _restored(self.checkpoint, uid, self._reserved[uid]) if uid in self._reserved else self.checkpoint

    def put(self, record: ClaimRecord) -> int:
        """Append; answers what to `sync` for it. Raises DiskFull, DiskFailed, after which nothing changed."""
        line = encode_record(record)
        with self._changing:
            self._append(line)
            self._reserved.pop(record.uid, None)
            self.checkpoint = self.checkpoint.with_record(record)
            return self._appended

    def remove(self, uid: str) -> None:
        """Append a removal. Raises DiskFull, DiskFailed, after which nothing changed."""
        with self._changing:
            self._append(encode_removal(uid))
            self._reserved.pop(uid, None)
            self.checkpoint = self.checkpoint.without(uid)

    async def sync(self, wanted: int = 0) -> None:
        """Return once everything appended so far is on the disk, or at least what `put` has answered this number for;
        the rest is then soon. Raises DiskFull, DiskFailed.
        """
        if wanted:
            self.sync_soon()
        wanted = wanted or self._appended
        if self._holders > 1:
            # Whoever is ready to append does so now; the first to come back here then syncs for all of them.
            await asyncio.sleep(0)
        while self._synced < wanted:
            if self._suspect:
                # After a failed sync the kernel takes its pages for clean: another sync would succeed, and be a lie.
                with self._changing:
                    self._replace(self.checkpoint)
            elif self._syncing is None and self._sync_s < _SLOW_SYNC_S:
                self._sync_now()
            else:
                await self._sync_aside()

    def begin_sync(self) -> None:
        """Sync what is appended now, or see to it; whether that succeeds is for the next `sync` to say."""
        if self._suspect or self._syncing is not None or self._synced == self._appended:
            return
        if self._sync_s < _SLOW_SYNC_S:
            with contextlib.suppress(DiskFull, DiskFailed):
                self._sync_now()
        else:
            self._start_sync()

    def sync_soon(self) -> None:
        """The same within a tenth of a second, with nobody waiting: for what a power cut may take back."""
        if self._later is None:
            self._later = asyncio.get_running_loop().call_later(_SOON_S, self._sync_the_rest)

    def _sync_the_rest(self) -> None:
        self._later = None
        if self._synced == self._appended or self._suspect:
            return
        if self._syncing is None:
            self._start_sync()
        else:
            self.sync_soon()

    def _sync_now(self) -> None:
        with self._changing:
            try:
                self._note_duration(timed_sync(self._fd))
            except OSError as error:
                self._suspect = True
                raise disk_error(error, self.path) from error
            self._synced = self._appended

    async def _sync_aside(self) -> None:
        """Wait for the sync under way in a thread, which may not cover us; begin one where there is none."""
        under_way = self._syncing
        if under_way is None or under_way.done():
            under_way = self._start_sync()
        with disk_errors(self.path):
            await asyncio.shield(under_way)

    def _start_sync(self) -> asyncio.Future[float]:
        with self._changing:
            covers, fd = self._appended, os.dup(self._fd)
        syncing = asyncio.get_running_loop().run_in_executor(self._syncer, sync_and_close, fd)
        syncing.add_done_callback(lambda done: self._end_sync(done, covers))
        self._syncing = syncing
        return syncing

    def _end_sync(self, done: asyncio.Future[float], covers: int) -> None:
        if self._syncing is done:
            self._syncing = None
        if done.cancelled() or done.exception() is not None:
            self._suspect = True
        else:
            self._note_duration(done.result())
            self._synced = max(self._synced, covers)

    def _note_duration(self, took_s: float) -> None:
        self._sync_s += _SYNC_SMOOTHING * (took_s - self._sync_s)

    def _append(self, line: bytes) -> None:
        if self._suspect or self._lines > _COMPACT_ABOVE_LINES + 4 * len(self.checkpoint.records):
            self._replace(self.checkpoint)
        try:
            written = os.write(self._fd, line)
        except OSError as error:
            self._truncate()
            raise disk_error(error, self.path) from error
        if written < len(line):
            self._truncate()
            raise disk_error(OSError(errno.ENOSPC, "short write"), self.path)
        self._size += written
        self._lines += 1
        self._appended += 1

    def _truncate(self) -> None:
        """Take back a torn append; where even that fails, the next append writes the file anew."""
        try:
            os.ftruncate(self._fd, self._size)
        except OSError:
            self._suspect = True

    def _replace(self, checkpoint: Checkpoint) -> None:
        """Write the journal anew; a crash leaves the old or the new."""
        durable = checkpoint
        for uid, before in self._reserved.items():
            durable = _restored(durable, uid, before)
        data = encode_checkpoint(self._driver, durable)
        with disk_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            replace_whole(self.path, data, durable=True)
            self._open()
        self.checkpoint, self._size, self._lines = checkpoint, len(data), len(durable.records) + 1
        self._synced, self._suspect = self._appended, False


def _restored(checkpoint: Checkpoint, uid: str, before: ClaimRecord | None) -> Checkpoint:
    return checkpoint.without(uid) if before is None else checkpoint.with_record(before)
