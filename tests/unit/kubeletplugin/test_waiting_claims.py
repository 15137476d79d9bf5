"""Waiting for a channel: what ends it, what does not, and what is said meanwhile. API server and clock are played."""

import asyncio
import fcntl
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, TextIO

import pytest

from api.client import Forbidden, Json, NotFound
from api.clique import DAEMON_LOCK_FILE
from kubeletplugin import membership as membership_module
from kubeletplugin.cdi_files import CdiFiles
from kubeletplugin.compute_domain import ComputeDomainDriver, NotConnectedYet
from kubeletplugin.executor import Executor
from kubeletplugin.hardware.tree import DriverRoot
from kubeletplugin.model.inventory import Fabric, Gpu, Inventory
from kubeletplugin.server import ClaimRef

DRIVER, API = "compute-domain.nvidia.com", "resource.nvidia.com/v1beta1"
DOMAIN, CLUSTER = "5b8e2a0c-0000-4000-8000-000000000001", "7a1d9c3e-0000-4000-8000-000000000002"
CLIQUE = f"{CLUSTER}.1"
NODE, ADDRESS = "n1", "10.0.0.2"


class Rack:
    """One GPU that has joined its fabric."""

    def read_inventory(self) -> Inventory:
        gpu = Gpu(
            minor=0,
            uuid="GPU-0",
            index=0,
            pci_bus_id="0000:01:00.0",
            product_name="NVIDIA GB200",
            brand="Nvidia",
            architecture="Blackwell",
            cuda_compute_capability="10.0",
            memory_bytes=1 << 37,
            fabric=Fabric(CLUSTER, 1, "completed"),
        )
        return Inventory("580.105.08", "13.0", (gpu,))


class Api:
    """Tells every watch what the test tells it; `refusals` are raised first, one by each watch that is opened."""

    def __init__(self, *refusals: Exception) -> None:
        self.refusals = list(refusals)
        self.opened = 0
        self._told: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()

    def tell(self, message: str, *, address: str = ADDRESS, released: bool = False) -> None:
        entry = {"nodeName": NODE, "ipAddress": address, "cliqueID": CLIQUE, "index": 0, "message": message}
        entry |= {"released": released}
        clique = {
            "metadata": {"name": f"{DOMAIN}.{CLIQUE}"},
            "domainName": "train",
            "domainNamespace": "team",
            "releasePolicy": "Connected",
            "daemons": [entry],
        }
        self._told.put_nowait(("SYNC", [clique]))

    async def list_watch(self, path: str, **_: Any) -> AsyncIterator[tuple[str, Any]]:
        self.opened += 1
        if self.refusals:
            raise self.refusals.pop(0)
        while True:
            yield await self._told.get()


class Clock(asyncio.SelectorEventLoop):
    """An event loop whose clock can be stopped: no timer fires then, and only events bring anything on."""

    stopped_at: float | None = None

    def time(self) -> float:
        return super().time() if self.stopped_at is None else self.stopped_at


