"""The driver compute-domain.nvidia.com as a process on a simulated GB200 node, against a real API server.

The test plays the kubelet and the controller: it allocates claims and writes ComputeDomainCliques.
"""

import asyncio
import json
import os
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import yaml
from bench.kubelet import Kubelet, PrepareFailed
from bench.node import Node
from bench.objects import Claim, make_claim, make_namespace, make_node, wait_for_devices

from api.client import ApiError, Client, Json, NotFound, path
from tests.support.cluster import ROOT, Cluster

DRIVER = "compute-domain.nvidia.com"
API = "resource.nvidia.com/v1beta1"
SYSTEM = "partita-cd-driver"


async def until(found: Callable[[], bool], patience_s: float = 20.0) -> None:
    async with asyncio.timeout(patience_s):
        while True:
            if found():
                return
            await asyncio.sleep(0.05)


class World:
    """One GB200 node with the plugin; claims of one namespace; the membership of one ComputeDomain."""

    def __init__(self, client: Client, node: Node, namespace: str) -> None:
        self.client, self.node, self.namespace = client, node, namespace
        self.domain = str(uuid4())
        self.clique = ""
        self.kubelet: Kubelet

    async def start(self) -> None:
        self.node.start(DRIVERS=f"gpu.nvidia.com,{DRIVER}", POD_NAMESPACE=SYSTEM)
        await self.node.wait_until_registered()
        await until(lambda: self.node.find_registration(DRIVER).exists())  # none of a run before: it ended by itself
        self.kubelet = await Kubelet.register(self.node.find_registration(DRIVER))
        channel = next(device for device in await self.devices() if device["name"] == "channel-0")
        self.clique = channel["attributes"].get("cliqueID", {}).get("string", "")

    async def restart(self) -> None:
        await self.kubelet.close()
        self.node.end()
        await self.start()

    async def devices(self) -> list[Json]:
        return await wait_for_devices(self.client, self.node.name, DRIVER)

    async def claim(self, name: str, kind: str = "Channel", namespace: str = "", **extra: Any) -> Claim:
        parameters = {"apiVersion": API, "kind": f"ComputeDomain{kind}Config", "domainID": self.domain, **extra}
        opaque = {"driver": DRIVER, "parameters": parameters}
        config = {"source": "FromClaim", "requests": ["r0"], "opaque": opaque}
        share = {"shareID": str(uuid4())} if kind == "Channel" else {}
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
    ) -> None:
        """What the controller writes."""
        entry = {
            "nodeName": self.node.name,
            "ipAddress": address,
            "cliqueID": self.clique,
            "index": 0,
            "released": released,
            "message": message,
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
            "daemons": [entry],
        }
        where = path(API, "computedomaincliques", namespace=SYSTEM, name=self.clique_name)
        await self.client.apply(where, body)

    def report(self, address: str, ready: bool = True) -> None:
        """What this node's daemon writes."""
        folder = self.node.plugins / DRIVER / "domains" / self.domain / "status"
        report = {"computeDomain": self.domain, "cliqueID": self.clique, "address": address, "ready": ready}
        (folder / "new").write_text(json.dumps(report))
        (folder / "new").replace(folder / "status.json")

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
        it = World(client, node, name)
        try:
            await it.start()
            yield it
            await it.kubelet.close()
        finally:
            node.remove()


@pytest.fixture(scope="module")
def cluster(control_plane: Cluster) -> Cluster:
    for file in sorted((ROOT / "deployments/helm/partita/crds").glob("computedomain*.yaml")):
        control_plane.apply(yaml.safe_load(file.read_text()))
    return control_plane


def edits(spec: Json) -> Json:
    found: Json = spec["devices"][0]["containerEdits"]
    return found


def read(file: Path) -> Json:
    found: Json = json.loads(file.read_text()) if file.exists() else {}
    return found


