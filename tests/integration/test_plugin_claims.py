"""The node plugin as a process, on simulated GPUs, against a real API server; the test plays the kubelet."""

import asyncio
import json
import shutil
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from bench.kubelet import Kubelet, PrepareFailed
from bench.node import Node
from bench.objects import RESOURCE_API, make_claim, make_namespace, make_node, published_devices, wait_for_devices

from api.client import Client, Json, path
from kubeletplugin.hardware.nvml import NvmlBackend
from kubeletplugin.hardware.tree import DriverRoot
from kubeletplugin.model.inventory import Gpu, Placement
from kubeletplugin.model.steps import CreateMigInstance, DeleteMigInstance, EnableMig
from tests.support.cluster import Cluster

SLICE = "gpu-0-mig-1g10gb-19-0"
NEIGHBOUR = "gpu-0-mig-1g10gb-19-1"


class World:
    """One node: its plugin, its hardware, its kubelet, its API objects."""

    def __init__(self, client: Client, node: Node, namespace: str) -> None:
        self.client = client
        self.node = node
        self.namespace = namespace
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

    async def claim(self, name: str, *devices: str, **options: Any) -> Any:
        return await make_claim(self.client, self.namespace, name, self.node.name, devices, **options)

    def gpus(self) -> tuple[Gpu, ...]:
        backend = NvmlBackend(DriverRoot(str(self.node.driver_root), self.node.driver_root))
        try:
            return backend.read_inventory().gpus
        finally:
            backend.close()

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

    def assert_clean(self) -> None:
        assert self.instances() == []
        assert self.specs() == {}
        assert self.records() == set()

    async def slices(self) -> list[Json]:
        selector = f"spec.nodeName={self.node.name}"
        return await self.client.list(path(RESOURCE_API, "resourceslices"), fieldSelector=selector)

    async def events(self, reason: str) -> list[Json]:
        found = []
        for namespace in (self.namespace, "default"):
            items = await self.client.list(path("events.k8s.io/v1", "events", namespace=namespace))
            found += [item for item in items if item["reason"] == reason]
        return found


@asynccontextmanager
async def world(cluster: Cluster, profile: str = "h100x2") -> AsyncIterator[World]:
    name = f"n{uuid4().hex[:6]}"
    async with await Client.connect(str(cluster.kubeconfig)) as client:
        await make_namespace(client, name)
        await make_node(client, name)
        node = Node(name, Path(tempfile.mkdtemp(prefix="pt-", dir="/var/tmp")), profile, cluster.kubeconfig, None)
        it = World(client, node, name)
        try:
            yield it
        finally:
            if it.kubelet is not None:
                await it.kubelet.close()
            node.remove()


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


def test_a_full_gpu_is_described_to_the_runtime_and_given_back(control_plane: Cluster) -> None:
    async def scenario() -> None:
        async with world(control_plane) as it:
            kubelet = await it.start()
            claim = await it.claim("whole", "gpu-1")
            (device,) = (await kubelet.prepare(claim))[claim.uid]
            assert (list(device.request_names), device.pool_name, device.device_name) == (["r0"], it.node.name, "gpu-1")
            assert list(device.cdi_device_ids) == [f"k8s.gpu.nvidia.com/claim={claim.uid}-gpu-1"]
            (spec,) = it.specs().values()
            nodes = [node["path"] for node in spec["devices"][0]["containerEdits"]["deviceNodes"]]
            assert nodes == ["/dev/nvidia1"]
            await kubelet.unprepare(claim)
            it.assert_clean()

    asyncio.run(scenario())


def test_a_mig_slice_is_made_at_its_placement_and_removed(control_plane: Cluster) -> None:
    async def scenario() -> None:
        async with world(control_plane) as it:
            kubelet = await it.start()
            claim = await it.claim("slice", SLICE)
            await kubelet.prepare(claim)
            assert it.instances() == [(0, 19, 0, True)]
            (spec,) = it.specs().values()
            nodes = [node["path"] for node in spec["devices"][0]["containerEdits"]["deviceNodes"]]
            assert nodes[0] == "/dev/nvidia0"
            assert len([node for node in nodes if node.startswith("/dev/nvidia-caps/nvidia-cap")]) == 2
            await kubelet.unprepare(claim)
            it.assert_clean()
            assert [gpu.mig.enabled for gpu in it.gpus() if gpu.mig] == [False, False]

    asyncio.run(scenario())