class World:
    """One node with one claim."""

    def __init__(self, api: Api, folder: Path, wait_s: float) -> None:
        proc = folder / "root/proc/driver/nvidia"
        proc.mkdir(parents=True)
        (proc.parents[1] / "devices").write_text("Character devices:\n234 nvidia-caps-imex-channels\n")
        client: Any = api
        backend: Any = Rack()
        self._daemon: TextIO | None = None
        self.status = folder / "plugin/domains" / DOMAIN / "status"
        self.driver = ComputeDomainDriver(
            node=NODE,
            namespace="driver",
            client=client,
            executor=Executor(backend),
            cdi=CdiFiles(folder / "cdi", "k8s.compute-domain.nvidia.com"),
            root=DriverRoot(str(folder / "root"), folder / "root"),
            directory=folder / "plugin",
            wait_s=wait_s,
        )

    async def prepare(self, name: str = "c") -> list[str]:
        """The CDI devices of a channel."""
        parameters = {"apiVersion": API, "kind": "ComputeDomainChannelConfig", "domainID": DOMAIN}
        config = {"source": "FromClaim", "requests": ["r"], "opaque": {"driver": DRIVER, "parameters": parameters}}
        result = {"request": "r", "driver": DRIVER, "pool": NODE, "device": "channel-0"}
        claim: Json = {
            "metadata": {"namespace": "team", "name": name, "uid": name},
            "status": {
                "reservedFor": [{"resource": "pods", "name": "p", "uid": f"pod-of-{name}"}],
                "allocation": {"devices": {"results": [result], "config": [config]}},
            },
        }
        ready = await self.driver.prepare(claim, ClaimRef("team", name, name))
        return [cdi for device in ready for cdi in device.cdi_ids]

    def report(self, *, ready: bool = True) -> None:
        """The word of this node's daemon, which lives."""
        if self._daemon is None:
            self._daemon = (self.status.parent / DAEMON_LOCK_FILE).open("w")
            fcntl.flock(self._daemon, fcntl.LOCK_EX)
        told = {"computeDomain": DOMAIN, "cliqueID": CLIQUE, "address": ADDRESS, "ready": ready}
        (self.status / "new").write_text(json.dumps(told))
        (self.status / "new").replace(self.status / "status.json")

    def kill_daemon(self) -> None:
        """What it said last stands."""
        assert self._daemon
        self._daemon.close()
        self._daemon = None


def run(api: Api, folder: Path, scenario: Callable[[World], Awaitable[None]], wait_s: float = 10.0) -> None:
    async def main() -> None:
        world = World(api, folder, wait_s)
        await world.driver.recover()
        running = asyncio.ensure_future(world.driver.run(lambda: None))
        await scenario(world)
        running.cancel()

    with asyncio.Runner(loop_factory=Clock) as runner:
        runner.run(main())


async def until(found: Callable[[], object], pause_s: float = 0.01) -> None:
    while True:
        if found():
            return
        await asyncio.sleep(pause_s)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(membership_module, "back_off_s", lambda **_: iter(lambda: 0.01, None))


FORBIDDEN = Forbidden('GET cliques: User "x" cannot list resource "computedomaincliques" (403)', 403)


def test_between_the_daemons_word_and_the_channel_there_is_no_timer(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, Clock)
        loop.stopped_at = loop.time()
        waiting = asyncio.ensure_future(world.prepare())
        api.tell("not connected")
        await until(world.status.exists, pause_s=0)
        world.report()
        assert await waiting
        loop.stopped_at = None

    api = Api()
    run(api, tmp_path, scenario)