def test_the_node_offers_a_channel_for_many_claims_and_one_daemon_with_their_clique(cluster: Cluster) -> None:
    async def scenario() -> None:
        async with world(cluster) as it:
            devices = {device["name"]: device for device in await it.devices()}
            assert set(devices) == {"channel-0", "daemon-0"}
            assert devices["channel-0"]["allowMultipleAllocations"] is True
            assert it.clique.endswith(".1")
            assert it.clique.startswith(devices["daemon-0"]["attributes"]["nvlinkDomain"]["string"])

    asyncio.run(scenario())


def test_a_channel_is_given_out_when_the_controller_says_so_and_not_before(cluster: Cluster) -> None:
    async def scenario() -> None:
        async with world(cluster) as it:
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
            assert device.share_id
            (other,) = (await it.kubelet.prepare(second))[second.uid]
            assert list(other.cdi_device_ids) != list(device.cdi_device_ids)
            nodes = [edits(spec)["deviceNodes"] for spec in it.specs().values()]
            assert [[node["path"] for node in each] for each in nodes] == [
                ["/dev/nvidia-caps-imex-channels/channel0"]
            ] * 2
            assert it.domains() == [it.domain]
            await it.kubelet.unprepare(claim)
            assert it.domains() == [it.domain]
            await it.kubelet.unprepare(second)
            assert (it.specs(), it.domains()) == ({}, [])

    asyncio.run(scenario())


def test_a_channel_is_given_out_when_this_nodes_daemon_says_that_it_is_connected(cluster: Cluster) -> None:
    """The daemon of the address that the controller has told, and of no other."""

    async def scenario() -> None:
        async with world(cluster) as it:
            await it.publish(released=False, address="10.0.0.2")
            claim = await it.claim("c0")
            waiting = asyncio.create_task(it.kubelet.prepare(claim))
            await until(lambda: it.domains() == [it.domain])
            it.report("10.0.0.2", ready=False)
            it.report("10.0.0.1")
            await asyncio.sleep(1)
            assert not waiting.done()
            it.report("10.0.0.2")
            (device,) = (await waiting)[claim.uid]
            assert device.device_name == "channel-0"
            await it.kubelet.unprepare(claim)
            assert it.domains() == []

    asyncio.run(scenario())


def test_with_release_policy_all_nodes_a_daemons_word_is_not_enough(cluster: Cluster) -> None:
    async def scenario() -> None:
        async with world(cluster) as it:
            await it.publish(released=False, address="10.0.0.2", policy="AllNodes")
            claim = await it.claim("c0")
            waiting = asyncio.create_task(it.kubelet.prepare(claim))
            await until(lambda: it.domains() == [it.domain])
            it.report("10.0.0.2")
            await asyncio.sleep(1)
            assert not waiting.done()
            await it.publish(released=True, address="10.0.0.2", policy="AllNodes")
            await waiting

    asyncio.run(scenario())


def test_a_daemon_can_lead_the_plugin_nowhere(cluster: Cluster) -> None:
    """Its folder is its own to write: a link in the place of its report is not followed, a pipe is not waited for."""

    async def scenario() -> None:
        async with world(cluster) as it:
            await it.publish(released=False, address="10.0.0.2")
            claim = await it.claim("c0")
            waiting = asyncio.create_task(it.kubelet.prepare(claim))
            await until(lambda: it.domains() == [it.domain])
            folder = it.node.plugins / DRIVER / "domains" / it.domain / "status"
            it.report("10.0.0.2", ready=False)
            (folder / "elsewhere").write_text((folder / "status.json").read_text().replace("false", "true"))
            (folder / "link").symlink_to("elsewhere")
            (folder / "link").replace(folder / "status.json")
            await asyncio.sleep(1)
            assert not waiting.done()
            os.mkfifo(folder / "pipe")
            (folder / "pipe").replace(folder / "status.json")
            await asyncio.sleep(1)
            assert not waiting.done()
            await it.publish(released=True, address="10.0.0.2")
            await waiting

    asyncio.run(scenario())


