"""What a KaiwoNode shows of its node: from ResourceSlices and the Node, whichever way the GPUs are offered."""

from typing import Any

from api.kaiwo import NodeResources
from api.names import PCI_BUS_ID_ATTRIBUTE
from controller.nodepartitioning.parse import StoredSlice, combine_slices, parse_slice
from controller.nodepartitioning.resources import build_resources
from controller.nodepartitioning.state import Device, Node

GPUS = ("0000:05:00.0", "0000:27:00.0")
GIB = 1 << 30


def resources(*devices: Device, cpu: str = "7910m", memory: str = "64Gi") -> NodeResources:
    return build_resources(Node("n", "uid", cpu=cpu, memory=memory), devices)


def test_whole_gpus_count_as_they_are() -> None:
    found = resources(*(Device(gpu, "spx_nps1", "MI300X", 192 * GIB) for gpu in GPUS)).gpus
    assert (found.vendor, found.model, found.resource_name) == ("AMD", "MI300X", "gpu.amd.com")
    assert (found.physical_count, found.logical_count, found.is_partitioned) == (2, 2, False)
    assert (found.physical_vram_per_gpu, found.logical_vram_per_gpu) == ("192Gi", "192Gi")


def test_partitions_are_the_logical_gpus() -> None:
    parts = [Device(gpu, "cpx_nps4", "MI300X", 24 * GIB) for gpu in GPUS for _ in range(8)]
    found = resources(*parts).gpus
    assert (found.physical_count, found.logical_count, found.is_partitioned) == (2, 16, True)
    assert (found.physical_vram_per_gpu, found.logical_vram_per_gpu) == ("192Gi", "24Gi")


def test_gpus_that_claims_partition_count_as_whole_ones() -> None:
    modes = (("spx_nps1", 192, 1), ("cpx_nps1", 23, 8))
    devices = [Device(gpu, mode, "MI300X", gib * GIB, parts) for gpu in GPUS for mode, gib, parts in modes]
    found = resources(*devices).gpus
    assert (found.logical_count, found.is_partitioned, found.physical_vram_per_gpu) == (2, False, "192Gi")


def test_a_node_without_gpus_shows_its_other_resources() -> None:
    found = resources(cpu="8", memory="100Mi")
    assert found.gpus.physical_count == 0
    assert (found.cpu.actual, found.cpu.nominal) == ("8", "7200m")
    assert (found.memory.actual, found.memory.nominal) == ("100Mi", "90Mi")
    assert resources().cpu.nominal == "7119m"


def stored(generation: int, count: int, *devices: dict[str, Any]) -> StoredSlice:
    pool = {"name": "n", "generation": generation, "resourceSliceCount": count}
    spec = {"driver": "gpu.amd.com", "nodeName": "n", "pool": pool, "devices": list(devices)}
    found = parse_slice({"spec": spec})
    assert found is not None
    return found


def test_what_is_published_is_read_from_the_newest_complete_generation() -> None:
    device = {
        "name": "gpu-0000-05-00-0-dpx-nps1",
        "attributes": {
            PCI_BUS_ID_ATTRIBUTE: {"string": GPUS[0]},
            "partitionProfile": {"string": "dpx_nps1"},
            "productName": {"string": "MI300X"},
        },
        "capacity": {"memory": {"value": "96Gi"}, "partitions": {"value": "2"}},
    }
    old, half, rest = stored(1, 1), stored(2, 2, device), stored(2, 2)
    assert combine_slices([old]) == ()
    assert combine_slices([old, half]) is None
    assert combine_slices([old, half, rest]) == (Device(GPUS[0], "dpx_nps1", "MI300X", 96 * GIB, 2),)
    assert combine_slices([]) is None