def test_a_refusal_by_an_api_server_that_has_just_started_fails_no_claim_that_waits(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        waiting = [asyncio.ensure_future(world.prepare(name)) for name in ("c0", "c1")]
        await until(lambda: not api.refusals)
        api.tell("not connected")
        await until(world.status.exists)
        world.report()
        assert all(await asyncio.gather(*waiting))
        assert api.opened == 3, "one watch for both, opened again after each refusal"

    api = Api(FORBIDDEN, NotFound("GET cliques: the server could not find the requested resource (404)", 404))
    run(api, tmp_path, scenario)


def test_a_claim_that_waited_in_vain_names_the_api_servers_refusal(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        with pytest.raises(NotConnectedYet, match='claim team/c: GET cliques: User "x" cannot list'):
            await world.prepare()

    run(Api(*[FORBIDDEN] * 1000), tmp_path, scenario, wait_s=0.2)


def test_a_membership_is_kept_for_the_daemon_while_the_api_server_refuses_to_tell_it(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        name, folder = f"{DOMAIN}.{CLIQUE}", tmp_path / "plugin/domains" / DOMAIN
        (folder / "membership").mkdir(parents=True)
        world.driver._memberships.want({name: folder})
        await until(lambda: not api.refusals)
        file = folder / "membership/membership.json"
        assert not file.exists(), "a refusal does not say that there is none"
        api.tell("first")
        await until(file.exists)
        assert json.loads(file.read_text())["metadata"]["name"] == name

    api = Api(FORBIDDEN, FORBIDDEN)
    run(api, tmp_path, scenario)


def test_the_word_of_a_daemon_that_was_killed_stands_for_the_next_one_only_when_that_says_it_again(
    tmp_path: Path,
) -> None:
    async def scenario(world: World) -> None:
        first = asyncio.ensure_future(world.prepare("c0"))
        api.tell("not connected")
        await until(world.status.exists)
        world.report()
        assert await first
        world.kill_daemon()
        second = asyncio.ensure_future(world.prepare("c1"))
        api.tell("not connected")
        await asyncio.sleep(0.2)
        assert not second.done()
        world.report()  # word for word
        assert await second

    api = Api()
    run(api, tmp_path, scenario)


FILE = "k8s.compute-domain.nvidia.com-claim_{}.json"


def test_a_channels_cdi_file_names_the_pods_that_have_it(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        waiting = asyncio.ensure_future(world.prepare("c0"))
        api.tell("not connected")
        await until(world.status.exists)
        world.report()
        assert await waiting
        spec = json.loads((tmp_path / "cdi" / FILE.format("c0")).read_text())
        assert spec["annotations"]["partita/pods"] == "pod-of-c0"

    api = Api()
    run(api, tmp_path, scenario)


@pytest.mark.parametrize("damage", ["cannot be read", "cannot be parsed"])
def test_while_a_claims_file_says_nothing_folders_and_key_of_its_domain_stay_and_other_claims_go(
    damage: str, tmp_path: Path
) -> None:
    """A running domain keeps what its daemon and its pods see, through a restart of the plugin, too."""
    unclear = tmp_path / "cdi" / FILE.format("unclear")

    async def scenario(world: World) -> None:
        plugin, folder = tmp_path / "plugin", tmp_path / "plugin/domains" / DOMAIN
        (folder / "status").mkdir(parents=True)
        key = plugin / "imex-key.json"
        before = {**json.loads(key.read_text()), "domain": DOMAIN}
        key.write_text(json.dumps(before))
        unclear.mkdir() if damage == "cannot be read" else unclear.write_text("{")
        (tmp_path / "cdi" / FILE.format("done")).write_text("{}")
        await world.driver.unprepare(ClaimRef("team", "done", "done"))
        await world.driver.recover()
        assert [file.name for file in (tmp_path / "cdi").iterdir()] == [unclear.name]
        assert folder.is_dir()
        assert json.loads(key.read_text()) == before
        unclear.rmdir() if damage == "cannot be read" else unclear.unlink()
        await world.driver.recover()
        assert not folder.is_dir()
        assert json.loads(key.read_text()) != before

    (tmp_path / "cdi").mkdir()
    run(Api(), tmp_path, scenario)


def test_a_daemons_word_that_cannot_be_read_is_waited_for_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(world: World) -> None:
        waiting = asyncio.ensure_future(world.prepare())
        api.tell("not connected")
        await until(world.status.exists)
        world.report(ready=False)
        (world.status / "link").symlink_to("elsewhere")
        (world.status / "link").replace(world.status / "status.json")
        api.tell("", released=True)
        await until(lambda: "file_unreadable" in caplog.text)
        assert "status.json cannot be read" in caplog.records[-1].__dict__["error"]
        await asyncio.sleep(0.1)
        assert not waiting.done()
        world.report()
        assert await waiting

    api = Api()
    run(api, tmp_path, scenario)


def test_a_daemon_that_says_that_it_is_not_connected_is_asked_before_the_controllers_word_counts(
    tmp_path: Path,
) -> None:
    """Also by a claim that comes when both have spoken."""

    async def scenario(world: World) -> None:
        world.status.mkdir(parents=True)
        (world.status.parent / "work").mkdir()
        world.report(ready=False)
        api.tell("", released=True)
        waiting = asyncio.ensure_future(world.prepare())
        await asyncio.sleep(0.2)
        assert not waiting.done()
        world.report()
        assert await waiting

    api = Api()
    run(api, tmp_path, scenario)
