"""One node for an integration test: the plugin as a process, on simulated GPUs, against a real API server.

The test plays the kubelet.
"""

import asyncio
import functools
import json
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import grpc.aio
import pytest
from bench.kubelet import Kubelet
from bench.node import Node
from bench.objects import DRIVER, RESOURCE_API, Claim, make_claim, make_namespace, make_node

from api.client import Client, Json, path
from kubeletplugin.hardware.nvml import NvmlBackend
from kubeletplugin.hardware.tree import DriverRoot
from kubeletplugin.model.inventory import Gpu, MigInstance
from tests.support.cluster import Cluster
from tests.support.scenario import Scenario, play_in

SLICE = "gpu-0-mig-1g10gb-19-0"


NEIGHBOUR = "gpu-0-mig-1g10gb-19-1"

W = TypeVar("W", bound="NodeWorld")


class NodeWorld:
    """One node, of whatever vendor: its plugin, its kubelet, its API objects."""

    def __init__(self, client: Client, node: Node, namespace: str, make_twin: Callable[[], Node]) -> None:
        self.client = client
        self.node = node
        self.namespace = namespace
        self.make_twin = make_twin
        """Another instance of the plugin on the same node, as in a rolling update."""
        self.kubelet: Kubelet | None = None

    async def start(self, **environment: str) -> Kubelet:
        self.node.start(**environment)
        await self.node.wait_until_registered()
        return await self.connect()

    async def connect(self) -> Kubelet:
        if self.kubelet is not None:
            await self.kubelet.close()
        self.kubelet = await Kubelet.register(self.node.registration_socket)
        return self.kubelet

    async def claim(self, name: str, *devices: str, **options: Any) -> Claim:
        owner = {"driver": self.node.driver, **options}
        return await make_claim(self.client, self.namespace, name, self.node.name, devices, **owner)

    async def lose(self, claim: Claim) -> None:
        """The claim is gone from the API server, and nobody tells the plugin."""
        where = path(RESOURCE_API, "resourceclaims", namespace=claim.namespace, name=claim.name)
        await self.client.delete(where)

    async def prepare_over_a_crash(self, claim: Claim, step: str) -> Kubelet:
        """The plugin dies right after that durable step; the next run prepares."""
        await self.crash_while_preparing(claim, step)
        kubelet = await self.start()
        await kubelet.prepare(claim)
        return kubelet

    async def crash_while_preparing(self, claim: Claim, step: str) -> None:
        await self._die(await self.start(PARTITA_CRASH_AFTER=step), "prepare", claim)

    async def unprepare_over_a_crash(self, claim: Claim, step: str) -> None:
        kubelet = await self.start(PARTITA_CRASH_AFTER=step)
        await kubelet.prepare(claim)
        await self._die(kubelet, "unprepare", claim)
        await (await self.start()).unprepare(claim)

    async def _die(self, kubelet: Kubelet, call: str, claim: Claim) -> None:
        with pytest.raises(grpc.aio.AioRpcError):  # nobody answers any more
            await getattr(kubelet, call)(claim)
        assert self.node.wait() == 137

    def specs(self) -> dict[str, Json]:
        return {file.name: json.loads(file.read_text()) for file in self.node.cdi.glob("*.json")}

    def records(self) -> set[str]:
        """UIDs of the claims that the journal holds."""
        held: set[str] = set()
        for line in self.node.journal.read_text().splitlines():
            entry = json.loads(line.split(" ", 2)[2])
            held |= {entry["set"]["uid"]} if "set" in entry else set()
            held -= {entry.get("remove")}
        return held

    async def slices(self) -> list[Json]:
        selector = f"spec.nodeName={self.node.name}"
        return await self.client.list(path(RESOURCE_API, "resourceslices"), fieldSelector=selector)

    async def events(self, reason: str) -> list[Json]:
        found = []
        for namespace in (self.namespace, "default"):
            items = await self.client.list(path("events.k8s.io/v1", "events", namespace=namespace))
            found += [item for item in items if item["reason"] == reason]
        return found

    def assert_released(self) -> None:
        assert self.specs() == {}
        assert self.records() == set()


