"""What sysfs and KFD tell of AMD GPUs, also where they are in the middle of something or older or newer than usual."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from simulator.amd import node
from simulator.amd.models import MODELS

from api.errors import HardwareError
from kubeletplugin.hardware.amd_sysfs import AmdRoot, read_inventory
from kubeletplugin.hardware.amdsmi import AmdSmi
from kubeletplugin.model.amd_partitions import Mode
from kubeletplugin.model.amd_prepare import SetComputeMode

FIRST = "0000:05:00.0"
Make = Callable[..., AmdSmi]


@pytest.mark.parametrize(
    ("compute", "memory"), [("SPX", "UNKNOWN"), ("UNKNOWN", "NPS1"), ("CPX", ""), ("", "NPS1"), ("SPX", "NPS")]
)
def test_a_gpu_whose_mode_makes_no_sense_is_unreadable_and_no_other(
    make: Make, root: Path, compute: str, memory: str
) -> None:
    """The kernel says UNKNOWN while firmware and driver disagree, and nothing at all for a moment."""
    backend = make("mi300xx2")
    folder = root / "sys/module/amdgpu/drivers/pci:amdgpu" / FIRST
    (folder / "current_compute_partition").write_text(f"{compute}\n")
    (folder / "current_memory_partition").write_text(f"{memory}\n")
    inventory = backend.read_inventory()
    assert [gpu.pci_address == FIRST for gpu in inventory.gpus] == [False]
    (why,) = inventory.unreadable
    assert FIRST in why
    assert memory in why


def test_a_kfd_node_that_cannot_be_read_costs_its_own_gpu(make: Make, root: Path) -> None:
    """As one that goes between being listed and being read (ENODEV); here a folder stands in its file's place."""
    backend = make("mi300xx2")
    nodes = root / "sys/class/kfd/kfd/topology/nodes"
    (first,) = (node for node in nodes.iterdir() if "drm_render_minor 128\n" in (node / "properties").read_text())
    (first / "properties").unlink()
    (first / "properties").mkdir()
    inventory = backend.read_inventory()
    assert [gpu.pci_address == FIRST for gpu in inventory.gpus] == [False]
    assert "no node with render minor 128" in inventory.unreadable[0]


def test_a_driver_that_cannot_be_read_is_a_hardware_error(make: Make, root: Path) -> None:
    backend = make("mi300xx1")
    version = root / "sys/module/amdgpu/version"
    version.unlink()
    version.mkdir()
    with pytest.raises(HardwareError, match="the amdgpu driver cannot be read"):
        backend.read_inventory()


def test_a_partitions_card_is_the_one_of_its_own_device(make: Make, root: Path) -> None:
    """A display adapter of the board may have taken a minor between those of a GPU."""
    backend = make("mi300xx1")
    backend.apply_step(SetComputeMode(FIRST, Mode("CPX", "NPS1")))
    drm = (root / "sys/class/drm/renderD130/device/drm").resolve()
    (card,) = drm.glob("card*")
    card.rename(drm / "card77")
    cards = [partition.card for partition in backend.read_inventory().gpus[0].partitions]
    assert cards == [1, 2, 77, 4, 5, 6, 7, 8]


def test_platform_devices_may_have_a_dot_in_their_names(make: Make, root: Path) -> None:
    """As with some builds of ROCm 6.4."""
    backend = make("mi300xx1", dotted_xcp=True)
    node.set_modes(root, "CPX", 1)
    (gpu,) = backend.read_inventory().gpus
    assert (root / "sys/devices/platform/amdgpu_xcp.6").is_dir()
    assert [(partition.card, partition.render) for partition in gpu.partitions] == [(1 + n, 128 + n) for n in range(8)]


def gpu_nodes(root: Path) -> dict[int, Path]:
    """KFD's folders of the first GPU in CPX, by render minor."""
    found = {}
    for folder in (root / "sys/class/kfd/kfd/topology/nodes").iterdir():
        minor = next(
            line.split()[1]
            for line in (folder / "properties").read_text().splitlines()
            if line.startswith("drm_render_minor")
        )
        if int(minor):
            found[int(minor)] = folder
    return found


@pytest.mark.parametrize(
    ("model", "memory"),
    [("mi300x", "NPS1"), ("mi300x", "NPS4"), ("mi308x", "NPS1"), ("mi308x", "NPS4"), ("mi300a", "NPS1")],
)
def test_sysfs_alone_tells_of_a_partition_that_is_missing(make: Make, root: Path, model: str, memory: str) -> None:
    """Without ROCm's library nobody says how many partitions CPX has, but which modes a GPU has says it, too."""
    make(f"{model}x1")
    node.set_modes(root, "CPX", int(memory[-1]))
    plain = AmdRoot("/host", root)
    whole = read_inventory(plain, lambda _: None)
    assert not whole.unreadable
    count = len(whole.gpus[0].partitions)
    assert count == MODELS[model].xcc_count
    shutil.rmtree(gpu_nodes(root)[128 + count - 1])
    left = read_inventory(plain, lambda _: None)
    assert not left.gpus
    assert f"partitions {list(range(count - 1))}" in left.unreadable[0]


def change_property(folder: Path, name: str, value: int) -> None:
    file = folder / "properties"
    lines = [line for line in file.read_text().splitlines() if line.split()[0] != name]
    file.write_text("\n".join([*lines, f"{name} {value}", ""]))


def test_which_partition_it_is_says_the_hardware(make: Make, root: Path) -> None:
    """Minors that something else took between a GPU's own shift those that follow."""
    backend = make("mi300xx1")
    backend.apply_step(SetComputeMode(FIRST, Mode("CPX", "NPS1")))
    drm, nodes = root / "sys/class/drm", gpu_nodes(root)
    for minor in (128 + 2, 128 + 3):
        change_property(nodes[minor], "drm_render_minor", minor + 60)
        (drm / f"renderD{minor}").rename(drm / f"renderD{minor + 60}")
    (gpu,) = backend.read_inventory().gpus
    assert [partition.render for partition in gpu.partitions] == [128, 129, 190, 191, 132, 133, 134, 135]
    assert [partition.slot for partition in gpu.partitions] == list(range(8))


@pytest.mark.parametrize("newer", [False, True])
def test_older_and_newer_drivers_tell_it_otherwise(make: Make, root: Path, newer: bool) -> None:
    """In the upper bits of the location with newer drivers; one that tells nothing counts minors."""
    backend = make("mi300xx1")
    backend.apply_step(SetComputeMode(FIRST, Mode("CPX", "NPS1")))
    for minor, folder in gpu_nodes(root).items():
        slot = minor - 128
        change_property(folder, "location_id", (5 << 8) | (7 - slot << 28 if newer and slot else 0))
    if newer:
        change_property(gpu_nodes(root)[135], "location_id", 7 << 28 | 5 << 8)
    (gpu,) = backend.read_inventory().gpus
    renders = [partition.render for partition in gpu.partitions]
    assert renders == [128, 134, 133, 132, 131, 130, 129, 135] if newer else list(range(128, 136))
