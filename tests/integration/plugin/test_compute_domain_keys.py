"""The keys of IMEX daemons: made on the node, published, and given to the daemon of one domain."""

import asyncio
import json
import signal
from pathlib import Path
from uuid import uuid4

from bench.objects import Claim

from tests.support.disk import fill, small_disk
from tests.support.domain_node_world import DRIVER, SYSTEM, World, cluster, edits, in_world, read
from tests.support.waiting import until

__all__ = ["cluster"]


def key_file(it: World) -> Path:
    return it.node.plugins / DRIVER / "imex-key.json"


async def other_than(it: World, *keys: str) -> str:
    """The public key, as soon as it is another one."""
    async with asyncio.timeout(30):
        while True:
            found = await it.public_key()
            if found not in keys:
                return found
            await asyncio.sleep(0.1)


async def kill(it: World) -> None:
    """The plugin, which can tidy nothing up."""
    await it.kubelet.close()
    it.node.end(signal.SIGKILL)
    for socket in it.node.registry.iterdir():
        socket.unlink()


async def start_daemon(it: World, name: str) -> Claim:
    claim = await it.claim(f"{name}-{it.namespace}", kind="Daemon", namespace=SYSTEM)
    await it.kubelet.prepare(claim)
    return claim


async def tell(it: World, public_key: str, message: str) -> str:
    """What the controller says; the private key that the daemon has then."""
    await it.publish(released=False, message=message, public_key=public_key)
    await until(lambda: [each["message"] for each in read(it.membership).get("daemons", ())] == [message])
    return str(read(it.membership).get("key", ""))


@in_world()
async def test_a_node_publishes_the_key_that_it_has_made_and_keeps_it_over_restarts(it: World) -> None:
    public = await it.public_key()
    assert len(public) == 44
    assert json.loads(key_file(it).read_text())["publicKey"] == public
    await kill(it)
    await it.start()
    await it.restart()
    assert await it.public_key() == public


@in_world("h100x1")
async def test_a_node_without_fabric_has_no_key(it: World) -> None:
    assert await it.public_key() == ""
    assert not key_file(it).exists()


@in_world()
async def test_a_daemon_is_given_the_key_that_its_certificate_is_for_and_nobody_else_sees_it(it: World) -> None:
    daemon = await start_daemon(it, "d")
    public = await it.public_key()
    assert await tell(it, "", "not encrypted") == ""
    assert await tell(it, "A" * 44, "another's") == ""
    private = await tell(it, public, "its own")
    assert "PRIVATE KEY" in private
    assert it.membership.stat().st_mode & 0o777 == 0o600
    await it.publish(released=True, public_key=public)
    channel = await it.claim("c")
    await it.kubelet.prepare(channel)
    seen = {
        spec["devices"][0]["name"].rpartition("-")[2]: {mount["hostPath"] for mount in edits(spec)["mounts"]}
        for spec in it.specs().values()
    }
    assert str(it.membership.parent) in seen["daemon"]
    assert seen["channel"] == {str(it.membership.parents[1] / "status")}
    await it.kubelet.unprepare(channel, daemon)


@in_world()
async def test_after_a_domain_the_node_has_another_key_and_the_next_domain_gets_no_other(it: World) -> None:
    first = await start_daemon(it, "first")
    public = await it.public_key()
    private = await tell(it, public, "signed")
    await it.restart()
    assert await tell(it, public, "signed, and the plugin restarted") == private
    assert await it.public_key() == public
    await it.kubelet.unprepare(first)
    it.domain = str(uuid4())
    second = await start_daemon(it, "second")
    assert await tell(it, public, "signed before the slice was new") == ""
    renewed = await other_than(it, public)
    assert await tell(it, renewed, "signed") not in ("", private)
    await it.kubelet.unprepare(second)


@in_world()
async def test_a_domain_that_ended_while_the_plugin_was_away_leaves_no_key_behind(it: World) -> None:
    await start_daemon(it, "d")
    public = await it.public_key()
    assert await tell(it, public, "signed")
    await kill(it)
    for file in it.specs():
        (it.node.cdi / file).unlink()  # as a boot does
    await it.start()
    await other_than(it, public)


@in_world()
async def test_an_unreadable_key_is_replaced_as_soon_as_the_disk_has_room(it: World) -> None:
    public = await it.public_key()
    await it.kubelet.close()
    it.node.end()
    with small_disk(it.node.plugins / DRIVER) as disk:
        key_file(it).write_text("{")
        await it.start()
        renewed = await other_than(it, public)
        assert len(renewed) == 44
        key_file(it).write_text("{")
        filler = fill(disk)
        await it.restart()
        assert await other_than(it, renewed) == ""
        assert "key_not_made" in it.node.log.read_text()
        filler.unlink()
        assert await other_than(it, renewed, "") != public
        await it.kubelet.close()
        it.node.end()
    await it.start()
