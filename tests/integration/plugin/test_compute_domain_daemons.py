"""The node's part of IMEX daemons, and of what claims of ComputeDomains leave."""

import asyncio
import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import pytest
from bench.kubelet import PrepareFailed
from bench.objects import Claim

from api.client import path
from tests.support.domain_node_world import API, SYSTEM, World, cluster, edits, in_world, read
from tests.support.waiting import until

__all__ = ["cluster"]


@in_world()
async def test_a_daemon_gets_its_directory_programs_and_capability(it: World) -> None:
    daemon = await it.claim("d0", kind="Daemon", namespace=SYSTEM)
    await it.kubelet.prepare(daemon)
    (spec,) = it.specs().values()
    mounts = {mount["containerPath"]: Path(mount["hostPath"]) for mount in edits(spec)["mounts"]}
    assert mounts["/imexd"].is_dir()
    assert mounts["/usr/bin/nvidia-imex"].is_file()
    assert mounts["/usr/bin/nvidia-imex-ctl"].is_file()
    minors = [node["path"] for node in edits(spec)["deviceNodes"] if "nvidia-caps" in node["path"]]
    assert len(minors) == 1
    await it.kubelet.unprepare(daemon)
    assert (it.specs(), it.domains()) == ({}, [])


@in_world()
async def test_a_daemon_is_brought_the_membership_of_its_own_domain_and_of_no_other(it: World) -> None:
    await it.publish(released=False, message="of another domain")
    it.domain = str(uuid4())
    daemon = await it.claim("d-told", kind="Daemon", namespace=SYSTEM)
    await it.kubelet.prepare(daemon)
    (spec,) = it.specs().values()
    mounts = {mount["containerPath"]: mount for mount in edits(spec)["mounts"]}
    file = Path(mounts["/imexd/membership"]["hostPath"], "membership.json")
    assert "ro" in mounts["/imexd/membership"]["options"]
    assert read(file) == {"version": 1}
    message = "first"

    def told() -> bool:
        return [entry.get("message") for entry in read(file).get("daemons", ())] == [message]

    await it.publish(released=False, message=message)
    await until(told)
    assert read(file)["metadata"] == {"name": it.clique_name}
    await it.restart()
    message = "after a restart"
    await it.publish(released=False, message=message)
    await until(told)
    await it.client.delete(path(API, "computedomaincliques", namespace=SYSTEM, name=it.clique_name))
    await until(lambda: read(file) == {"version": 1})
    await it.kubelet.unprepare(daemon)
    assert it.domains() == []


@in_world()
async def test_claims_and_the_daemon_of_one_domain_share_one_watch(it: World) -> None:
    daemon = await it.claim("d-watch", kind="Daemon", namespace=SYSTEM)
    claims = [await it.claim("w0"), await it.claim("w1")]
    await it.kubelet.prepare(daemon)
    await it.publish(released=False, message="waits for node-2")
    waiting = [asyncio.create_task(it.kubelet.prepare(claim)) for claim in claims]
    await until(lambda: it.node.log.read_text().count("waits for node-2") == len(claims))
    await it.publish(released=True)
    await asyncio.gather(*waiting)
    log = (it.cluster.state / "logs" / "audit.log").read_text().splitlines()
    begun = [line for line in log if '"stage":"ResponseStarted"' in line and it.clique_name in line]
    assert len(begun) == 1


@in_world()
async def test_an_upgraded_plugin_brings_up_to_date_what_an_older_one_gave_to_a_daemon(it: World) -> None:
    """The container that runs does not notice; the kubelet's next one gets it."""
    daemon = await it.claim("d-old", kind="Daemon", namespace=SYSTEM)
    before = await it.kubelet.prepare(daemon)
    ((name, spec),) = it.specs().items()
    older = json.loads(json.dumps(spec))
    mounts = edits(older)["mounts"]
    mounts[:] = [mount for mount in mounts if mount["containerPath"] != "/imexd/membership"]
    (it.node.cdi / name).write_text(json.dumps(older))
    await it.restart()
    await until(lambda: it.specs() == {name: spec})
    again = await it.kubelet.prepare(daemon)
    assert list(again[daemon.uid][0].cdi_device_ids) == list(before[daemon.uid][0].cdi_device_ids)
    await it.publish(released=False, message="told")
    (folder,) = [each["hostPath"] for each in edits(spec)["mounts"] if each["containerPath"] == "/imexd/membership"]
    await until(
        lambda: [each["message"] for each in read(Path(folder, "membership.json")).get("daemons", ())] == ["told"]
    )
    await it.kubelet.unprepare(daemon)