def test_a_prepared_channel_stays_whatever_becomes_of_the_domain_or_the_plugin(cluster: Cluster) -> None:
    async def scenario() -> None:
        async with world(cluster) as it:
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

    asyncio.run(scenario())


def test_a_claim_of_another_namespace_gets_nothing_at_once(cluster: Cluster) -> None:
    async def scenario() -> None:
        async with world(cluster) as it:
            await it.publish(released=True, namespace="somebody-else")
            claim = await it.claim("c0")
            with pytest.raises(PrepareFailed, match="in another namespace"):
                await it.kubelet.prepare(claim)
            daemon = await it.claim("d0", kind="Daemon")
            with pytest.raises(PrepareFailed, match=f"namespace {SYSTEM} only"):
                await it.kubelet.prepare(daemon)
            assert (it.specs(), it.domains()) == ({}, [])

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("extra", "words"), [({"mode": "Single"}, "mode: unknown field"), ({"domainID": ""}, "domainID")]
)
def test_a_malformed_config_is_refused_at_once(cluster: Cluster, extra: dict[str, str], words: str) -> None:
    async def scenario() -> None:
        async with world(cluster) as it:
            await it.publish(released=True)
            claim = await it.claim("c0", **extra)
            with pytest.raises(PrepareFailed, match=words):
                await it.kubelet.prepare(claim)

    asyncio.run(scenario())


def test_a_draining_domain_takes_no_new_claims(cluster: Cluster) -> None:
    async def scenario() -> None:
        async with world(cluster) as it:
            await it.publish(released=True, draining=True)
            claim = await it.claim("c0")
            with pytest.raises(PrepareFailed, match="is being deleted"):
                await it.kubelet.prepare(claim)

    asyncio.run(scenario())


def test_a_call_that_waits_in_vain_ends_before_the_kubelets_patience_and_says_why(cluster: Cluster) -> None:
    async def scenario() -> None:
        async with world(cluster) as it:
            await it.publish(released=False, message="node is used by ComputeDomain team/first")
            claim = await it.claim("c0")
            with pytest.raises(PrepareFailed, match="node is used by ComputeDomain team/first"):
                await it.kubelet.prepare(claim)

    asyncio.run(scenario())


def test_a_pod_that_is_deleted_while_it_waits_need_not_wait_any_longer(cluster: Cluster) -> None:
    async def scenario() -> None:
        async with world(cluster) as it:
            claim = await it.claim("c0")
            waiting = asyncio.create_task(it.kubelet.prepare(claim))
            await asyncio.sleep(1)
            waiting.cancel()  # the kubelet gives the call up when the pod is deleted
            async with asyncio.timeout(20):
                await it.kubelet.unprepare(claim)
            await it.publish(released=True)
            await asyncio.sleep(1)
            assert it.specs() == {}

    asyncio.run(scenario())


def test_claims_wait_through_an_outage_of_the_api_server_and_new_ones_join_them_soon_after_it(cluster: Cluster) -> None:
    """Each is prepared within its first call: the kubelet's next one would come after a minute or more."""

    async def scenario() -> None:
        async with world(cluster) as it:
            before, after = await it.claim("c0"), await it.claim("c1")
            waiting = asyncio.create_task(it.kubelet.prepare(before))
            await it.publish(released=False, message="waits for node-2")
            await until(lambda: "waits for node-2" in it.node.log.read_text())
            await asyncio.to_thread(cluster.run, "kill", "control-plane", "apiserver")
            await asyncio.sleep(15)  # long enough for attempts to become as rare as they get
            assert not waiting.done()
            await asyncio.to_thread(cluster.run, "start", "control-plane", "apiserver")
            joining = asyncio.create_task(it.kubelet.prepare(after))
            async with asyncio.timeout(60):
                await publish_when_served(it)
            await asyncio.gather(waiting, joining)

    asyncio.run(scenario())


