"""The plugin on a node with AMD GPUs: what it publishes, what a claim gets, and what a killed one leaves."""

import asyncio
from typing import Any

import pytest
from bench.kubelet import PrepareFailed

from tests.support.amd_world import AmdWorld, in_amd_world
from tests.support.plugin_world import rolling_update, run, until

RELOADED = "gpu-0000-05-00-0-cpx-nps4"
CHANGED = "gpu-0000-05-00-0-cpx-nps1"
WHOLE = "gpu-0000-05-00-0-spx-nps1"
AMD = "gpu.resource.amd.com/v1alpha1"


@in_amd_world()
async def test_devices_tell_of_the_driver_the_family_and_the_hive(it: AmdWorld) -> None:
    await it.start()

    async def published() -> Any:
        return [device for piece in await it.slices() for device in piece["spec"].get("devices", ())]

    for device in await until("devices", published):
        attributes = device["attributes"]
        assert attributes["driverVersion"] == {"version": "6.12.12"}
        assert attributes["driverVersionFull"] == {"string": "6.12.12"}
        assert attributes["driverSrcVersion"] == {"string": "0F4C2B7B1B5E3A1D9C8E7F6"}
        assert attributes["family"] == {"string": "AI"}
        assert attributes["hiveID"]["string"].isdigit()


@in_amd_world()
async def test_a_container_is_told_its_node_and_its_driver(it: AmdWorld) -> None:
    """Also with AMD's config, which has no fields, of the claim and of its class."""
    kubelet = await it.start()
    opaque = {"driver": "gpu.amd.com", "parameters": {"apiVersion": AMD, "kind": "GpuConfig"}}
    configs = [{"source": source, "requests": [], "opaque": opaque} for source in ("FromClass", "FromClaim")]
    await kubelet.prepare(await it.claim("gpu", CHANGED, configs=configs))
    (spec,) = it.specs().values()
    edits = spec["containerEdits"]
    assert edits["env"] == [f"KUBERNETES_NODE_NAME={it.node.name}", "DRA_RESOURCE_DRIVER_NAME=gpu.amd.com"]
    assert [node["path"] for node in edits["deviceNodes"]] == ["/dev/kfd"]
    (device,) = spec["devices"]
    assert len(device["containerEdits"]["deviceNodes"]) == 2


@in_amd_world()
async def test_what_a_twin_did_for_its_claims_is_seen_before_the_next_claim(it: AmdWorld) -> None:
    """In a rolling update the other instance may have left a GPU in another mode a moment ago."""
    async with rolling_update(it, RESCAN_INTERVAL_S="600") as (first, second):
        part, whole = await it.claim("part", CHANGED), await it.claim("whole", WHOLE)
        await first.prepare(part)
        await first.unprepare(part)
        assert it.modes() == ["cpx_nps1", "spx_nps1"]
        await second.prepare(whole)
        assert it.modes() == ["spx_nps1"] * 2
        await second.unprepare(whole)
        it.assert_released()


@in_amd_world()
async def test_a_partition_of_another_node_is_not_given_out_here(it: AmdWorld) -> None:
    kubelet = await it.start()
    claim = await it.claim("elsewhere", CHANGED, pool="another")
    with pytest.raises(PrepareFailed, match=rf"elsewhere: request r0: .* pool another, .* node {it.node.name};"):
        await kubelet.prepare(claim)
    it.assert_released()
    assert it.modes() == ["spx_nps1"] * 2


@pytest.mark.parametrize("device", [CHANGED, RELOADED])
@pytest.mark.parametrize("step", ["intent", "hardware", "cdi", "done"])
@in_amd_world()
async def test_killed_after_any_step_of_prepare_the_next_run_converges(it: AmdWorld, step: str, device: str) -> None:
    claim = await it.claim("part", device)
    kubelet = await it.prepare_over_a_crash(claim, step)
    assert it.modes() == (["cpx_nps4"] * 2 if device == RELOADED else ["cpx_nps1", "spx_nps1"])
    assert (len(it.specs()), it.records()) == (1, {claim.uid})
    await kubelet.unprepare(claim)
    it.assert_released()


