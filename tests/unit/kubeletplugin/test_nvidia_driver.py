"""NVIDIA's driver beside a twin, an admin, a broken disk and an API server that refuses: whose instance is whose."""

import asyncio
import errno
import fcntl
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from api.errors import Retryable
from kubeletplugin import files as files_module
from kubeletplugin import nvidia as nvidia_module
from kubeletplugin.disk import DiskFull, replace_whole
from kubeletplugin.hardware.backend import DeviceBusy
from kubeletplugin.model.checkpoint import ClaimRecord, MigHolding
from kubeletplugin.model.inventory import MigInstance, Placement
from kubeletplugin.model.steps import CreateMigInstance, DisableMig, HardwareStep, after_step
from tests.scenarios.hardware import h100
from tests.scenarios.node import TREE
from tests.support.waiting import until
from tests.unit.kubeletplugin.nvidia_world import Node

GPU, PLACE = h100(0), Placement(0, 1)
SLICE, NEIGHBOUR = "gpu-0-mig-1g10gb-19-0", "gpu-0-mig-1g10gb-19-1"
STATIC = Placement(1, 1)


def run(folder: Path, scenario: Callable[[Node], Awaitable[None]]) -> None:
    async def main() -> None:
        await scenario(Node(folder))

    asyncio.run(main())


def holding(record: ClaimRecord) -> MigHolding:
    (device,) = record.devices
    assert isinstance(device.holding, MigHolding)
    return device.holding


def assert_real(node: Node, record: ClaimRecord, *, owned: bool) -> None:
    """The claim has the one instance that there is."""
    (instance,) = node.rack.instances()
    held = holding(record)
    assert (held.owned, held.uuid, held.gpu_instance_id) == (owned, instance.uuid, instance.gpu_instance_id)


def refuse(step: type[HardwareStep]) -> Callable[[HardwareStep], None]:
    def before(each: HardwareStep) -> None:
        if isinstance(each, step):
            raise DeviceBusy(f"{type(each).__name__} on {each.gpu_uuid}: in use")

    return before


# A twin, as in a rolling update


def test_a_starting_plugin_looks_at_the_hardware_once_nobody_else_changes_it(tmp_path: Path) -> None:
    """It has seen an instance that its predecessor gives back before it lets go of the journal."""

    async def scenario(node: Node) -> None:
        old, new = node.plugin(), node.plugin()
        await old.driver.recover()
        await old.prepare("x", SLICE)
        async with old.store.lease():
            starting = asyncio.ensure_future(new.driver.recover())
            await asyncio.sleep(0.1)
            await old.unprepare("x")
        await starting
        assert SLICE in new.offered()
        assert_real(node, await new.prepare("y", SLICE), owned=True)

    run(tmp_path, scenario)


def test_what_a_twin_gave_back_is_no_admins_instance(tmp_path: Path) -> None:
    async def scenario(node: Node) -> None:
        old, new = node.plugin(), node.plugin()
        await old.driver.recover()
        await old.prepare("x", SLICE)
        await new.driver.recover()
        await old.unprepare("x")
        assert_real(node, await new.prepare("y", SLICE), owned=True)

    run(tmp_path, scenario)


def test_a_gpu_that_a_twin_left_in_mig_mode_leaves_it_before_it_is_given_out_whole(tmp_path: Path) -> None:
    async def scenario(node: Node) -> None:
        old, new = node.plugin(), node.plugin()
        await old.driver.recover()
        await new.driver.recover()
        await old.prepare("x", SLICE)
        node.rack.before = refuse(DisableMig)
        await old.unprepare("x")
        node.rack.before = lambda step: None
        await new.prepare("y", "gpu-0")
        (gpu, _) = node.rack.hardware.inventory.gpus
        assert gpu.mig is not None and not gpu.mig.enabled

    run(tmp_path, scenario)


# An admin


def test_a_static_instance_that_is_gone_since_the_last_look_is_made(tmp_path: Path) -> None:
    async def scenario(node: Node) -> None:
        plugin = node.plugin()
        node.rack.create(GPU, 19, PLACE)
        await plugin.driver.recover()
        node.rack.delete(GPU, 19, PLACE)
        assert_real(node, await plugin.prepare("y", SLICE), owned=True)

    run(tmp_path, scenario)


def test_an_instance_that_an_admin_made_since_the_last_look_is_given_out_and_stays(tmp_path: Path) -> None:
    async def scenario(node: Node) -> None:
        plugin = node.plugin()
        await plugin.driver.recover()
        theirs = node.rack.create(GPU, 19, PLACE)
        assert_real(node, await plugin.prepare("y", SLICE), owned=False)
        await plugin.unprepare("y")
        assert node.rack.instances() == [theirs]

    run(tmp_path, scenario)