def test_concurrent_calls_for_one_claim_get_the_same_devices(control_plane: Cluster) -> None:
    async def scenario() -> None:
        async with world(control_plane) as it:
            kubelet = await it.start()
            claim = await it.claim("shared", SLICE)
            answers = await asyncio.gather(*(kubelet.prepare(claim) for _ in range(4)))
            ids = {tuple(answer[claim.uid][0].cdi_device_ids) for answer in answers}
            assert len(ids) == 1
            assert len(it.instances()) == 1

    asyncio.run(scenario())


def test_slices_of_one_gpu_are_prepared_at_once(control_plane: Cluster) -> None:
    async def scenario() -> None:
        async with world(control_plane) as it:
            kubelet = await it.start()
            claims = [await it.claim(f"c{start}", f"gpu-0-mig-1g10gb-19-{start}") for start in range(7)]
            await asyncio.gather(*(kubelet.prepare(claim) for claim in claims))
            assert {start for _, _, start, _ in it.instances()} == set(range(7))
            await asyncio.gather(*(kubelet.unprepare(claim) for claim in claims))
            it.assert_clean()

    asyncio.run(scenario())


def test_one_call_answers_for_every_claim_of_its_own(control_plane: Cluster) -> None:
    """A claim that does not exist fails alone; its neighbour in the same call is prepared."""

    async def scenario() -> None:
        async with world(control_plane) as it:
            kubelet = await it.start()
            good = await it.claim("good", "gpu-0")
            gone = type(good)(it.namespace, "gone", str(uuid4()))
            with pytest.raises(PrepareFailed, match=f"claim {it.namespace}/gone: it does not exist any more"):
                await kubelet.prepare(good, gone)
            assert it.records() == {good.uid}

    asyncio.run(scenario())


def test_an_overlap_is_refused_with_both_names(control_plane: Cluster) -> None:
    async def scenario() -> None:
        async with world(control_plane) as it:
            kubelet = await it.start()
            holder, other = await it.claim("holder", "gpu-0"), await it.claim("other", SLICE)
            await kubelet.prepare(holder)
            with pytest.raises(PrepareFailed, match=rf"(?s){it.namespace}/other.*{it.namespace}/holder"):
                await kubelet.prepare(other)
            assert it.records() == {holder.uid}
            event = (await until("an Event on the claim", lambda: it.events("Busy")))[0]
            assert event["regarding"]["name"] == "other"

    asyncio.run(scenario())


def test_a_claim_that_is_gone_holds_its_gpu_until_its_container_has_ended(control_plane: Cluster) -> None:
    """A pod that is deleted by force loses its claim at once, and its container runs out its grace period."""

    async def scenario() -> None:
        async with world(control_plane) as it:
            kubelet = await it.start()
            old, new = await it.claim("forced", "gpu-0"), await it.claim("next", "gpu-0")
            await kubelet.prepare(old)
            await it.client.delete(path(RESOURCE_API, "resourceclaims", namespace=it.namespace, name="forced"))
            with pytest.raises(PrepareFailed, match=rf"(?s){it.namespace}/next.*{it.namespace}/forced"):
                await kubelet.prepare(new)
            assert it.records() == {old.uid}
            await kubelet.unprepare(old)
            await kubelet.prepare(new)
            assert it.records() == {new.uid}

    asyncio.run(scenario())


def test_a_claim_that_vanished_unnoticed_gives_way_in_the_end(control_plane: Cluster) -> None:
    """Nobody called unprepare, but the claim has been gone from the API server for long: its device is free."""

    async def scenario() -> None:
        async with world(control_plane) as it:
            kubelet = await it.start(STALE_CLAIM_GRACE_S="1")
            old, new = await it.claim("old", SLICE), await it.claim("new", "gpu-0")
            await kubelet.prepare(old)
            await it.client.delete(path(RESOURCE_API, "resourceclaims", namespace=it.namespace, name="old"))
            await kubelet.prepare(new)
            assert it.records() == {new.uid}
            assert it.instances() == []

    asyncio.run(scenario())


