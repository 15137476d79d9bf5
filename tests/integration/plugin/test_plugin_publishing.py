"""What a node offers and tells of itself, and when that changes."""

import asyncio
import shutil
from typing import Any

from bench.objects import delete_slices, make_node, published_devices, wait_for_devices

from api.client import Json, path
from kubeletplugin.model.inventory import Placement
from kubeletplugin.model.steps import CreateMigInstance, DeleteMigInstance, EnableMig
from tests.support.plugin_world import SLICE, World, in_world, rolling_update, run, until
from tests.support.scrape import get


@in_world()
async def test_what_an_admin_does_with_the_hardware_is_published(it: World) -> None:
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


@in_world()
async def test_slices_survive_a_restart_as_the_same_objects(it: World) -> None:
    await it.start()
    await wait_for_devices(it.client, it.node.name)
    before = {s["metadata"]["uid"]: s["metadata"]["resourceVersion"] for s in await it.slices()}
    assert it.node.end() == 0
    assert not it.node.registration_socket.exists()
    await it.start()
    await until("readiness", lambda: _is_ready(it))
    assert {s["metadata"]["uid"]: s["metadata"]["resourceVersion"] for s in await it.slices()} == before


@in_world()
async def test_a_node_that_is_made_anew_owns_its_slices(it: World) -> None:
    """While the plugin runs; the garbage collector removes what belongs to the old one."""
    where = path("v1", "nodes", name=it.node.name)

    async def owned() -> Any:
        uid = (await it.client.get(where))["metadata"]["uid"]
        slices = await it.slices()
        devices = await published_devices(it.client, it.node.name)
        return devices and all(each["metadata"]["ownerReferences"][0]["uid"] == uid for each in slices)

    await it.start()
    await until("slices", owned)
    await it.client.delete(where)
    await make_node(it.client, it.node.name)
    await delete_slices(it.client, it.node.name)
    await until("slices of the new node", owned)


@in_world()
async def test_a_node_without_a_gpu_is_ready_and_serves_one_that_comes_later(it: World) -> None:
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


async def _is_ready(it: World) -> bool:
    try:
        status, _ = await asyncio.to_thread(get, it.node.http_port, "/readyz")
    except OSError:
        return False
    return status == 200


@in_world()
async def test_a_registry_that_is_made_anew_gets_its_socket_back(it: World) -> None:
    await it.start()
    shutil.rmtree(it.node.registry)

    async def back() -> bool:
        return it.node.registration_socket.exists()

    await until("the socket", back)
    claim = await it.claim("whole", "gpu-0")
    kubelet = await it.connect()
    (device,) = (await kubelet.prepare(claim))[claim.uid]
    assert device.device_name == "gpu-0"


@in_world()
async def test_an_xid_shows_in_the_health_stream_and_as_a_taint_unless_it_is_to_be_ignored(it: World) -> None:
    kubelet = await it.start(ADDITIONAL_XIDS_TO_IGNORE="64,77")
    await wait_for_devices(it.client, it.node.name)
    stream = kubelet.watch_health()
    first = await stream.read()
    assert {device.health for device in first.devices} == {1}
    it.inject("xid", "--gpu", "1", "--xid", "77")  # read before the other one, for it comes first
    it.inject("xid", "--gpu", "0", "--xid", "48")
    while True:
        report = await asyncio.wait_for(stream.read(), 30)
        bad = {device.device.device_name for device in report.devices if device.health == 2}
        if bad:
            break
    assert {name.partition("-mig-")[0] for name in bad} == {"gpu-0"}
    assert len(report.devices) == len(first.devices)

    async def effects() -> dict[str, set[str]]:
        """Of taints, by GPU."""
        found: dict[str, set[str]] = {}
        for device in await published_devices(it.client, it.node.name):
            gpu = found.setdefault(device["name"].partition("-mig-")[0], set())
            gpu.update(taint["effect"] for taint in device.get("taints", ()))
        return found if all(found.values()) else {}

    assert await until("taints of both", effects) == {"gpu-0": {"NoSchedule"}, "gpu-1": {"None"}}, (
        "an ignored one only tells"
    )


@in_world()
async def test_two_instances_share_what_they_know(it: World) -> None:
    """A rolling update: what one prepared, the other unprepares; each leaves the other's sockets alone."""
    async with rolling_update(it) as (first, second):
        claim = await it.claim("slice", SLICE)
        prepared = await first.prepare(claim)
        again = await second.prepare(claim)
        assert list(prepared[claim.uid][0].cdi_device_ids) == list(again[claim.uid][0].cdi_device_ids)
        assert it.node.end() == 0
        await second.unprepare(claim)
        it.assert_clean()


@in_world()
async def test_a_driver_without_cuda_is_told_of_and_its_claims_are_prepared_all_the_same(it: World) -> None:
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


@in_world()
async def test_what_the_driver_makes_later_reaches_containers_without_a_restart(it: World) -> None:
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


@in_world()
async def test_a_gpu_that_is_taken_out_and_put_back_is_offered_again(it: World) -> None:
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


@in_world()
async def test_what_one_of_two_instances_made_is_nowhere_offered_as_an_admins(it: World) -> None:
    async with rolling_update(it) as (first, _):
        await wait_for_devices(it.client, it.node.name)
        claim = await it.claim("slice", SLICE)
        await first.prepare(claim)
        for _ in range(80):  # longer than two rescans
            devices = await published_devices(it.client, it.node.name)
            assert [d["name"] for d in devices if "uuid" in d["attributes"] and "mig" in d["name"]] == []
            await asyncio.sleep(0.1)
        await first.unprepare(claim)


def _mounted(it: World, uid: str) -> set[str]:
    (spec,) = (spec for name, spec in it.specs().items() if uid in name)
    return {mount["hostPath"] for mount in spec["containerEdits"]["mounts"]}