def test_a_static_instance_that_was_made_anew_is_given_out_as_what_it_is_now(tmp_path: Path) -> None:
    async def scenario(node: Node) -> None:
        plugin = node.plugin()
        node.rack.create(GPU, 19, PLACE)
        await plugin.driver.recover()
        node.rack.delete(GPU, 19, PLACE)
        node.rack.create(GPU, 19, PLACE)
        assert_real(node, await plugin.prepare("y", SLICE), owned=False)
        await plugin.unprepare("y")
        assert len(node.rack.instances()) == 1

    run(tmp_path, scenario)


def test_what_an_admin_makes_in_the_moment_before_us_is_not_undone_for_ours(tmp_path: Path) -> None:
    async def scenario(node: Node) -> None:
        plugin = node.plugin()
        await plugin.driver.recover()
        theirs = MigInstance(1, 19, PLACE, 0, "MIG-admin", foreign=True)

        def before(step: HardwareStep) -> None:
            if isinstance(step, CreateMigInstance):
                node.rack.hardware = replace(
                    node.rack.hardware, inventory=after_step(node.rack.hardware.inventory, step, theirs)
                )

        node.rack.before = before
        with pytest.raises(DeviceBusy):
            await plugin.prepare("y", SLICE)
        assert node.rack.instances() == [theirs]
        assert not plugin.store.checkpoint.records

    run(tmp_path, scenario)


@pytest.mark.parametrize("seen", [True, False])
def test_what_an_admin_made_in_the_place_of_ours_outlives_the_claim(tmp_path: Path, seen: bool) -> None:
    """Whether or not the plugin has seen that its own is gone."""

    async def scenario(node: Node) -> None:
        plugin = node.plugin()
        await plugin.driver.recover()
        await plugin.prepare("y", SLICE)
        node.rack.delete(GPU, 19, PLACE)
        if seen:
            await plugin.driver._look()
        theirs = node.rack.create(GPU, 19, PLACE)
        await plugin.unprepare("y")
        assert node.rack.instances() == [theirs]
        assert not plugin.store.checkpoint.records

    run(tmp_path, scenario)


def test_what_was_on_a_gpu_that_is_lost_since_the_last_look_is_forgotten(tmp_path: Path) -> None:
    async def scenario(node: Node) -> None:
        plugin = node.plugin()
        await plugin.driver.recover()
        await plugin.prepare("y", SLICE)
        node.rack.lost = {GPU.uuid}
        await plugin.unprepare("y")
        assert (plugin.store.checkpoint.records, node.files("cdi")) == ({}, [])

    run(tmp_path, scenario)


# A journal that must be made anew


def test_an_unreadable_cdi_file_of_a_claim_that_is_gone_is_set_aside_once(tmp_path: Path) -> None:
    async def scenario(node: Node) -> None:
        plugin = node.plugin()
        (tmp_path / "cdi").mkdir()
        file = node.cdi.path("k8s.gpu.nvidia.com-claim_gone.json")
        file.write_text("{")
        await asyncio.wait_for(plugin.driver.recover(), 10)
        assert node.files("cdi") == [f"{file.name}.unreadable"]
        assert node.files("plugin") == ["claims.journal", "claims.journal.unreadable-1", "claims.lock"]
        assert node.board.pinned == ["CheckpointRebuilt"]
        await node.plugin().driver.recover()
        assert node.board.pinned == ["CheckpointRebuilt"]

    run(tmp_path, scenario)


def test_a_journal_is_made_anew_under_the_lease_as_soon_as_the_disk_has_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusals = [OSError(errno.ENOSPC, "full")] * 3

    def write(path: Path, data: bytes, *, durable: bool) -> None:
        with (tmp_path / "plugin/claims.lock").open() as other, pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if refusals:
            raise refusals.pop()
        replace_whole(path, data, durable=durable)

    async def scenario(node: Node) -> None:
        before = node.plugin()
        await before.driver.recover()
        record = await before.prepare("x", SLICE)
        before.store.path.write_bytes(b"spoilt")
        monkeypatch.setattr(nvidia_module, "_MISSING_RETRY_S", 0.01)
        monkeypatch.setattr(files_module, "replace_whole", write)
        after = node.plugin()
        await after.driver.recover()
        assert after.store.checkpoint.records == {"x": record}
        asides = [name for name in node.files("plugin") if "unreadable" in name]
        assert asides == ["claims.journal.unreadable-1"]

    run(tmp_path, scenario)