@in_world("h100x1")
async def test_a_node_without_fabric_prepares_at_once_and_gives_no_channel(it: World) -> None:
    assert it.clique == ""
    claim = await it.claim("c0")
    (device,) = (await it.kubelet.prepare(claim))[claim.uid]
    assert list(device.cdi_device_ids) == []
    assert it.specs() == {}
    await it.kubelet.unprepare(claim)


@in_world()
async def test_what_a_claim_left_behind_is_removed_when_the_claim_is_gone(it: World) -> None:
    claim = await it.claim("c0")
    await it.publish(released=True)
    await it.kubelet.prepare(claim)
    await it.lose(claim)
    await it.restart(STALE_CLAIM_GRACE_S="1")
    await until(lambda: not it.specs() and not it.domains())


async def two_domains(it: World) -> tuple[Claim, Claim]:
    """A channel of one domain that is prepared, and the claim of another's daemon on the same node."""
    channel = await it.claim("first")
    await it.publish(released=True)
    await it.kubelet.prepare(channel)
    it.domain = str(uuid4())
    return channel, await it.claim(f"of-{it.namespace}", kind="Daemon", namespace=SYSTEM)


@in_world()
async def test_the_daemon_of_a_second_domain_waits_for_the_channels_of_the_first(it: World) -> None:
    """Whoever has channel 0 when a daemon starts is in its domain: also a pod whose own domain was ended by force."""
    channel, daemon = await two_domains(it)
    await it.restart()
    with pytest.raises(
        PrepareFailed, match=rf"of-{it.namespace}: .*another ComputeDomain.*claim {it.namespace}/first \(channel"
    ):
        await it.kubelet.prepare(daemon)
    waiting = asyncio.create_task(it.kubelet.prepare(daemon))
    await until(lambda: it.node.log.read_text().count('"waiting"') > 1)
    await it.kubelet.unprepare(channel)
    async with asyncio.timeout(3):
        assert (await waiting)[daemon.uid]
    assert it.domains() == [it.domain]
    await it.kubelet.unprepare(daemon)
    assert (it.specs(), it.domains()) == ({}, [])


@in_world()
async def test_a_channel_that_is_released_waits_while_the_daemon_of_another_domain_is_on_the_node(it: World) -> None:
    """The controller may have said so before it knew."""
    daemon = await it.claim(f"of-{it.namespace}", kind="Daemon", namespace=SYSTEM)
    await it.kubelet.prepare(daemon)
    it.domain = str(uuid4())
    await it.publish(released=True)
    channel = await it.claim("mine")
    waiting = asyncio.create_task(it.kubelet.prepare(channel))
    await until(lambda: f"claim {SYSTEM}/of-{it.namespace} (daemon)" in it.node.log.read_text())
    assert not waiting.done()
    (file,) = it.specs()
    (it.node.cdi / file).unlink()  # as an administrator would
    async with asyncio.timeout(3):
        assert (await waiting)[channel.uid]


@contextmanager
def container_with(channel_status: str) -> Iterator[None]:
    """A process that sees this folder where a container with a channel does."""
    place = "/run/partita/compute-domain"
    script = (
        f"mount -t tmpfs none /run && mkdir -p {place} && mount --bind {channel_status} {place} && echo on; exec cat"
    )
    with subprocess.Popen(
        ("unshare", "--mount", "sh", "-c", script), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout and process.stdin
        assert process.stdout.readline() == b"on\n"
        yield
        process.stdin.close()


@in_world()
async def test_a_claim_that_is_gone_holds_the_node_while_a_container_has_its_channel_and_not_for_ever(
    it: World,
) -> None:
    channel, daemon = await two_domains(it)
    ((_, spec),) = it.specs().items()
    (mount,) = edits(spec)["mounts"]
    await it.restart(STALE_CLAIM_GRACE_S="1")
    with container_with(mount["hostPath"]):
        await it.lose(channel)
        waiting = asyncio.create_task(it.kubelet.prepare(daemon))
        await until(lambda: "stale_claim_in_use" in it.node.log.read_text())
        await asyncio.sleep(2)
        assert not waiting.done()
        assert len(it.specs()) == 1
    assert (await waiting)[daemon.uid]
    assert it.domains() == [it.domain]
