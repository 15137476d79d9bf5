"""Channels of ComputeDomains: who is given one, when, and what those who wait are told."""

import asyncio
import os
from typing import Any

import pytest
from bench.kubelet import PrepareFailed
from bench.objects import Claim

from api.client import ApiError, path
from tests.support.domain_node_world import API, DRIVER, SYSTEM, World, cluster, edits, in_world
from tests.support.waiting import until

__all__ = ["cluster"]


@in_world()
async def test_the_node_offers_a_channel_for_many_claims_and_one_daemon_with_their_clique(it: World) -> None:
    devices = {device["name"]: device for device in await it.devices()}
    assert set(devices) == {"channel-0", "daemon-0"}
    assert devices["channel-0"]["allowMultipleAllocations"] is True
    assert it.clique.endswith(".1")
    assert it.clique.startswith(devices["daemon-0"]["attributes"]["nvlinkDomain"]["string"])


async def allocated_share(it: World, claim: Claim) -> str:
    where = path("resource.k8s.io/v1", "resourceclaims", namespace=claim.namespace, name=claim.name)
    (result,) = (await it.client.get(where))["status"]["allocation"]["devices"]["results"]
    return str(result["shareID"])


@in_world()
async def test_a_channel_is_given_out_when_the_controller_says_so_and_not_before(it: World) -> None:
    claim, second = await it.claim("c0"), await it.claim("c1")
    waiting = asyncio.create_task(it.kubelet.prepare(claim))
    await asyncio.sleep(1)
    await it.publish(released=False, message="waits for node-2")
    await asyncio.sleep(1)
    assert not waiting.done()
    assert it.specs() == {}
    await it.publish(released=True)
    (device,) = (await waiting)[claim.uid]
    assert device.device_name == "channel-0"
    assert device.share_id == await allocated_share(it, claim)
    (other,) = (await it.kubelet.prepare(second))[second.uid]
    assert other.share_id == await allocated_share(it, second) != device.share_id
    assert list(other.cdi_device_ids) != list(device.cdi_device_ids)
    nodes = [edits(spec)["deviceNodes"] for spec in it.specs().values()]
    assert [[node["path"] for node in each] for each in nodes] == [["/dev/nvidia-caps-imex-channels/channel0"]] * 2
    assert it.domains() == [it.domain]
    await it.kubelet.unprepare(claim)
    assert it.domains() == [it.domain]
    await it.kubelet.unprepare(second)
    assert (it.specs(), it.domains()) == ({}, [])


async def wait_for_channel(it: World, **policy: str) -> tuple[Claim, asyncio.Task[dict[str, Any]]]:
    """A claim for a domain that is not released on this node, and the call that waits for it."""
    await it.publish(released=False, address="10.0.0.2", **policy)
    claim = await it.claim("c0")
    waiting = asyncio.create_task(it.kubelet.prepare(claim))
    await until(lambda: it.domains() == [it.domain])
    return claim, waiting


@in_world()
async def test_a_channel_is_given_out_when_this_nodes_daemon_says_that_it_is_connected(it: World) -> None:
    """The daemon of the address that the controller has told, and of no other."""
    claim, waiting = await wait_for_channel(it)
    it.report("10.0.0.2", ready=False)
    it.report("10.0.0.1")
    await asyncio.sleep(1)
    assert not waiting.done()
    it.report("10.0.0.2")
    (device,) = (await waiting)[claim.uid]
    assert device.device_name == "channel-0"
    await it.kubelet.unprepare(claim)
    assert it.domains() == []


@in_world()
async def test_of_a_daemon_that_was_killed_no_word_is_believed_until_the_next_one_says_it(it: World) -> None:
    claim, waiting = await wait_for_channel(it)
    second = await it.claim("c1")
    it.report("10.0.0.2")
    assert (await waiting)[claim.uid]
    it.kill_daemon()
    await it.publish(released=True, address="10.0.0.2")  # the controller has not heard of it
    waiting = asyncio.create_task(it.kubelet.prepare(second))
    await until(lambda: "its daemon on this node has ended" in it.node.log.read_text())
    assert not waiting.done()
    it.report("10.0.0.2")
    assert (await waiting)[second.uid]


@in_world()
async def test_with_release_policy_all_nodes_a_daemons_word_is_not_enough(it: World) -> None:
    claim, waiting = await wait_for_channel(it, policy="AllNodes")
    it.report("10.0.0.2")
    await asyncio.sleep(1)
    assert not waiting.done()
    await it.publish(released=True, address="10.0.0.2", policy="AllNodes")
    assert (await waiting)[claim.uid]


@in_world()
async def test_a_daemon_can_lead_the_plugin_nowhere(it: World) -> None:
    """Its folder is its own to write: a link in the place of its report is not followed, a pipe is not waited for."""
    claim, waiting = await wait_for_channel(it)
    folder = it.node.plugins / DRIVER / "domains" / it.domain / "status"
    it.report("10.0.0.2", ready=False)
    (folder / "elsewhere").write_text((folder / "status.json").read_text().replace("false", "true"))
    (folder / "link").symlink_to("elsewhere")
    (folder / "link").replace(folder / "status.json")
    await asyncio.sleep(1)
    assert not waiting.done()
    os.mkfifo(folder / "pipe")
    (folder / "pipe").replace(folder / "status.json")
    await it.publish(released=True, address="10.0.0.2")
    await asyncio.sleep(1)
    assert not waiting.done()
    it.report("10.0.0.2")
    assert (await waiting)[claim.uid]