# Hardware that is not what it was


def test_without_its_driver_a_node_offers_nothing_and_a_claim_waits_for_it(tmp_path: Path) -> None:
    async def scenario(node: Node) -> None:
        plugin = node.plugin(rescan_s=0.01)
        await plugin.driver.recover()
        changed = asyncio.Event()
        running = asyncio.create_task(plugin.driver.run(changed.set))
        node.rack.is_unloaded = True
        await asyncio.wait_for(changed.wait(), 5)
        assert plugin.offered() == set()
        with pytest.raises(Retryable, match=r"claim default/claim-x: device gpu-0 .*Driver Not Loaded"):
            await plugin.prepare("x", "gpu-0")
        changed.clear()
        node.rack.is_unloaded = False
        await asyncio.wait_for(changed.wait(), 5)
        assert {"gpu-0", SLICE} < plugin.offered()
        await plugin.prepare("x", "gpu-0")
        running.cancel()
        await asyncio.wait((running,))

    run(tmp_path, scenario)


@pytest.mark.parametrize("restarts", [True, False])
def test_with_another_version_of_the_driver_prepared_claims_get_its_files(tmp_path: Path, restarts: bool) -> None:
    """Their containers may be started again, and the files of the old version are gone."""

    async def scenario(node: Node) -> None:
        def texts() -> list[str]:
            return [(node.folder / "cdi" / name).read_text() for name in node.files("cdi") if name.endswith(".json")]

        plugin = node.plugin(rescan_s=0.01)
        await plugin.driver.recover()
        await plugin.prepare("x", SLICE)
        await plugin.prepare("y", "gpu-1")
        (library, *others) = TREE.libraries
        renewed = replace(library, path=library.path.replace("570.158.01", "580.105.08"))
        node.driver_files.tree = replace(TREE, libraries=(renewed, *others))
        if restarts:
            await node.plugin().driver.recover()
        else:
            running = asyncio.create_task(plugin.driver.run(lambda: None))
            await until(lambda: all(renewed.path in text for text in texts()))
            running.cancel()
            await asyncio.wait((running,))
        assert len(texts()) == 2
        assert all(renewed.path in text and library.path not in text for text in texts())

    run(tmp_path, scenario)


def test_where_the_disk_has_no_room_for_the_files_of_another_version_they_are_written_once_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(node: Node) -> None:
        plugin = node.plugin(rescan_s=0.01)
        await plugin.driver.recover()
        await plugin.prepare("x", SLICE)
        refused = []

        def refuse_write(name: str, data: bytes) -> None:
            refused.append(name)
            raise DiskFull(f"{name}: the file system is full")

        (library, *others) = TREE.libraries
        renewed = replace(library, path=library.path.replace("570.158.01", "580.105.08"))
        node.driver_files.tree = replace(TREE, libraries=(renewed, *others))
        running = asyncio.create_task(plugin.driver.run(lambda: None))
        with monkeypatch.context() as full:
            full.setattr(node.cdi, "write", refuse_write)
            await until(lambda: refused)
        (file,) = (node.folder / "cdi").glob("*.json")
        await until(lambda: renewed.path in file.read_text())
        running.cancel()
        await asyncio.wait((running,))

    run(tmp_path, scenario)


def test_where_gpus_are_numbered_anew_while_a_claim_waits_nothing_is_made_on_one_that_is_not_held(
    tmp_path: Path,
) -> None:
    async def scenario(node: Node) -> None:
        plugin = node.plugin()
        await plugin.driver.recover()
        first, second = node.rack.hardware.inventory.gpus
        async with plugin.driver._executor.holding([first.uuid]):
            preparing = asyncio.create_task(plugin.prepare("x", SLICE))
            await until(lambda: plugin.store.checkpoint.records)  # its place is reserved, and it waits for the GPU
            swapped = (replace(first, minor=1), replace(second, minor=0))
            node.rack.hardware = replace(
                node.rack.hardware, inventory=replace(node.rack.hardware.inventory, gpus=swapped)
            )
            await plugin.driver._look()
        with pytest.raises(Retryable, match=r"claim default/claim-x: .*numbered anew"):
            await preparing
        assert not node.rack.instances() and not plugin.store.checkpoint.records
        record = await plugin.prepare("x", SLICE)
        assert holding(record).gpu_uuid == second.uuid

    run(tmp_path, scenario)