def test_killed_while_it_prepares_again_after_a_reboot_it_leaves_nothing_behind(control_plane: Cluster) -> None:
    async def scenario() -> None:
        async with world(control_plane) as it:
            boot = it.node.base / "boot_id"
            boot.write_text("first")
            claim = await it.claim("slice", SLICE)
            kubelet = await it.start(BOOT_ID_PATH=str(boot))
            await kubelet.prepare(claim)
            assert it.node.end() == 0
            it.apply(DeleteMigInstance(it.gpus()[0].uuid, 19, Placement(0, 1)))  # as a reboot does
            boot.write_text("second")
            it.node.start(BOOT_ID_PATH=str(boot), PARTITA_CRASH_AFTER="hardware")
            assert await asyncio.to_thread(it.node.wait) == 137
            assert it.instances() == [(0, 19, 0, True)]
            kubelet = await it.start(BOOT_ID_PATH=str(boot))
            await kubelet.prepare(claim)
            assert it.instances() == [(0, 19, 0, True)]
            await kubelet.unprepare(claim)
            it.assert_clean()

    asyncio.run(scenario())


def test_a_claim_that_cannot_be_undone_keeps_no_other_waiting(control_plane: Cluster) -> None:
    async def scenario() -> None:
        async with world(control_plane) as it:
            half = await it.claim("half", SLICE)
            kubelet = await it.start(PARTITA_CRASH_AFTER="hardware")
            with pytest.raises(Exception, match=r"(?s)."):
                await kubelet.prepare(half)
            assert it.node.wait() == 137
            it.fail("nvmlGpuInstanceDestroy", "in-use")
            kubelet = await it.start()
            other = await it.claim("other", "gpu-1")
            await kubelet.prepare(other)
            await until("an Event", lambda: it.events("ClaimNotUndone"))
            assert it.records() == {half.uid, other.uid}
            it.inject("none")
            await kubelet.unprepare(half)
            await kubelet.unprepare(other)
            it.assert_clean()

    asyncio.run(scenario())


def test_mig_mode_that_cannot_be_left_holds_no_pod(control_plane: Cluster) -> None:
    """A monitor has the GPU open: the slice is given back all the same, and the mode is left when the GPU is wanted."""

    async def scenario() -> None:
        async with world(control_plane) as it:
            kubelet = await it.start()
            claim = await it.claim("slice", SLICE)
            await kubelet.prepare(claim)
            it.fail("nvmlDeviceSetMigMode", "in-use")
            await kubelet.unprepare(claim)
            it.assert_clean()
            assert it.gpus()[0].mig is not None and it.gpus()[0].mig.enabled
            it.inject("none")
            await kubelet.prepare(await it.claim("whole", "gpu-0"))
            assert it.gpus()[0].mig is not None and not it.gpus()[0].mig.enabled

    asyncio.run(scenario())


def test_a_gpu_that_cannot_be_read_for_a_moment_keeps_what_claims_hold(control_plane: Cluster) -> None:
    async def scenario() -> None:
        async with world(control_plane) as it:
            kubelet = await it.start(RESCAN_INTERVAL_S="0.2")
            claim = await it.claim("slice", SLICE)
            await kubelet.prepare(claim)
            it.fail("nvmlDeviceGetMigMode", "unknown")
            await asyncio.sleep(1.0)  # it has looked, and not seen the GPU
            giving_back = asyncio.create_task(kubelet.unprepare(claim))
            await asyncio.sleep(1.0)
            assert it.records() == {claim.uid}
            it.inject("none")
            await giving_back
            it.assert_clean()

    asyncio.run(scenario())


@pytest.mark.parametrize("step", ["intent", "hardware", "cdi", "done"])
def test_killed_after_any_step_of_prepare_the_next_run_converges(control_plane: Cluster, step: str) -> None:
    async def scenario() -> None:
        async with world(control_plane) as it:
            claim = await it.claim("slice", SLICE)
            kubelet = await it.start(PARTITA_CRASH_AFTER=step)
            with pytest.raises(Exception, match=r"(?s)."):
                await kubelet.prepare(claim)
            assert it.node.wait() == 137
            kubelet = await it.start()
            await kubelet.prepare(claim)
            assert it.instances() == [(0, 19, 0, True)]
            assert len(it.specs()) == 1
            await kubelet.unprepare(claim)
            it.assert_clean()

    asyncio.run(scenario())


@pytest.mark.parametrize("step", ["undone", "cdi_removed", "removed"])
def test_killed_after_any_step_of_unprepare_the_next_run_converges(control_plane: Cluster, step: str) -> None:
    async def scenario() -> None:
        async with world(control_plane) as it:
            claim = await it.claim("slice", SLICE)
            kubelet = await it.start(PARTITA_CRASH_AFTER=step)
            await kubelet.prepare(claim)
            with pytest.raises(Exception, match=r"(?s)."):
                await kubelet.unprepare(claim)
            assert it.node.wait() == 137
            kubelet = await it.start()
            await kubelet.unprepare(claim)
            it.assert_clean()

    asyncio.run(scenario())