@pytest.mark.parametrize("step", ["cdi_removed", "removed"])
@in_amd_world()
async def test_killed_after_any_step_of_unprepare_the_next_run_converges(it: AmdWorld, step: str) -> None:
    await it.unprepare_over_a_crash(await it.claim("part", CHANGED), step)
    it.assert_released()


@in_amd_world()
async def test_a_reload_that_fails_for_a_claim_is_tried_again_and_says_what_stays_asked_for(it: AmdWorld) -> None:
    """The kernel takes no request for a memory mode back, so whoever loads the driver next gets it."""
    claim = await it.claim("part", RELOADED)
    kubelet = await it.start()
    it.simulate("--failing-reloads", "1000000")
    preparing = asyncio.create_task(kubelet.prepare(claim))
    (event,) = await until("an Event on the node", lambda: it.events("MemoryModePending"))
    assert event["regarding"]["name"] == it.node.name
    assert "NPS4 stays asked for" in event["note"]
    assert it.modes() == ["spx_nps1 -> nps4"] * 2
    it.simulate("--failing-reloads", "0")
    await preparing
    assert it.modes() == ["cpx_nps4"] * 2
    await kubelet.unprepare(claim)
    it.assert_released()


@in_amd_world()
async def test_a_reload_that_loses_the_driver_is_made_up_for(it: AmdWorld) -> None:
    claim = await it.claim("part", RELOADED)
    kubelet = await it.start()
    it.simulate("--losing-reloads", "1")
    await kubelet.prepare(claim)
    assert it.modes() == ["cpx_nps4"] * 2
    assert it.simulate()["driver"]["loaded"]


async def assert_goes_home(it: AmdWorld) -> None:
    """Into the modes of before the claim, by itself."""

    async def left() -> bool:
        return "nps4" not in str(it.modes())

    await until("it leaves the memory mode", left, 60.0)
    assert it.modes() == ["spx_nps1"] * 2


@in_amd_world()
async def test_an_idle_node_returns_from_a_mode_that_another_reload_brought_for_a_claim_of_before(
    it: AmdWorld,
) -> None:
    claim = await it.claim("part", RELOADED)
    kubelet = await it.start(RESCAN_INTERVAL_S="0.5")
    modprobe = it.node.driver_root / "usr/sbin/modprobe"
    modprobe.rename(modprobe.with_name("aside"))
    with pytest.raises(PrepareFailed, match=r"cannot be run.*NPS4 stays asked for.*next load of amdgpu"):
        await kubelet.prepare(claim)
    await kubelet.unprepare(claim)
    modprobe.with_name("aside").rename(modprobe)
    for words in (["-r", "amdgpu"], ["amdgpu"]):
        run("chroot", str(it.node.driver_root), "/usr/sbin/modprobe", *words)
    assert it.modes() == ["cpx_nps4"] * 2
    await assert_goes_home(it)


async def leave_in_another_memory_mode(it: AmdWorld) -> None:
    """A claim has brought the node into CPX/NPS4, and is gone."""
    kubelet = await it.start()
    claim = await it.claim("part", RELOADED)
    await kubelet.prepare(claim)
    await kubelet.unprepare(claim)
    assert it.modes() == ["cpx_nps4"] * 2


@in_amd_world()
async def test_an_idle_node_goes_home_also_after_a_restart(it: AmdWorld) -> None:
    await leave_in_another_memory_mode(it)
    it.node.end()
    await it.start(RESCAN_INTERVAL_S="0.5")
    await assert_goes_home(it)


@in_amd_world()
async def test_what_an_administrator_chose_while_the_plugin_was_down_stands(it: AmdWorld) -> None:
    await leave_in_another_memory_mode(it)
    it.node.end()
    it.simulate("--set-modes", "qpx_nps4")
    await it.start(RESCAN_INTERVAL_S="0.5")
    await asyncio.sleep(20.0)  # an idle node goes home after 15 s
    assert it.modes() == ["qpx_nps4"] * 2
