"""The journal on a real file system."""

import asyncio
import errno
import fcntl
import json
import os
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from api.errors import StateUnreadable
from kubeletplugin import files
from kubeletplugin.disk import DiskFailed
from kubeletplugin.files import Store
from kubeletplugin.model.checkpoint import Checkpoint, ClaimRecord, ClaimState, GpuHolding, PreparedDevice

DRIVER = "gpu.nvidia.com"


def record(uid: str, state: ClaimState = ClaimState.COMPLETED) -> ClaimRecord:
    device = PreparedDevice("r0", "n1", "gpu-0", GpuHolding(f"GPU-{uid}"), ("k8s.gpu.nvidia.com/claim=x",))
    return ClaimRecord(DRIVER, uid, "default", f"claim-{uid}", state, "boot", (device,))


def store(directory: Path) -> Store:
    return Store(directory, DRIVER, ThreadPoolExecutor(2))


def run(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(scenario())


async def read(directory: Path) -> set[str]:
    """UIDs that another process would find."""
    other = store(directory)
    async with other.lease():
        return set(other.checkpoint.records)


def test_what_was_put_is_there_for_the_next_process_and_what_was_removed_is_not(tmp_path: Path) -> None:
    async def scenario() -> None:
        mine = store(tmp_path)
        async with mine.lease():
            mine.put(record("a"))
            mine.put(record("b"))
            mine.remove("a")
            await mine.sync()
        assert await read(tmp_path) == {"b"}

    run(scenario)


def test_an_append_is_in_the_file_before_anybody_waits_for_the_disk(tmp_path: Path) -> None:
    async def scenario() -> None:
        mine = store(tmp_path)
        async with mine.lease():
            mine.put(record("a"))
            assert b'"uid":"a"' in mine.path.read_bytes()

    run(scenario)


def test_a_reservation_is_seen_by_later_plans_and_by_no_other_process(tmp_path: Path) -> None:
    async def scenario() -> None:
        mine = store(tmp_path)
        async with mine.lease():
            mine.reserve(record("a", ClaimState.STARTED))
            assert set(mine.checkpoint.records) == {"a"}
        assert await read(tmp_path) == set()

    run(scenario)


def test_many_at_once_are_all_durable(tmp_path: Path) -> None:
    async def scenario() -> None:
        mine = store(tmp_path)

        async def put(uid: str) -> None:
            async with mine.lease():
                mine.put(record(uid))
                await mine.sync()

        await asyncio.gather(*(put(str(n)) for n in range(50)))
        assert len(await read(tmp_path)) == 50

    run(scenario)


def test_waiting_for_the_disk_never_stops_the_loop(tmp_path: Path) -> None:
    """Many overlapping waits, begun at every moment of the one that is under way."""

    async def scenario() -> None:
        mine = store(tmp_path)

        async def put(lane: int) -> None:
            for n in range(100):
                async with mine.lease():
                    mine.put(record(f"{lane}-{n}"))
                    for _ in range((lane + n) % 4):
                        await asyncio.sleep(0)
                    await mine.sync()
                    mine.remove(f"{lane}-{n}")
                    await mine.sync()

        await asyncio.gather(*(put(lane) for lane in range(8)))
        assert await read(tmp_path) == set()

    run(scenario)


def test_after_a_failed_sync_the_next_one_writes_everything_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel takes the pages of a failed sync for clean, so that a second one succeeds without having written."""

    def refuse(fd: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    async def scenario() -> None:
        mine = store(tmp_path)
        async with mine.lease():
            mine.put(record("a"))
            monkeypatch.setattr(os, "fdatasync", refuse)
            with pytest.raises(DiskFailed):
                await mine.sync()
            monkeypatch.undo()
            os.truncate(mine.path, 0)  # what a power cut would leave of those pages
            await mine.sync()
        assert await read(tmp_path) == {"a"}

    run(scenario)


def test_what_nobody_waits_for_is_on_the_disk_soon_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    durable = 0
    really = os.fdatasync

    def watch(fd: int) -> None:
        nonlocal durable
        size = os.fstat(fd).st_size
        really(fd)
        durable = max(durable, size)

    async def scenario() -> None:
        mine = store(tmp_path)
        async with mine.lease():
            mine.put(record("a"))
            await mine.sync()
            monkeypatch.setattr(os, "fdatasync", watch)
            for uid in ("a", "b"):
                mine.remove(uid)
                mine.sync_soon()
        for _ in range(3000):
            await asyncio.sleep(0.01)
            if durable == mine.path.stat().st_size:
                break
        assert durable == mine.path.stat().st_size

    run(scenario)


def test_a_slow_disk_is_waited_for_beside_the_loop_and_a_fast_one_again_in_it(tmp_path: Path) -> None:
    async def scenario() -> None:
        mine = store(tmp_path)
        mine._note_duration(1.0)
        async with mine.lease():
            for n in range(40):
                mine.put(record(str(n)))
                await mine.sync()
        assert mine._sync_s < 0.2
        assert len(await read(tmp_path)) == 40

    run(scenario)


def test_a_torn_last_line_is_cut_off(tmp_path: Path) -> None:
    async def scenario() -> None:
        mine = store(tmp_path)
        async with mine.lease():
            mine.put(record("a"))
            whole = mine.path.read_bytes()
        mine.path.write_bytes(whole + b"1 00000000 {")
        other = store(tmp_path)
        async with other.lease():
            assert set(other.checkpoint.records) == {"a"}
            other.put(record("b"))
        assert await read(tmp_path) == {"a", "b"}

    run(scenario)


@pytest.mark.parametrize("data", [b"", b"nonsense\n", b"\x00" * 100 + b"\n"])
def test_a_file_that_is_no_journal_is_never_taken_for_an_empty_one(tmp_path: Path, data: bytes) -> None:
    async def scenario() -> None:
        mine = store(tmp_path)
        mine.path.write_bytes(data)
        with pytest.raises(StateUnreadable, match=r"claims\.journal"):
            async with mine.lease():
                pass
        assert mine.set_aside().read_bytes() == data

    run(scenario)


def test_unreadable_files_are_kept_one_beside_the_other(tmp_path: Path) -> None:
    """And one that is there already, of an attempt that got no further, is not kept twice."""
    mine = store(tmp_path)
    for number in (1, 2):
        mine.path.unlink(missing_ok=True)
        mine.path.write_bytes(b"%d" % number)
        for _ in range(2):
            assert mine.set_aside().name == f"claims.journal.unreadable-{number}"
            assert mine.set_aside().read_bytes() == b"%d" % number


def test_a_rebuild_that_is_cut_short_finds_the_unreadable_file_again(tmp_path: Path) -> None:
    """A full disk between the two steps must not make it an empty journal."""

    async def scenario() -> None:
        store(tmp_path).path.write_bytes(b"garbage\n")
        store(tmp_path).set_aside()
        with pytest.raises(StateUnreadable):
            async with store(tmp_path).lease():
                pass

    run(scenario)


def test_a_journal_that_cannot_be_kept_aside_is_an_error_of_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        mine = store(tmp_path)
        async with mine.lease():
            mine.put(record("a"))
        mine.path.write_bytes(b"garbage\n")

        def refuse(*_: object) -> None:
            raise OSError(errno.EIO, "Input/output error")

        monkeypatch.setattr(Path, "hardlink_to", refuse)
        with pytest.raises(DiskFailed, match=r"claims\.journal"):
            async with mine.lease():
                pass

    run(scenario)


def test_what_another_instance_appended_is_read(tmp_path: Path) -> None:
    async def scenario() -> None:
        one, two = store(tmp_path), store(tmp_path)
        async with one.lease():
            one.put(record("a"))
        async with two.lease():
            assert set(two.checkpoint.records) == {"a"}
            two.remove("a")
            two.put(record("b"))
        async with one.lease():
            assert set(one.checkpoint.records) == {"b"}

    run(scenario)


def test_one_instance_works_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "LOCK_TIMEOUT_S", 0.1)

    async def scenario() -> None:
        mine = store(tmp_path)
        with (tmp_path / "claims.lock").open("w") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            with pytest.raises(files.Locked, match="another instance"):
                async with mine.lease():
                    pass
        async with mine.lease():
            mine.put(record("a"))

    run(scenario)


def test_the_journal_is_written_anew_before_it_grows_without_bound(tmp_path: Path) -> None:
    async def scenario() -> None:
        mine = store(tmp_path)
        async with mine.lease():
            mine.put(record("kept"))
            for n in range(5000):
                mine.put(record(str(n)))
                mine.remove(str(n))
            assert len(mine.path.read_bytes().splitlines()) < 4000
        assert await read(tmp_path) == {"kept"}

    run(scenario)


def test_another_thread_may_put_while_claims_come_and_go_and_the_journal_is_written_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = Checkpoint.with_record

    def slow(checkpoint: Checkpoint, added: ClaimRecord) -> Checkpoint:
        changed = quick(checkpoint, added)
        time.sleep(1e-4)  # another thread's turn
        return changed

    monkeypatch.setattr(files, "_COMPACT_ABOVE_LINES", 20)
    monkeypatch.setattr(Checkpoint, "with_record", slow)
    wanted = {f"aside-{i}" for i in range(100)} | {f"kept-{i}" for i in range(10)}

    async def scenario() -> None:
        mine = store(tmp_path)
        async with mine.lease():
            with ThreadPoolExecutor(1) as thread:
                aside = [thread.submit(mine.put, record(f"aside-{i}")) for i in range(100)]
                for i in range(100):
                    mine.reserve(record(f"reserved-{i}", ClaimState.STARTED))
                    mine.put(record(f"kept-{i % 10}"))
                    mine.put(record("gone"))
                    mine.remove("gone")
                    mine.release(f"reserved-{i}")
                    await mine.sync()
                for each in aside:
                    each.result()
            await mine.sync()
            assert set(mine.checkpoint.records) == wanted
        assert await read(tmp_path) == wanted

    run(scenario)


def test_a_journal_that_was_altered_under_a_running_instance_is_set_aside_and_written_anew(tmp_path: Path) -> None:
    async def scenario() -> None:
        mine = store(tmp_path)
        async with mine.lease():
            mine.put(record("a"))
        mine.path.write_bytes(mine.path.read_bytes().replace(b"claim-a", b"claim-b") + b"\n")
        async with mine.lease():
            mine.put(record("b"))
        assert await read(tmp_path) == {"a", "b"}
        assert mine.path.with_name(f"{mine.path.name}.unreadable-1").exists()

    run(scenario)


def test_a_journal_of_a_newer_instance_is_left_to_it(tmp_path: Path) -> None:
    async def scenario() -> None:
        mine = store(tmp_path)
        async with mine.lease():
            mine.put(record("a"))
        newer = mine.path.read_bytes() + b"2 00000000 whatever\n"
        mine.path.write_bytes(newer)
        with pytest.raises(StateUnreadable, match="newer version"):
            async with mine.lease():
                pass
        assert mine.path.read_bytes() == newer

    run(scenario)


def test_a_journal_that_vanished_under_a_running_instance_is_written_anew(tmp_path: Path) -> None:
    async def scenario() -> None:
        mine = store(tmp_path)
        async with mine.lease():
            mine.put(record("a"))
        mine.path.unlink()
        async with mine.lease():
            mine.put(record("b"))
        assert await read(tmp_path) == {"a", "b"}

    run(scenario)


def test_a_released_reservation_leaves_what_the_journal_holds(tmp_path: Path) -> None:
    """A failed attempt forgets no earlier one's record: an instance without record counts as an admin's."""

    async def scenario() -> None:
        mine = store(tmp_path)
        async with mine.lease():
            mine.put(record("a", ClaimState.STARTED))
            mine.reserve(record("a"))
            mine.release("a")
            assert mine.checkpoint.records["a"].state is ClaimState.STARTED
            mine.reserve(record("b", ClaimState.STARTED))
            mine.put(record("b", ClaimState.STARTED))
            mine.release("b")
            assert set(mine.checkpoint.records) == {"a", "b"}
            mine.reserve(record("c"))
            mine.release("c")
            assert set(mine.checkpoint.records) == {"a", "b"}
        assert await read(tmp_path) == {"a", "b"}

    run(scenario)


def test_a_journal_written_anew_keeps_the_earlier_record_of_a_claim_under_way(tmp_path: Path) -> None:
    async def scenario() -> None:
        mine = store(tmp_path)
        async with mine.lease():
            mine.put(record("a", ClaimState.STARTED))
            mine.reserve(record("a"))
            mine.path.unlink()
            mine.refresh()
            assert last_state(mine.path.read_bytes()) == "started"
            mine.release("a")

    run(scenario)


def last_state(journal: bytes) -> str:
    """State of the last record in a journal."""
    entry = json.loads(journal.splitlines()[-1].split(b" ", 2)[2])
    return str(entry["set"]["state"])


def test_where_the_journal_cannot_be_opened_again_for_a_while_nobody_elses_file_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another instance has written, and then the file system is read-only."""
    real = os.open

    def refuse(path: Any, flags: int, *others: Any) -> int:
        if str(path).endswith("claims.journal") and flags & os.O_WRONLY:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return real(path, flags, *others)

    async def write(mine: files.Store, uid: str) -> None:
        async with mine.lease():
            mine.put(record(uid))

    async def scenario() -> None:
        one, other = store(tmp_path), store(tmp_path)
        await write(one, "a")
        await write(other, "b")
        monkeypatch.setattr(os, "open", refuse)
        ends: list[int] = []
        for _ in range(2):
            with pytest.raises(DiskFailed, match="Read-only"):
                await write(one, "c")
            ends += os.pipe()
        assert [os.fstat(end).st_nlink for end in ends] == [1] * 4
        monkeypatch.setattr(os, "open", real)
        await write(one, "c")
        assert set(one.checkpoint.records) == {"a", "b", "c"}
        for end in ends:
            os.close(end)

    run(scenario)
