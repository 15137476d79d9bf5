"""Many nodes in one process: our node plugin's own code on each, kubelets played, the daemons' start simulated.

What is real: `ComputeDomainDriver` and `ClaimService` (the claim is read from the API server, the channel is awaited by
a watch of the membership, CDI files are written, daemons are brought their membership), and every request to the API
server. What is played: the kubelet
calls the plugin without its socket, and patches what it would say of its pods; a daemon's pod has its address and is
connected as soon as its claim is prepared. A node's key is made in this process, and its slice written without a watch.

Each thing that happens is one JSON line on standard output, with the time.
"""

import argparse
import asyncio
import contextlib
import json
import logging
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from api.client import ApiError, Client, Conflict, Json, NotFound, path
from api.errors import Retryable
from api.events import Recorder
from api.names import COMPUTE_DOMAIN_CDI_VENDOR
from bench.computedomain_cluster import NAMESPACE
from kubeletplugin.cdi_files import CdiFiles
from kubeletplugin.compute_domain import ComputeDomainDriver
from kubeletplugin.driver import ClaimService
from kubeletplugin.executor import Executor
from kubeletplugin.hardware.nvml import NvmlBackend
from kubeletplugin.hardware.tree import DriverRoot
from kubeletplugin.make_key import make_key
from kubeletplugin.model.devices import Features
from kubeletplugin.model.inventory import Fabric, Gpu, Inventory
from kubeletplugin.server import ClaimRef

RACK: Final = 18  # GB200 NVL72: nodes of one NVLink clique
FABRIC: Final = "11111111-2222-3333-4444-555555555555"
CLAIMS: Final = "resource.k8s.io/v1"
REPEAT_S: Final = 60.0  # about when the kubelet calls again after a failed call
IN_FLIGHT: Final = 64
_GIB: Final = 2**30


def tell(what: str, **more: Any) -> None:
    print(json.dumps({"what": what, "at": time.time(), **more}), flush=True)


def node_name(number: int) -> str:
    return f"sim-{number:04d}"


async def make_key_here() -> dict[str, str]:
    """A process for each of a thousand nodes' keys would be what is measured."""
    return make_key()


