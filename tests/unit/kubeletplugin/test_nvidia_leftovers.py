"""Claims that are gone from the API server, or seem so: what they hold is given back, and never under a new user."""

import asyncio
import time
from pathlib import Path

import pytest

from api.client import Forbidden
from api.errors import Busy
from kubeletplugin.model.steps import DeleteMigInstance
from tests.support.waiting import until
from tests.unit.kubeletplugin.nvidia_world import Node, ref
from tests.unit.kubeletplugin.test_nvidia_driver import NEIGHBOUR, SLICE, assert_real, refuse, run


def test_one_that_cannot_be_given_back_keeps_no_other(tmp_path: Path) -> None:
    async def scenario(node: Node) -> None:
        plugin = node.plugin(grace_s=0.0)
        await plugin.driver.recover()
        await plugin.prepare("a", SLICE)
        await plugin.prepare("b", "gpu-1")
        node.api.claims.clear()
        node.rack.before = refuse(DeleteMigInstance)
        await plugin.sweep()
        assert set(plugin.store.checkpoint.records) == {"a"}

    run(tmp_path, scenario)


def test_one_that_is_allocated_on_another_node_by_now_has_nothing_here(tmp_path: Path) -> None:
    """Its devices there have the same names."""

    async def scenario(node: Node) -> None:
        plugin = node.plugin(grace_s=0.0)
        await plugin.driver.recover()
        await plugin.prepare("a", "gpu-1")
        (result,) = node.api.claims["claim-a"]["status"]["allocation"]["devices"]["results"]
        await plugin.sweep()
        assert set(plugin.store.checkpoint.records) == {"a"}
        result["pool"] = "another"
        await plugin.sweep()
        assert not plugin.store.checkpoint.records

    run(tmp_path, scenario)


def test_who_waits_for_what_cannot_be_given_back_is_told_of_its_holder(tmp_path: Path) -> None:
    async def scenario(node: Node) -> None:
        plugin = node.plugin(grace_s=0.0)
        await plugin.driver.recover()
        await plugin.prepare("a", SLICE)
        node.api.claims.clear()
        node.rack.before = refuse(DeleteMigInstance)
        with pytest.raises(Busy, match=r"claim default/claim-y: .* what claim default/claim-a holds"):
            await plugin.prepare("y", "gpu-0")

    run(tmp_path, scenario)


def test_an_api_server_that_refuses_is_not_asked_without_a_pause(tmp_path: Path) -> None:
    async def scenario(node: Node) -> None:
        plugin = node.plugin(grace_s=0.0)
        await plugin.driver.recover()
        await plugin.prepare("a", "gpu-0")
        node.api.refusal = Forbidden("GET claims (403)", 403)
        await plugin.sweep()
        assert node.api.asked == 1
        assert set(plugin.store.checkpoint.records) == {"a"}

    run(tmp_path, scenario)


def test_a_claim_that_a_twin_gave_back_keeps_nobody_awake(tmp_path: Path) -> None:
    async def scenario(node: Node) -> None:
        plugin, twin = node.plugin(grace_s=0.05), node.plugin()
        await plugin.driver.recover()
        await plugin.prepare("a", "gpu-0")
        await twin.driver.recover()
        node.api.claims.clear()
        stale, (record,) = plugin.driver._leftovers._stale, plugin.store.checkpoint.records.values()
        assert not await stale.is_stale(record)
        await twin.unprepare("a")
        async with plugin.store.lease():
            records = plugin.store.checkpoint.records
        assert stale.next_due_s(records, 600.0) == 600.0

    run(tmp_path, scenario)


def test_a_claim_that_is_allocated_and_prepared_again_while_it_is_looked_into_keeps_its_device(tmp_path: Path) -> None:
    """It was gone when the API server was asked for it, and its pod has not started yet."""

    async def scenario(node: Node) -> None:
        plugin = node.plugin(grace_s=0.0)
        await plugin.driver.recover()
        record = await plugin.prepare("x", SLICE)
        allocated = node.api.claims.pop("claim-x")
        loop, asked = asyncio.get_running_loop(), []

        def read_processes(uuid: str) -> tuple[int, ...]:
            asked.append(uuid)
            asyncio.run_coroutine_threadsafe(plugin.driver.prepare(allocated, ref("x")), loop).result(5)
            return ()

        node.rack.read_processes = read_processes  # type: ignore[method-assign]
        async with plugin.sweeping():
            await until(lambda: asked)
            await asyncio.sleep(0.1)
        assert plugin.store.checkpoint.records["x"] == record
        assert len(node.rack.instances()) == len(node.files("cdi")) == 1

    run(tmp_path, scenario)


def test_a_claim_that_is_asked_for_while_its_devices_are_given_back_is_prepared_anew(tmp_path: Path) -> None:
    async def scenario(node: Node) -> None:
        plugin = node.plugin(grace_s=0.0)
        await plugin.driver.recover()
        before = await plugin.prepare("x", SLICE)
        allocated = node.api.claims.pop("claim-x")
        loop, asked = asyncio.get_running_loop(), asyncio.Event()

        def begin(step: object) -> None:
            if isinstance(step, DeleteMigInstance):
                node.api.claims["claim-x"] = allocated
                asyncio.run_coroutine_threadsafe(_ask(), loop)
                time.sleep(0.05)

        async def _ask() -> None:
            await plugin.prepare("x", SLICE)
            asked.set()

        node.rack.before = begin
        async with plugin.sweeping():
            await asyncio.wait_for(asked.wait(), 10)
        record = plugin.store.checkpoint.records["x"]
        assert record != before
        assert_real(node, record, owned=True)
        assert len(node.files("cdi")) == 1

    run(tmp_path, scenario)


def test_while_the_api_server_is_asked_for_claims_of_one_instance_another_prepares(tmp_path: Path) -> None:
    async def scenario(node: Node) -> None:
        old, new = node.plugin(), node.plugin()
        await old.driver.recover()
        await old.prepare("x", SLICE)
        await new.driver.recover()
        node.api.slow["claim-x"] = asyncio.Event()
        async with old.sweeping():
            await until(lambda: node.api.asked)
            await new.prepare("y", NEIGHBOUR)
        assert set(new.store.checkpoint.records) == {"x", "y"}

    run(tmp_path, scenario)
