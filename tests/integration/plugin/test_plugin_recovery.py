"""What a killed plugin, a reboot, a broken disk or an odd moment of the hardware leaves is put in order."""

import asyncio
import signal

import pytest

from kubeletplugin.model.inventory import Placement
from kubeletplugin.model.steps import DeleteMigInstance
from tests.support.plugin_world import NEIGHBOUR, SLICE, World, in_world, run, until


@in_world()
async def test_killed_while_it_prepares_again_after_a_reboot_it_leaves_nothing_behind(it: World) -> None:
    boot = it.node.base / "boot_id"
    boot.write_text("first")
    claim = await it.claim("slice", SLICE)
    kubelet = await it.start(BOOT_ID_PATH=str(boot))
    await kubelet.prepare(claim)
    assert it.node.end() == 0
    it.apply(DeleteMigInstance(it.gpus()[0].uuid, 19, Placement(0, 1)))  # as a reboot does
    boot.write_text("second")
    it.node.start(BOOT_ID_PATH=str(boot), PARTITA_CRASH_AFTER="hardware")
    assert await asyncio.to_thread(it.node.wait) == 137
    assert it.instances() == [(0, 19, 0, True)]
    kubelet = await it.start(BOOT_ID_PATH=str(boot))
    await kubelet.prepare(claim)
    assert it.instances() == [(0, 19, 0, True)]
    await kubelet.unprepare(claim)
    it.assert_clean()


@in_world()
async def test_a_power_cut_right_after_the_answer_costs_a_claim_nothing(it: World) -> None:
    """What was made for it need not be on the disk by then: the intent is, and the slice is made again from that."""
    boot = it.node.base / "boot_id"
    boot.write_text("first")
    claim = await it.claim("slice", SLICE)
    kubelet = await it.start(BOOT_ID_PATH=str(boot))
    await kubelet.prepare(claim)
    (spec,) = it.specs().values()
    it.node.end(signal.SIGKILL)
    intent, made = it.node.journal.read_bytes().splitlines(keepends=True)[-2:]
    assert b"started" in intent and b"completed" in made
    it.node.journal.write_bytes(it.node.journal.read_bytes().removesuffix(made))
    for file in it.node.cdi.iterdir():
        file.unlink()
    it.apply(DeleteMigInstance(it.gpus()[0].uuid, 19, Placement(0, 1)))
    boot.write_text("second")
    kubelet = await it.start(BOOT_ID_PATH=str(boot))
    assert it.instances() == [(0, 19, 0, True)]
    (again,) = it.specs().values()
    assert again["devices"][0]["name"] == spec["devices"][0]["name"]  # by which the kubelet knows it
    await kubelet.unprepare(claim)
    it.assert_clean()


@in_world()
async def test_a_claim_that_cannot_be_undone_keeps_no_other_waiting(it: World) -> None:
    half = await it.claim("half", SLICE)
    await it.crash_while_preparing(half, "hardware")
    it.fail("nvmlGpuInstanceDestroy", "in-use")
    kubelet = await it.start()
    other = await it.claim("other", "gpu-1")
    await kubelet.prepare(other)
    await until("an Event", lambda: it.events("ClaimNotUndone"))
    assert it.records() == {half.uid, other.uid}
    it.inject("none")
    await kubelet.unprepare(half)
    await kubelet.unprepare(other)
    it.assert_clean()


@in_world()
async def test_a_gpu_that_cannot_be_read_for_a_moment_keeps_what_claims_hold(it: World) -> None:
    kubelet = await it.start(RESCAN_INTERVAL_S="0.2")
    claim = await it.claim("slice", SLICE)
    await kubelet.prepare(claim)
    it.fail("nvmlDeviceGetMigMode", "unknown")
    await asyncio.sleep(1.0)  # it has looked, and not seen the GPU
    giving_back = asyncio.create_task(kubelet.unprepare(claim))
    await asyncio.sleep(1.0)
    assert it.records() == {claim.uid}
    it.inject("none")
    await giving_back
    it.assert_clean()


@pytest.mark.parametrize("step", ["intent", "hardware", "cdi", "done"])
@in_world()
async def test_killed_after_any_step_of_prepare_the_next_run_converges(it: World, step: str) -> None:
    claim = await it.claim("slice", SLICE)
    kubelet = await it.prepare_over_a_crash(claim, step)
    assert it.instances() == [(0, 19, 0, True)]
    assert len(it.specs()) == 1
    await kubelet.unprepare(claim)
    it.assert_clean()


@pytest.mark.parametrize("step", ["undone", "cdi_removed", "removed"])
@in_world()
async def test_killed_after_any_step_of_unprepare_the_next_run_converges(it: World, step: str) -> None:
    await it.unprepare_over_a_crash(await it.claim("slice", SLICE), step)
    it.assert_clean()


@pytest.mark.parametrize("damage", ["truncated", "flipped", "future"])
@in_world()
async def test_an_unreadable_journal_is_set_aside_and_rebuilt(it: World, damage: str) -> None:
    kubelet = await it.start()
    whole, part = await it.claim("whole", "gpu-1"), await it.claim("part", SLICE)
    await kubelet.prepare(whole)
    await kubelet.prepare(part)
    it.node.end(signal.SIGKILL)
    data = it.node.journal.read_bytes()
    broken = {
        "truncated": b"",
        "flipped": data[:200] + bytes([data[200] ^ 1]) + data[201:],
        "future": data.replace(b"\n1 ", b"\n99 ", 1),
    }
    it.node.journal.write_bytes(broken[damage])
    kubelet = await it.start()
    assert it.records() == {whole.uid, part.uid}
    assert it.node.journal.with_name("claims.journal.unreadable-1").read_bytes() == broken[damage]
    assert await until("an Event on the node", lambda: it.events("CheckpointRebuilt"))
    await kubelet.unprepare(whole, part)
    it.assert_clean()


@in_world()
async def test_a_torn_last_line_is_repaired(it: World) -> None:
    kubelet = await it.start()
    claim = await it.claim("whole", "gpu-1")
    await kubelet.prepare(claim)
    it.node.end(signal.SIGKILL)
    with it.node.journal.open("ab") as journal:
        journal.write(b'1 0000abcd {"set":{"ui')
    kubelet = await it.start()
    assert it.records() == {claim.uid}
    await kubelet.unprepare(claim)
    it.assert_clean()


@in_world()
async def test_a_full_disk_is_a_clear_error_and_loses_nothing(it: World) -> None:
    it.node.plugins.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(it.node.plugins))
    try:
        kubelet = await it.start()
        first, second = await it.claim("first", SLICE), await it.claim("second", NEIGHBOUR)
        await kubelet.prepare(first)
        ballast = it.node.plugins / "ballast"
        with ballast.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
            while True:
                file.write(bytes(1024))

        async def fill_the_last_page() -> None:
            for _ in range(20):
                await kubelet.prepare(second)
                await kubelet.unprepare(second)
            await kubelet.prepare(second)

        attempt = asyncio.ensure_future(fill_the_last_page())
        await until("the plugin says why", lambda: _logged(it, "the file system is full"))
        ballast.unlink()
        await attempt
        assert it.records() == {first.uid, second.uid}
        await kubelet.unprepare(first, second)
        it.assert_clean()
    finally:
        it.node.end(signal.SIGKILL)
        run("umount", str(it.node.plugins))


async def _logged(it: World, text: str) -> bool:
    return text in it.node.log.read_text()