@pytest.mark.parametrize("damage", ["truncated", "flipped", "future"])
def test_an_unreadable_journal_is_set_aside_and_rebuilt(control_plane: Cluster, damage: str) -> None:
    async def scenario() -> None:
        async with world(control_plane) as it:
            kubelet = await it.start()
            whole, part = await it.claim("whole", "gpu-1"), await it.claim("part", SLICE)
            await kubelet.prepare(whole)
            await kubelet.prepare(part)
            it.node.end(signal.SIGKILL)
            data = it.node.journal.read_bytes()
            broken = {
                "truncated": b"",
                "flipped": data[:200] + bytes([data[200] ^ 1]) + data[201:],
                "future": data.replace(b"\n1 ", b"\n99 ", 1),
            }
            it.node.journal.write_bytes(broken[damage])
            kubelet = await it.start()
            assert it.records() == {whole.uid, part.uid}
            assert it.node.journal.with_name("claims.journal.unreadable-1").read_bytes() == broken[damage]
            assert await until("an Event on the node", lambda: it.events("CheckpointRebuilt"))
            await kubelet.unprepare(whole, part)
            it.assert_clean()

    asyncio.run(scenario())


def test_a_torn_last_line_is_repaired(control_plane: Cluster) -> None:
    async def scenario() -> None:
        async with world(control_plane) as it:
            kubelet = await it.start()
            claim = await it.claim("whole", "gpu-1")
            await kubelet.prepare(claim)
            it.node.end(signal.SIGKILL)
            with it.node.journal.open("ab") as journal:
                journal.write(b'1 0000abcd {"set":{"ui')
            kubelet = await it.start()
            assert it.records() == {claim.uid}
            await kubelet.unprepare(claim)
            it.assert_clean()

    asyncio.run(scenario())


