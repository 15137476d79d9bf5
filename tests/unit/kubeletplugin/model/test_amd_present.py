"""The mark by which the controller tells the mode that a GPU is in from those that claims may bring it into."""

from kubeletplugin.model.amd_devices import build_amd_devices
from kubeletplugin.model.amd_partitions import AmdInventory, Mode
from kubeletplugin.model.checkpoint import Checkpoint
from tests.scenarios.amd.world import build_gpu


def test_of_the_modes_of_each_gpu_the_one_that_it_is_in_is_marked() -> None:
    inventory = AmdInventory("6.12.12", "ABC", (build_gpu(0), build_gpu(1, Mode("CPX", "NPS1"))))
    built = build_amd_devices(inventory, Checkpoint(), on_claim=True)
    marked = {
        (device["attributes"]["gpuIndex"]["int"], device["attributes"]["partitionProfile"]["string"])
        for group in built.groups
        for device in group.devices
        if device["attributes"].get("isPresent") == {"bool": True}
    }
    assert marked == {(0, "spx_nps1"), (1, "cpx_nps1")}