@in_world()
async def test_a_prepared_channel_stays_whatever_becomes_of_the_domain_or_the_plugin(it: World) -> None:
    claim = await it.claim("c0", allocationMode="All")
    await it.publish(released=True)
    before = await it.kubelet.prepare(claim)
    assert len(edits(next(iter(it.specs().values())))["deviceNodes"]) == 2048
    await it.client.delete(path(API, "computedomaincliques", namespace=SYSTEM, name=it.clique_name))
    await it.restart()
    again = await it.kubelet.prepare(claim)
    assert list(again[claim.uid][0].cdi_device_ids) == list(before[claim.uid][0].cdi_device_ids)
    await it.kubelet.unprepare(claim)
    await it.kubelet.unprepare(claim)
    assert it.specs() == {}


@pytest.mark.parametrize("kind", ["Channel", "Daemon"])
@in_world()
async def test_a_device_of_another_nodes_pool_is_not_given_out_here(it: World, kind: str) -> None:
    await it.publish(released=True)
    claim = await it.claim("elsewhere", kind, namespace="" if kind == "Channel" else SYSTEM, pool="another")
    with pytest.raises(PrepareFailed, match=rf"elsewhere: request r0: .* pool another, .* node {it.node.name};"):
        await it.kubelet.prepare(claim)
    assert (it.specs(), it.domains()) == ({}, [])


@in_world()
async def test_a_claim_of_another_namespace_gets_nothing_at_once(it: World) -> None:
    await it.publish(released=True, namespace="somebody-else")
    claim = await it.claim("c0")
    with pytest.raises(PrepareFailed, match="in another namespace"):
        await it.kubelet.prepare(claim)
    daemon = await it.claim("d0", kind="Daemon")
    with pytest.raises(PrepareFailed, match=f"namespace {SYSTEM} only"):
        await it.kubelet.prepare(daemon)
    assert (it.specs(), it.domains()) == ({}, [])


@pytest.mark.parametrize(
    ("extra", "words"), [({"mode": "Single"}, "mode: unknown field"), ({"domainID": ""}, "domainID")]
)
@in_world()
async def test_a_malformed_config_is_refused_at_once(it: World, extra: dict[str, str], words: str) -> None:
    await it.publish(released=True)
    claim = await it.claim("c0", **extra)
    with pytest.raises(PrepareFailed, match=words):
        await it.kubelet.prepare(claim)


@in_world()
async def test_a_draining_domain_takes_no_new_claims(it: World) -> None:
    await it.publish(released=True, draining=True)
    claim = await it.claim("c0")
    with pytest.raises(PrepareFailed, match="is being deleted"):
        await it.kubelet.prepare(claim)


@in_world()
async def test_a_call_that_waits_in_vain_ends_before_the_kubelets_patience_and_says_why(it: World) -> None:
    await it.publish(released=False, message="node is used by ComputeDomain team/first")
    claim = await it.claim("c0")
    with pytest.raises(PrepareFailed, match="node is used by ComputeDomain team/first"):
        await it.kubelet.prepare(claim)


@in_world()
async def test_a_pod_that_is_deleted_while_it_waits_need_not_wait_any_longer(it: World) -> None:
    claim = await it.claim("c0")
    waiting = asyncio.create_task(it.kubelet.prepare(claim))
    await asyncio.sleep(1)
    waiting.cancel()  # the kubelet gives the call up when the pod is deleted
    async with asyncio.timeout(20):
        await it.kubelet.unprepare(claim)
    await it.publish(released=True)
    await asyncio.sleep(1)
    assert it.specs() == {}


@in_world()
async def test_claims_wait_through_an_outage_of_the_api_server_and_new_ones_join_them_soon_after_it(it: World) -> None:
    """Each is prepared within its first call: the kubelet's next one would come after a minute or more."""
    before, after = await it.claim("c0"), await it.claim("c1")
    waiting = asyncio.create_task(it.kubelet.prepare(before))
    await it.publish(released=False, message="waits for node-2")
    await until(lambda: "waits for node-2" in it.node.log.read_text())
    await asyncio.to_thread(it.cluster.run, "kill", "control-plane", "apiserver")
    try:
        await asyncio.sleep(15)  # long enough for attempts to become as rare as they get
        assert not waiting.done()
    finally:
        await asyncio.to_thread(it.cluster.run, "start", "control-plane", "apiserver")
    joining = asyncio.create_task(it.kubelet.prepare(after))
    async with asyncio.timeout(60):
        await publish_when_served(it)
    await asyncio.gather(waiting, joining)


async def publish_when_served(it: World) -> None:
    while True:
        try:
            await it.publish(released=True)
            return
        except ApiError:
            await asyncio.sleep(0.2)


@in_world()
async def test_a_claim_that_nobody_waits_for_any_more_is_answered_at_once(it: World) -> None:
    await it.publish(released=False, message="waits for node-2")
    claim = await it.claim("c0")
    waiting = asyncio.create_task(it.kubelet.prepare(claim))
    await until(lambda: it.domains() == [it.domain])
    await it.publish(released=False, abandoned=(claim.uid,))
    with pytest.raises(PrepareFailed, match="are being deleted"):
        await waiting
    assert (it.specs(), it.domains()) == ({}, [])