def test_a_full_disk_is_a_clear_error_and_loses_nothing(control_plane: Cluster) -> None:
    async def scenario() -> None:
        async with world(control_plane) as it:
            it.node.plugins.mkdir()
            run("mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(it.node.plugins))
            try:
                kubelet = await it.start()
                first, second = await it.claim("first", SLICE), await it.claim("second", NEIGHBOUR)
                await kubelet.prepare(first)
                ballast = it.node.plugins / "ballast"
                with ballast.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
                    while True:
                        file.write(bytes(1024))

                async def fill_the_last_page() -> None:
                    for _ in range(20):
                        await kubelet.prepare(second)
                        await kubelet.unprepare(second)
                    await kubelet.prepare(second)

                attempt = asyncio.ensure_future(fill_the_last_page())
                await until("the plugin says why", lambda: _logged(it, "the file system is full"))
                ballast.unlink()
                await attempt
                assert it.records() == {first.uid, second.uid}
                await kubelet.unprepare(first, second)
                it.assert_clean()
            finally:
                it.node.end(signal.SIGKILL)
                run("umount", str(it.node.plugins))

    asyncio.run(scenario())


async def _logged(it: World, text: str) -> bool:
    return text in it.node.log.read_text()


def test_what_an_admin_does_with_the_hardware_is_published(control_plane: Cluster) -> None:
    async def scenario() -> None:
        async with world(control_plane) as it:
            await it.start()
            await wait_for_devices(it.client, it.node.name)
            gpu = it.gpus()[0]
            it.apply(EnableMig(gpu.uuid), CreateMigInstance(gpu.uuid, 9, Placement(4, 4)))

            async def static() -> list[Json]:
                devices = await published_devices(it.client, it.node.name)
                return [device for device in devices if "uuid" in device["attributes"] and "mig" in device["name"]]

            (device,) = await until("the admin's instance", static)
            assert device["name"] == f"gpu-{gpu.minor}-mig-3g40gb-9-4"
            kubelet = await it.connect()
            claim = await it.claim("static", device["name"])
            await kubelet.prepare(claim)
            await kubelet.unprepare(claim)
            assert it.instances() == [(gpu.minor, 9, 4, True)]
            it.apply(DeleteMigInstance(gpu.uuid, 9, Placement(4, 4)))

    asyncio.run(scenario())


def test_slices_survive_a_restart_as_the_same_objects(control_plane: Cluster) -> None:
    async def scenario() -> None:
        async with world(control_plane) as it:
            await it.start()
            await wait_for_devices(it.client, it.node.name)
            before = {s["metadata"]["uid"]: s["metadata"]["resourceVersion"] for s in await it.slices()}
            assert it.node.end() == 0
            assert not it.node.registration_socket.exists()
            await it.start()
            await until("readiness", lambda: _is_ready(it))
            assert {s["metadata"]["uid"]: s["metadata"]["resourceVersion"] for s in await it.slices()} == before

    asyncio.run(scenario())


def test_a_node_without_a_gpu_is_ready_and_serves_one_that_comes_later(control_plane: Cluster) -> None:
    async def scenario() -> None:
        async with world(control_plane) as it:
            root, later = it.node.driver_root, it.node.driver_root.with_name("later")
            root.rename(later)
            (root / "sys/bus/pci/devices").mkdir(parents=True)
            it.node.start()
            await until("readiness", lambda: _is_ready(it))
            assert await it.slices() == []
            assert not it.node.registration_socket.exists()
            shutil.rmtree(root)
            later.rename(root)
            await it.node.wait_until_registered()
            await it.connect()
            await wait_for_devices(it.client, it.node.name)
            await until("readiness", lambda: _is_ready(it))

    asyncio.run(scenario())


async def _is_ready(it: World) -> bool:
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", it.node.http_port)
    except ConnectionRefusedError:
        return False
    writer.write(b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n")
    answer = await reader.read()
    writer.close()
    return answer.startswith(b"HTTP/1.1 200")


def test_a_registry_that_is_made_anew_gets_its_socket_back(control_plane: Cluster) -> None:
    async def scenario() -> None:
        async with world(control_plane) as it:
            await it.start()
            shutil.rmtree(it.node.registry)

            async def back() -> bool:
                return it.node.registration_socket.exists()

            await until("the socket", back)
            claim = await it.claim("whole", "gpu-0")
            kubelet = await it.connect()
            (device,) = (await kubelet.prepare(claim))[claim.uid]
            assert device.device_name == "gpu-0"

    asyncio.run(scenario())


def test_an_xid_shows_in_the_health_stream_and_as_a_taint(control_plane: Cluster) -> None:
    async def scenario() -> None:
        async with world(control_plane) as it:
            kubelet = await it.start()
            await wait_for_devices(it.client, it.node.name)
            stream = kubelet.watch_health()
            first = await stream.read()
            assert {device.health for device in first.devices} == {1}
            run("hack/simulator", "inject", "--root", str(it.node.driver_root), "xid", "--gpu", "0", "--xid", "48")
            while True:
                report = await asyncio.wait_for(stream.read(), 30)
                bad = {device.device.device_name for device in report.devices if device.health == 2}
                if bad:
                    break
            assert {name.partition("-mig-")[0] for name in bad} == {"gpu-0"}
            assert len(report.devices) == len(first.devices)

            async def tainted() -> list[Json]:
                devices = await published_devices(it.client, it.node.name)
                return [device for device in devices if device.get("taints")]

            assert await until("taints", tainted)

    asyncio.run(scenario())


def test_two_instances_share_what_they_know(control_plane: Cluster) -> None:
    """A rolling update: what one prepared, the other unprepares; each leaves the other's sockets alone."""

    async def scenario() -> None:
        async with world(control_plane) as it:
            old, new = str(uuid4()), str(uuid4())
            it.node.start(POD_UID=old)
            await until("old socket", lambda: _exists(it, old))
            twin = Node(it.node.name, it.node.base, "h100x2", control_plane.kubeconfig, None)
            twin.start(POD_UID=new)
            try:
                await until("new socket", lambda: _exists(it, new))
                first = await Kubelet.register(_sockets(it, old)[0])
                second = await Kubelet.register(_sockets(it, new)[0])
                claim = await it.claim("slice", SLICE)
                prepared = await first.prepare(claim)
                again = await second.prepare(claim)
                assert list(prepared[claim.uid][0].cdi_device_ids) == list(again[claim.uid][0].cdi_device_ids)
                assert it.node.end() == 0
                await second.unprepare(claim)
                it.assert_clean()
                await first.close()
                await second.close()
            finally:
                twin.end(signal.SIGKILL)

    asyncio.run(scenario())


def test_a_driver_without_cuda_is_told_of_and_its_claims_are_prepared_all_the_same(control_plane: Cluster) -> None:
    async def scenario() -> None:
        async with world(control_plane) as it:
            (library,) = it.node.driver_root.rglob("libcuda.so.*.*")
            aside = library.rename(it.node.driver_root / library.name)
            kubelet = await it.start()

            async def told() -> list[str]:
                events = await it.events("DriverLibrariesMissing")
                return [event["note"] for event in events if event["regarding"]["name"] == it.node.name]

            async def found() -> bool:
                return '"driver_libraries_found"' in it.node.log.read_text()

            (note,) = await until("the Event", told)
            assert f"driver root {it.node.driver_root} has no {library.name} in any of /usr/lib64, " in note
            assert '"error", "msg": "driver_libraries_missing"' in it.node.log.read_text()
            early, late = [await it.claim(name, gpu) for name, gpu in (("early", "gpu-0"), ("late", "gpu-1"))]
            await kubelet.prepare(early)
            assert str(library) not in _mounted(it, early.uid)
            aside.rename(library)
            await until("the library", found)
            await kubelet.prepare(late)
            assert str(library) in _mounted(it, late.uid)

    asyncio.run(scenario())


def test_what_the_driver_makes_later_reaches_containers_without_a_restart(control_plane: Cluster) -> None:
    async def scenario() -> None:
        async with world(control_plane) as it:
            dev, hook = it.node.driver_root / "dev", it.node.driver_root / "usr/bin/nvidia-cdi-hook"
            late = ("nvidia-uvm", "nvidia1")
            for name in late:
                (dev / name).rename(it.node.driver_root / name)
            kubelet = await it.start()
            claim = await it.claim("whole", "gpu-0")

            async def common() -> Json:
                await kubelet.prepare(claim)
                (spec,) = it.specs().values()
                await kubelet.unprepare(claim)
                return dict(spec["containerEdits"])

            async def complete() -> bool:
                edits = await common()
                nodes = [node["path"] for node in edits["deviceNodes"]]
                return "/dev/nvidia-uvm" in nodes and {each["path"] for each in edits.get("hooks", ())} == {str(hook)}

            assert not await complete()
            for name in late:
                (it.node.driver_root / name).rename(dev / name)
            hook.touch()
            await until("node and hook", complete)
            await kubelet.prepare(await it.claim("other", "gpu-1"))

    asyncio.run(scenario())


def test_a_gpu_that_is_taken_out_and_put_back_is_offered_again(control_plane: Cluster) -> None:
    async def scenario() -> None:
        async with world(control_plane) as it:
            await it.start()
            await wait_for_devices(it.client, it.node.name)
            inject = ("hack/simulator", "inject", "--root", str(it.node.driver_root), "absent", "--gpu", "0")

            async def offered() -> set[str]:
                return {device["name"] for device in await published_devices(it.client, it.node.name)}

            async def without() -> bool:
                names = await offered()
                return bool(names) and not any(name.partition("-mig-")[0] == "gpu-0" for name in names)

            before = await offered()
            run(*inject)
            await until("its end", without)
            run(*inject, "--off")

            async def back() -> bool:
                return await offered() == before

            await until("its return", back)
            kubelet = await it.connect()
            await kubelet.prepare(await it.claim("whole", "gpu-0"))

    asyncio.run(scenario())


def test_what_one_of_two_instances_made_is_nowhere_offered_as_an_admins(control_plane: Cluster) -> None:
    async def scenario() -> None:
        async with world(control_plane) as it:
            old, new = str(uuid4()), str(uuid4())
            it.node.start(POD_UID=old)
            await until("old socket", lambda: _exists(it, old))
            twin = Node(it.node.name, it.node.base, "h100x2", control_plane.kubeconfig, None)
            twin.start(POD_UID=new)
            try:
                await until("new socket", lambda: _exists(it, new))
                await wait_for_devices(it.client, it.node.name)
                first = await Kubelet.register(_sockets(it, old)[0])
                claim = await it.claim("slice", SLICE)
                await first.prepare(claim)
                for _ in range(80):  # longer than two rescans
                    devices = await published_devices(it.client, it.node.name)
                    assert [d["name"] for d in devices if "uuid" in d["attributes"] and "mig" in d["name"]] == []
                    await asyncio.sleep(0.1)
                await first.unprepare(claim)
                await first.close()
            finally:
                twin.end(signal.SIGKILL)

    asyncio.run(scenario())


def _mounted(it: World, uid: str) -> set[str]:
    (spec,) = (spec for name, spec in it.specs().items() if uid in name)
    return {mount["hostPath"] for mount in spec["containerEdits"]["mounts"]}


async def _exists(it: World, uid: str) -> bool:
    return bool(_sockets(it, uid))


def _sockets(it: World, uid: str) -> list[Path]:
    return list(it.node.registry.glob(f"gpu.nvidia.com-{uid}-*-reg.sock"))
