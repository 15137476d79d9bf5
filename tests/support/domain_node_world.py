"""One node for a test of the driver `compute-domain.nvidia.com`; the test plays kubelet, controller and daemon."""

import fcntl
import json
import os
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import yaml
from bench.kubelet import Kubelet
from bench.node import Node
from bench.objects import Claim, make_claim, make_namespace, make_node, wait_for_devices

from api.client import Client, Json, path
from api.clique import DAEMON_LOCK_FILE, KEY_ATTRIBUTE, MEMBERSHIP_FILE
from tests.support.cluster import ROOT, Cluster
from tests.support.scenario import Scenario, play_in
from tests.support.waiting import until

DRIVER = "compute-domain.nvidia.com"
API = "resource.nvidia.com/v1beta1"
SYSTEM = "partita-cd-driver"


def lock(file: Path) -> int:
    """As a daemon does for as long as it lives; the descriptor."""
    new = file.with_name(".new")
    fd = os.open(new, os.O_CREAT | os.O_RDWR)
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    new.replace(file)
    return fd


class World:
    """One GB200 node with the plugin; claims of one namespace; the membership of one ComputeDomain."""

    def __init__(self, cluster: Cluster, client: Client, node: Node, namespace: str) -> None:
        self.cluster = cluster
        self.client, self.node, self.namespace = client, node, namespace
        self.domain = str(uuid4())
        self.clique = ""
        self.kubelet: Kubelet
        self._daemon = 0
        """A descriptor, while this node's daemon lives."""

    async def start(self, **environment: str) -> None:
        self.node.start(DRIVERS=f"gpu.nvidia.com,{DRIVER}", POD_NAMESPACE=SYSTEM, **environment)
        await self.node.wait_until_registered()
        await until(lambda: self.node.find_registration(DRIVER).exists())  # none of a run before: it ended by itself
        self.kubelet = await Kubelet.register(self.node.find_registration(DRIVER))
        channel = next(device for device in await self.devices() if device["name"] == "channel-0")
        self.clique = channel["attributes"].get("cliqueID", {}).get("string", "")

    async def restart(self, **environment: str) -> None:
        await self.kubelet.close()
        self.node.end()
        await self.start(**environment)

    async def lose(self, claim: Claim) -> None:
        """The API server has it no more."""
        claims = path("resource.k8s.io/v1", "resourceclaims", namespace=claim.namespace, name=claim.name)
        await self.client.delete(claims)

    async def devices(self) -> list[Json]:
        return await wait_for_devices(self.client, self.node.name, DRIVER)

    async def public_key(self) -> str:
        """As the slice has it; "" where it has none."""
        daemon = next(device for device in await self.devices() if device["name"] == "daemon-0")
        return str(daemon["attributes"].get(KEY_ATTRIBUTE, {}).get("string", ""))

    async def claim(self, name: str, kind: str = "Channel", namespace: str = "", pool: str = "", **extra: Any) -> Claim:
        parameters = {"apiVersion": API, "kind": f"ComputeDomain{kind}Config", "domainID": self.domain, **extra}
        opaque = {"driver": DRIVER, "parameters": parameters}
        config = {"source": "FromClaim", "requests": ["r0"], "opaque": opaque}
        share = {"shareID": str(uuid4())} if kind == "Channel" else {}
        share |= {"pool": pool or self.node.name}
        device = "channel-0" if kind == "Channel" else "daemon-0"
        where = namespace or self.namespace
        return await make_claim(
            self.client, where, name, self.node.name, [device], configs=[config], driver=DRIVER, **share
        )

    @property
    def clique_name(self) -> str:
        return f"{self.domain}.{self.clique}"

    async def publish(
        self,
        *,
        released: bool,
        message: str = "",
        namespace: str = "",
        draining: bool = False,
        address: str = "",
        policy: str = "Connected",
        abandoned: tuple[str, ...] = (),
        public_key: str = "",
    ) -> None:
        """What the controller writes; with a certificate for this key."""
        entry = {
            "nodeName": self.node.name,
            "ipAddress": address,
            "cliqueID": self.clique,
            "index": 0,
            "released": released,
            "message": message,
            "publicKey": public_key,
            "certificate": f"for {public_key}" if public_key else "",
        }
        body = {
            "apiVersion": API,
            "kind": "ComputeDomainClique",
            "metadata": {"name": self.clique_name, "namespace": SYSTEM},
            "domainName": "train",
            "domainNamespace": namespace or self.namespace,
            "draining": draining,
            "releasePolicy": policy,
            "abandonedClaims": list(abandoned),
            "tls": bool(public_key),
            "authorities": ["authority"] if public_key else [],
            "daemons": [entry],
        }
        where = path(API, "computedomaincliques", namespace=SYSTEM, name=self.clique_name)
        await self.client.apply(where, body)

    def report(self, address: str, ready: bool = True) -> None:
        """What this node's daemon writes."""
        folder = self.node.plugins / DRIVER / "domains" / self.domain / "status"
        report = {"computeDomain": self.domain, "cliqueID": self.clique, "address": address, "ready": ready}
        if not self._daemon:
            self._daemon = lock(folder.parent / DAEMON_LOCK_FILE)
        (folder / "new").write_text(json.dumps(report))
        (folder / "new").replace(folder / "status.json")

    def kill_daemon(self) -> None:
        """What it said last stands."""
        os.close(self._daemon)
        self._daemon = 0

    @property
    def membership(self) -> Path:
        """What this node's daemon is told of the domain."""
        return self.node.plugins / DRIVER / "domains" / self.domain / MEMBERSHIP_FILE

    def specs(self) -> dict[str, Json]:
        return {file.name: json.loads(file.read_text()) for file in self.node.cdi.glob("*compute-domain*.json")}

    def domains(self) -> list[str]:
        folder = self.node.plugins / DRIVER / "domains"
        return [entry.name for entry in folder.iterdir()] if folder.exists() else []


@asynccontextmanager
async def world(cluster: Cluster, profile: str = "gb200") -> AsyncIterator[World]:
    name = f"n{uuid4().hex[:6]}"
    async with await Client.connect(str(cluster.kubeconfig)) as client:
        for namespace in (name, SYSTEM):
            await make_namespace(client, namespace)
        await make_node(client, name)
        node = Node(name, Path(tempfile.mkdtemp(prefix="cd-", dir="/var/tmp")), profile, cluster.kubeconfig, None)
        it = World(cluster, client, node, name)
        try:
            await it.start()
            yield it
            await it.kubelet.close()
        finally:
            node.remove()


def edits(spec: Json) -> Json:
    found: Json = spec["devices"][0]["containerEdits"]
    return found


def read(file: Path) -> Json:
    found: Json = json.loads(file.read_text()) if file.exists() else {}
    return found


def in_world(profile: str = "gb200") -> Scenario:
    """For a test `async def test_...(it: World, <parameters>)`: a node of this profile for it alone."""
    return play_in(partial(world, profile=profile), "cluster")


@pytest.fixture(scope="module")
def cluster(control_plane: Cluster) -> Cluster:
    for file in sorted((ROOT / "deployments/helm/partita/crds").glob("computedomain*.yaml")):
        control_plane.apply(yaml.safe_load(file.read_text()))
    return control_plane