class RackNode(NvmlBackend):
    """One GPU in the clique of the node's rack; nothing else of it is asked for here."""

    def __init__(self, root: DriverRoot, number: int) -> None:
        super().__init__(root)
        self._number = number

    def read_inventory(self) -> Inventory:
        fabric = Fabric(FABRIC, self._number // RACK, "completed")
        gpu = Gpu(
            minor=0,
            uuid=f"GPU-{self._number:08d}",
            index=0,
            pci_bus_id="0000:01:00.0",
            product_name="GB200",
            brand="NVIDIA",
            architecture="Blackwell",
            cuda_compute_capability="10.0",
            memory_bytes=189 * _GIB,
            fabric=fabric,
        )
        return Inventory("580.0", "13.0", (gpu,))


@dataclass(slots=True)
class SimulatedNode:
    name: str
    number: int
    driver: ComputeDomainDriver
    claims: ClaimService
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    pods: int = 0

    def next_address(self) -> str:
        self.pods += 1
        return f"10.{64 + self.number // 256}.{self.number % 256}.{self.pods % 250 + 1}"


class Kubelets:
    """The kubelets of some nodes."""

    def __init__(self, client: Client, tasks: asyncio.TaskGroup) -> None:
        self._client = client
        self._tasks = tasks
        self._nodes: dict[str, SimulatedNode] = {}
        self._gate = asyncio.Semaphore(IN_FLIGHT)
        self._begun: dict[str, asyncio.Task[None]] = {}
        self._ending: set[str] = set()

    async def add(self, number: int, base: Path, root: DriverRoot) -> None:
        name = node_name(number)
        driver = ComputeDomainDriver(
            node=name,
            namespace=NAMESPACE,
            client=self._client,
            executor=Executor(RackNode(root, number)),
            cdi=CdiFiles(base / name / "cdi", COMPUTE_DOMAIN_CDI_VENDOR),
            root=root,
            directory=base / name / "plugin",
            make_key=make_key_here,
        )
        await driver.recover()
        recorder = Recorder(self._client, driver.name, name)
        self._tasks.create_task(recorder.run())
        claims = ClaimService(driver, self._client, recorder, self._tasks, lambda: None)
        node = self._nodes[name] = SimulatedNode(name, number, driver, claims)
        async with self._gate:
            await self._publish(node)
        self._tasks.create_task(driver.run(node.changed.set))
        self._tasks.create_task(self._publish_changes(node))

    async def _publish(self, node: SimulatedNode) -> None:
        labels = {"kubernetes.io/hostname": node.name}
        resources = {"cpu": "64", "memory": "512Gi", "pods": "110"}
        ready = {"type": "Ready", "status": "True", "reason": "KubeletReady"}
        status = {"capacity": resources, "allocatable": resources, "conditions": [ready]}
        spec = {
            "driver": node.driver.name,
            "nodeName": node.name,
            "pool": {"name": node.name, "generation": 1, "resourceSliceCount": 1},
            "devices": _offer(node),
        }
        name = {"name": f"{node.name}-compute-domain"}
        slice_ = {"apiVersion": CLAIMS, "kind": "ResourceSlice", "metadata": name, "spec": spec}
        with contextlib.suppress(Conflict):  # of a smaller case before
            await self._client.create(path("v1", "nodes"), {"metadata": {"name": node.name, "labels": labels}})
        await self._client.patch(path("v1", "nodes", name=node.name, subresource="status"), {"status": status})
        try:
            await self._client.create(path(CLAIMS, "resourceslices"), slice_)
        except Conflict:
            node.changed.set()

    async def _publish_changes(self, node: SimulatedNode) -> None:
        """After each ComputeDomain the node has another key."""
        where = path(CLAIMS, "resourceslices", name=f"{node.name}-compute-domain")
        while True:
            await node.changed.wait()
            node.changed.clear()
            await self._insist("patch", where, {"spec": {"devices": _offer(node)}})

    async def run(self) -> None:
        async for kind, found in self._client.list_watch(path("v1", "pods")):
            for pod in found if kind == "SYNC" else [found]:
                node = self._nodes.get(pod["spec"].get("nodeName", ""))
                if node is not None and kind != "DELETED":
                    self._attend(node, pod)

    def _attend(self, node: SimulatedNode, pod: Json) -> None:
        uid = pod["metadata"]["uid"]
        if "deletionTimestamp" in pod["metadata"]:
            if uid not in self._ending:
                self._ending.add(uid)
                self._tasks.create_task(self._end(node, pod, self._begun.pop(uid, None)))
        elif uid not in self._begun and _claim_names(pod):
            self._begun[uid] = self._tasks.create_task(self._begin(node, pod))

    async def _begin(self, node: SimulatedNode, pod: Json) -> None:
        is_daemon = pod["metadata"]["namespace"] == NAMESPACE
        refs = [await self._find_claim(pod, name) for name in _claim_names(pod)]
        for ref in refs:
            while isinstance(answer := await node.claims.prepare(ref), str):
                tell("failed", node=node.name, error=answer)
                await asyncio.sleep(REPEAT_S)
        tell("daemon" if is_daemon else "channel", node=node.name)
        address = node.next_address()
        if is_daemon:
            await self._say(pod, address, ready=False)
        await self._say(pod, address, ready=True)
        tell("daemon-ready" if is_daemon else "running", node=node.name)

    async def _find_claim(self, pod: Json, name: str) -> ClaimRef:
        """The kubelet reads a claim before it asks the plugin for it."""
        namespace = pod["metadata"]["namespace"]
        claim = await self._insist("get", path(CLAIMS, "resourceclaims", namespace=namespace, name=name))
        return ClaimRef(namespace, name, claim["metadata"]["uid"])

    async def _say(self, pod: Json, address: str, *, ready: bool) -> None:
        container = {
            "name": pod["spec"]["containers"][0]["name"],
            "image": "simulated",
            "imageID": "",
            "ready": ready,
            "restartCount": 0,
            "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}},
        }
        conditions = [{"type": "Ready", "status": "True" if ready else "False"}]
        status = {
            "phase": "Running",
            "podIP": address,
            "podIPs": [{"ip": address}],
            "containerStatuses": [container],
            "conditions": [{"type": "PodScheduled", "status": "True"}, *conditions],
        }
        await self._insist("patch", _pod_path(pod, "status"), {"status": status})

    async def _end(self, node: SimulatedNode, pod: Json, begun: asyncio.Task[None] | None) -> None:
        if begun is not None:
            begun.cancel()
        namespace = pod["metadata"]["namespace"]
        for name in _claim_names(pod):
            claim = await self._insist("get", path(CLAIMS, "resourceclaims", namespace=namespace, name=name))
            if claim:
                await node.claims.unprepare(ClaimRef(namespace, name, claim["metadata"]["uid"]))
        await self._insist("delete", _pod_path(pod), uid=pod["metadata"]["uid"], gracePeriodSeconds=0)
        tell("daemon-gone" if namespace == NAMESPACE else "gone", node=node.name)

    async def _insist(self, verb: str, *arguments: Any, **options: Any) -> Json:
        """What a kubelet does: again until it succeeds, or the object is gone ({})."""
        while True:
            try:
                async with self._gate:
                    answer: Json = await getattr(self._client, verb)(*arguments, **options)
                return answer
            except NotFound:
                return {}
            except (ApiError, Retryable) as error:
                tell("repeated", verb=verb, error=str(error))
                await asyncio.sleep(0.5)


def _offer(node: SimulatedNode) -> list[Json]:
    return [device for group in node.driver.offer(Features()).groups for device in group.devices]


def _claim_names(pod: Json) -> list[str]:
    """Of the claims that the pod has by now."""
    made = {each["name"]: each.get("resourceClaimName") for each in pod["status"].get("resourceClaimStatuses") or ()}
    named = [
        each.get("resourceClaimName") or made.get(each["name"]) for each in pod["spec"].get("resourceClaims") or ()
    ]
    return [name for name in named if name]


def _pod_path(pod: Json, subresource: str | None = None) -> str:
    metadata = pod["metadata"]
    return path("v1", "pods", namespace=metadata["namespace"], name=metadata["name"], subresource=subresource)


async def run(options: argparse.Namespace) -> None:
    root = DriverRoot(str(options.root), options.root)
    async with await Client.connect(options.kubeconfig) as client, asyncio.TaskGroup() as tasks:
        kubelets = Kubelets(client, tasks)
        for number in range(options.first, options.nodes, options.step):
            await kubelets.add(number, options.base, root)
        tell("published")
        await kubelets.run()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kubeconfig", required=True)
    parser.add_argument("--base", type=Path, required=True, help="for the nodes' files")
    parser.add_argument("--root", type=Path, required=True, help="a simulated driver root, the same for all")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--step", type=int, default=1)
    parser.add_argument("--nodes", type=int, required=True)
    logging.basicConfig(level=logging.CRITICAL)
    asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