async def publish_when_served(it: World) -> None:
    while True:
        try:
            await it.publish(released=True)
            return
        except ApiError:
            await asyncio.sleep(0.2)


def test_a_claim_that_nobody_waits_for_any_more_is_answered_at_once(cluster: Cluster) -> None:
    async def scenario() -> None:
        async with world(cluster) as it:
            await it.publish(released=False, message="waits for node-2")
            claim = await it.claim("c0")
            waiting = asyncio.create_task(it.kubelet.prepare(claim))
            await until(lambda: it.domains() == [it.domain])
            await it.publish(released=False, abandoned=(claim.uid,))
            with pytest.raises(PrepareFailed, match="are being deleted"):
                await waiting
            assert (it.specs(), it.domains()) == ({}, [])

    asyncio.run(scenario())


def test_a_daemon_gets_its_directory_programs_and_capability(cluster: Cluster) -> None:
    async def scenario() -> None:
        async with world(cluster) as it:
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

    asyncio.run(scenario())


def test_a_daemon_is_brought_the_membership_of_its_own_domain_and_of_no_other(cluster: Cluster) -> None:
    async def scenario() -> None:
        async with world(cluster) as it:
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

    asyncio.run(scenario())


def test_claims_and_the_daemon_of_one_domain_share_one_watch(cluster: Cluster) -> None:
    async def scenario() -> None:
        async with world(cluster) as it:
            daemon = await it.claim("d-watch", kind="Daemon", namespace=SYSTEM)
            claims = [await it.claim("w0"), await it.claim("w1")]
            await it.kubelet.prepare(daemon)
            await it.publish(released=False, message="waits for node-2")
            waiting = [asyncio.create_task(it.kubelet.prepare(claim)) for claim in claims]
            await until(lambda: it.node.log.read_text().count("waits for node-2") == len(claims))
            await it.publish(released=True)
            await asyncio.gather(*waiting)
            log = (cluster.state / "logs" / "audit.log").read_text().splitlines()
            begun = [line for line in log if '"stage":"ResponseStarted"' in line and it.clique_name in line]
            assert len(begun) == 1

    asyncio.run(scenario())


def test_an_upgraded_plugin_brings_up_to_date_what_an_older_one_gave_to_a_daemon(cluster: Cluster) -> None:
    """The container that runs does not notice; the kubelet's next one gets it."""

    async def scenario() -> None:
        async with world(cluster) as it:
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
            (folder,) = [
                each["hostPath"] for each in edits(spec)["mounts"] if each["containerPath"] == "/imexd/membership"
            ]
            await until(
                lambda: (
                    [each["message"] for each in read(Path(folder, "membership.json")).get("daemons", ())] == ["told"]
                )
            )
            await it.kubelet.unprepare(daemon)

    asyncio.run(scenario())


def test_a_node_without_fabric_prepares_at_once_and_gives_no_channel(cluster: Cluster) -> None:
    async def scenario() -> None:
        async with world(cluster, "h100x1") as it:
            assert it.clique == ""
            claim = await it.claim("c0")
            (device,) = (await it.kubelet.prepare(claim))[claim.uid]
            assert list(device.cdi_device_ids) == []
            assert it.specs() == {}
            await it.kubelet.unprepare(claim)

    asyncio.run(scenario())


def test_what_a_claim_left_behind_is_removed_when_the_claim_is_gone(cluster: Cluster) -> None:
    async def scenario() -> None:
        async with world(cluster) as it:
            claim = await it.claim("c0")
            await it.publish(released=True)
            await it.kubelet.prepare(claim)
            where = path("resource.k8s.io/v1", "resourceclaims", namespace=it.namespace, name="c0")
            await it.client.delete(where)
            with pytest.raises(NotFound):
                await it.client.get(where)
            await it.restart()
            await until(lambda: not it.specs() and not it.domains())

    asyncio.run(scenario())
