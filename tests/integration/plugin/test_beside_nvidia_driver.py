"""NVIDIA's own driver and Partita, one after the other on the same simulated node: who changes over notices nothing."""

from typing import Any

import yaml
from bench.objects import wait_for_devices

from api.client import Json
from api.quantity import parse_quantity
from tests.support.nvidia_driver import hand_over
from tests.support.plugin_world import World, in_world

ADDED = {"index", "migCapable"}
"""Attributes of Partita's own."""


async def published(it: World) -> tuple[dict[str, Json], dict[str, Json]]:
    """Devices and counter sets by name."""
    await wait_for_devices(it.client, it.node.name)
    specs = [item["spec"] for item in await it.slices()]
    devices = {device["name"]: device for spec in specs for device in spec.get("devices") or ()}
    return devices, {counters["name"]: counters for spec in specs for counters in spec.get("sharedCounters") or ()}


async def assert_same_offer(it: World) -> None:
    await it.start()
    ours, our_counters = await published(it)
    await hand_over(it)
    theirs, their_counters = await published(it)
    assert our_counters == their_counters
    assert ours.keys() == theirs.keys()
    for name, device in theirs.items():
        same = ours[name]
        assert {key: value for key, value in same["attributes"].items() if key not in ADDED} == device["attributes"]
        assert same.get("consumesCounters") == device.get("consumesCounters")
        if device["attributes"]["type"]["string"] == "gpu":  # all of it, where NVIDIA's tells what partitions can have
            whole, partitionable = (found["capacity"].pop("memory")["value"] for found in (same, device))
            assert parse_quantity(whole) >= parse_quantity(partitionable)
        assert same["capacity"] == device["capacity"]


@in_world("h100x2")
async def test_hopper_gpus_and_their_mig_devices_are_offered_alike(it: World) -> None:
    await assert_same_offer(it)


@in_world("rtx-pro-6000x2")
async def test_gpus_with_graphics_profiles_are_offered_alike(it: World) -> None:
    await assert_same_offer(it)


@in_world("a100-40x2+gb200x2")
async def test_gpus_of_several_generations_are_offered_alike(it: World) -> None:
    await assert_same_offer(it)


def device_nodes(specs: list[Json]) -> dict[str, set[str]]:
    """Container paths of device nodes by CDI device without the claim's UID; those of all devices under ""."""

    def paths(edits: Json) -> set[str]:
        return {node["path"] for node in edits.get("deviceNodes") or ()}

    found = {"": {node for spec in specs for node in paths(spec.get("containerEdits") or {})}}
    for device in (device for spec in specs for device in spec["devices"]):
        found[device["name"][len("00000000-0000-0000-0000-000000000000-") :]] = paths(device["containerEdits"])
    return found


async def prepare_and_release(it: World, claim: str, devices: tuple[str, ...]) -> tuple[dict[str, set[str]], Any]:
    """The device nodes that containers get, and the MIG instances that were there meanwhile."""
    kubelet = await it.connect()
    made = await it.claim(claim, *devices)
    prepared = await kubelet.prepare(made)
    assert [entry.device_name for entry in prepared[made.uid]] == list(devices)
    nodes = device_nodes([yaml.safe_load(file.read_text()) for file in it.node.cdi.iterdir() if made.uid in file.name])
    instances = it.instances()
    await kubelet.unprepare(made)
    return nodes, instances


CLAIMS = (
    ("gpu-1",),
    ("gpu-0-mig-1g10gb-19-0",),
    ("gpu-0-mig-3g40gb-9-0", "gpu-0-mig-1g10gb-19-6", "gpu-1-mig-1g20gb-15-2"),
)


@in_world("h100x2")
async def test_claims_get_the_same_mig_instances_and_device_nodes(it: World) -> None:
    await it.start()
    await wait_for_devices(it.client, it.node.name)
    ours = [await prepare_and_release(it, f"ours-{number}", devices) for number, devices in enumerate(CLAIMS)]
    await hand_over(it)
    await wait_for_devices(it.client, it.node.name)
    theirs = [await prepare_and_release(it, f"theirs-{number}", devices) for number, devices in enumerate(CLAIMS)]
    assert ours == theirs
    assert it.instances() == []