class World(NodeWorld):
    """One with NVIDIA GPUs."""

    def gpus(self) -> tuple[Gpu, ...]:
        backend = NvmlBackend(DriverRoot(str(self.node.driver_root), self.node.driver_root))
        try:
            return backend.read_inventory().gpus
        finally:
            backend.close()

    def instances_of(self, minor: int) -> tuple[MigInstance, ...]:
        mig = next(gpu.mig for gpu in self.gpus() if gpu.minor == minor)
        return mig.instances if mig else ()

    def instances(self) -> list[tuple[int, int, int, bool]]:
        """(GPU, profile id, start, has its compute instance) of every MIG instance on the node."""
        return [
            (gpu.minor, i.profile_id, i.placement.start, i.uuid is not None)
            for gpu in self.gpus()
            if gpu.mig
            for i in gpu.mig.instances
        ]

    def apply(self, *steps: Any) -> None:
        """What an admin does with nvidia-smi."""
        backend = NvmlBackend(DriverRoot(str(self.node.driver_root), self.node.driver_root))
        for step in steps:
            backend.apply_step(step)
        backend.close()

    def inject(self, *words: str) -> None:
        """A fault of the simulated library; `none` ends them all."""
        run("hack/simulator", "inject", "--root", str(self.node.driver_root), *words)

    def fail(self, function: str, code: str) -> None:
        """Every call of that function, from now on."""
        self.inject("fail", function, "--code", code, "--times", "1000000")

    def assert_clean(self) -> None:
        assert self.instances() == []
        self.assert_released()


@asynccontextmanager
async def world(cluster: Cluster, kind: type[W], profile: str, driver: str) -> AsyncIterator[W]:
    name = f"n{uuid4().hex[:6]}"
    async with await Client.connect(str(cluster.kubeconfig)) as client:
        await make_namespace(client, name)
        await make_node(client, name)
        base = Path(tempfile.mkdtemp(prefix="pt-", dir="/var/tmp"))
        make = functools.partial(Node, name, base, profile, cluster.kubeconfig, None, driver)
        node = make()
        it = kind(client, node, name, make)
        try:
            yield it
        finally:
            if it.kubelet is not None:
                await it.kubelet.close()
            it.node.remove()  # another driver's, where the test handed over


@asynccontextmanager
async def rolling_update(it: NodeWorld, **environment: str) -> AsyncIterator[tuple[Kubelet, Kubelet]]:
    """An old and a new instance of the plugin serve at once; a kubelet for each."""
    old, new = str(uuid4()), str(uuid4())

    async def socket(pod: str) -> Path | None:
        return next(it.node.registry.glob(f"{it.node.driver}-{pod}-*-reg.sock"), None)

    it.node.start(POD_UID=old, **environment)
    first = await Kubelet.register(await until("old socket", lambda: socket(old)))
    twin = it.make_twin()
    twin.start(POD_UID=new, **environment)
    try:
        second = await Kubelet.register(await until("new socket", lambda: socket(new)))
        yield first, second
        await first.close()
        await second.close()
    finally:
        twin.end(signal.SIGKILL)


def run(*command: str) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


async def until(what: str, look: Callable[[], Awaitable[Any]], patience_s: float = 30.0) -> Any:
    try:
        async with asyncio.timeout(patience_s):
            while True:
                if found := await look():
                    return found
                await asyncio.sleep(0.1)
    except TimeoutError:
        raise AssertionError(f"never came: {what}") from None


def in_world(profile: str = "h100x2") -> Scenario:
    """For a test `async def test_...(it: World, <parameters>)`: a node of this profile for it alone."""
    return play_in(functools.partial(world, kind=World, profile=profile, driver=DRIVER), "control_plane")
