"""The AMD back-end reads and changes the simulated hardware through the same library and files as real hardware."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from simulator.amd import node
from simulator.amd.models import MODELS

from api.errors import HardwareError
from kubeletplugin.hardware.amd_sysfs import AmdRoot
from kubeletplugin.hardware.amdsmi import AmdSmi, ModeRefused
from kubeletplugin.hardware.backend import DeviceBusy, LibraryMissing
from kubeletplugin.model.amd_partitions import AmdInventory, Mode, ModeOffer
from kubeletplugin.model.amd_prepare import ReloadDriver, SetComputeMode, SetMemoryMode

FIRST = "0000:05:00.0"
Make = Callable[[str], AmdSmi]


@pytest.fixture
def make(root: Path) -> Make:
    def install(profile: str) -> AmdSmi:
        node.install(root, profile, cache=Path(os.environ.get("PARTITA_CACHE", ".cache")))
        return AmdSmi(AmdRoot("/host", root), sleep=lambda _: None)

    return install


def modes(inventory: AmdInventory) -> set[Mode | None]:
    return {gpu.mode for gpu in inventory.gpus}


@pytest.mark.parametrize("model", MODELS)
def test_a_fresh_node_is_read_whole(make: Make, model: str) -> None:
    """Model, memory, units, hive, NUMA node and PCIe root of every GPU of a fresh node are read."""
    inventory = make(model).read_inventory()
    assert len(inventory.gpus) == MODELS[model].gpus
    gpu = inventory.gpus[0]
    assert (gpu.pci_address, gpu.pcie_root, gpu.numa_node) == (FIRST, "pci0000:00", 0)
    assert gpu.product_name == MODELS[model].product
    assert gpu.memory_bytes == MODELS[model].vram_bytes
    assert (gpu.compute_units, gpu.simd_units) == (MODELS[model].compute_units, 4 * MODELS[model].compute_units)
    assert len({gpu.hive_id for gpu in inventory.gpus}) == MODELS[model].gpus // MODELS[model].hive_size
    assert inventory.driver_version == node.DRIVER_VERSION
    assert not inventory.unreadable


OFFERS = {
    "mi210": set(),
    "mi300a": {("SPX", 1, 1), ("TPX", 1, 3), ("CPX", 1, 6)},
    "mi300x": {("SPX", 1, 1), ("DPX", 1, 2), ("QPX", 1, 4), ("CPX", 1, 8), ("DPX", 2, 2), ("QPX", 4, 4), ("CPX", 4, 8)},
    "mi308x": {("SPX", 1, 1), ("DPX", 1, 2), ("CPX", 1, 4), ("CPX", 4, 4)},
    "mi350x": {("SPX", 1, 1), ("DPX", 1, 2), ("QPX", 1, 4), ("CPX", 1, 8), ("DPX", 2, 2), ("QPX", 2, 4), ("CPX", 2, 8)},
}
OFFERS |= {"mi325x": OFFERS["mi300x"], "mi355x": OFFERS["mi350x"]}


@pytest.mark.parametrize("model", OFFERS)
def test_offers_are_what_the_hardware_can_do(make: Make, model: str) -> None:
    """The modes on offer are the model's own, whatever mode the GPU is in."""
    gpu = make(model).read_inventory().gpus[0]
    expected = {ModeOffer(Mode(compute, f"NPS{memory}"), parts) for compute, memory, parts in OFFERS[model]}
    assert set(gpu.offers) == expected


def test_another_gpu_in_the_same_place_is_asked_for_its_own_modes(make: Make, root: Path) -> None:
    """What was learnt of a GPU is not said of the one that replaces it."""
    backend = make("mi300xx1")
    assert backend.read_inventory().gpus[0].partitions_in(Mode("QPX", "NPS1")) == 4
    node.install(root, "mi300ax1", cache=Path(os.environ.get("PARTITA_CACHE", ".cache")))
    (gpu,) = backend.read_inventory().gpus
    assert (gpu.partitions_in(Mode("TPX", "NPS1")), gpu.partitions_in(Mode("QPX", "NPS1"))) == (3, 0)


@pytest.mark.parametrize("model", [model for model in OFFERS if OFFERS[model]])
def test_every_mode_is_reached_from_every_other(make: Make, root: Path, model: str) -> None:
    """Each mode can be reached from each other by the steps of a plan, and shows its partitions."""
    backend = make(f"{model}x1")
    wanted = backend.read_inventory().gpus[0].offers
    for start in wanted:
        for offer in wanted:
            for mode in (start.mode, offer.mode):
                backend.apply_step(SetMemoryMode(FIRST, mode.memory))
                backend.apply_step(ReloadDriver((FIRST,), mode.memory))
                backend.apply_step(SetComputeMode(FIRST, mode))
            gpu = backend.read_inventory().gpus[0]
            assert gpu.mode == offer.mode
            assert [partition.slot for partition in gpu.partitions] == list(range(offer.partitions))
            assert set(gpu.offers) == set(wanted)


def test_steps_are_idempotent(make: Make, root: Path) -> None:
    """Steps that are done already change nothing, even where a change would be refused."""
    backend = make("mi300xx2")
    node.hold(root, 0, os.getpid())
    before = backend.read_inventory()
    backend.apply_step(SetMemoryMode(FIRST, "NPS1"))
    backend.apply_step(ReloadDriver((FIRST,), "NPS1"))
    backend.apply_step(SetComputeMode(FIRST, Mode("SPX", "NPS1")))
    assert backend.read_inventory() == before


def test_refusals_say_what_is_wrong(make: Make, root: Path) -> None:
    """A used GPU is busy, an impossible mode is refused, and the messages name the reason."""
    backend = make("mi300xx1")
    with pytest.raises(ModeRefused, match="does not have this mode"):
        backend.apply_step(SetComputeMode(FIRST, Mode("TPX", "NPS1")))
    with pytest.raises(ModeRefused, match="memory mode NPS1"):
        backend.apply_step(SetComputeMode(FIRST, Mode("CPX", "NPS4")))
    node.hold(root, 0, os.getpid())
    with pytest.raises(DeviceBusy, match="/dev/kfd"):
        backend.apply_step(SetComputeMode(FIRST, Mode("CPX", "NPS1")))
    backend.apply_step(SetMemoryMode(FIRST, "NPS4"))
    with pytest.raises(DeviceBusy, match=r"could not be unloaded.*/dev/kfd.*Module amdgpu is in use"):
        backend.apply_step(ReloadDriver((FIRST,), "NPS4"))
    node.hold(root, 0, None)
    backend.apply_step(ReloadDriver((FIRST,), "NPS4"))
    assert modes(backend.read_inventory()) == {Mode("CPX", "NPS4")}


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


def test_an_unloaded_driver_is_no_hardware(make: Make, root: Path) -> None:
    """A reload that loses the driver leaves nothing to read, until the driver is loaded."""
    backend = make("mi300xx1")
    node.set_fault(root, "losing_reloads", 1)
    backend.apply_step(SetMemoryMode(FIRST, "NPS4"))
    with pytest.raises(DeviceBusy, match="could not be loaded again"):
        backend.apply_step(ReloadDriver((FIRST,), "NPS4"))
    with pytest.raises(LibraryMissing):
        backend.read_inventory()
    node.load_driver(root)
    node.describe(root)
    assert modes(backend.read_inventory()) == {Mode("CPX", "NPS4")}


def test_a_reload_whose_program_is_killed_leaves_no_driver_until_it_is_loaded(make: Make, root: Path) -> None:
    """The node's own modprobe brings the driver back, in the memory mode that was asked for before."""
    backend = make("mi300xx1")
    backend.apply_step(SetMemoryMode(FIRST, "NPS4"))
    node.set_fault(root, "reload_pause_ms", 60_000)
    program = (
        "from pathlib import Path; import sys; from kubeletplugin.hardware.amd_sysfs import AmdRoot\n"
        "from kubeletplugin.hardware.amdsmi import AmdSmi; from kubeletplugin.model.amd_prepare import ReloadDriver\n"
        f"AmdSmi(AmdRoot('/', Path(sys.argv[1]))).apply_step(ReloadDriver(('{FIRST}',), 'NPS4'))\n"
    )
    with subprocess.Popen([sys.executable, "-c", program, root]) as reloading:
        while (root / "dev/kfd").exists():
            assert reloading.poll() is None
            time.sleep(0.01)
        reloading.kill()
    with pytest.raises(LibraryMissing):
        backend.read_inventory()
    backend.load_driver()
    assert modes(backend.read_inventory()) == {Mode("CPX", "NPS4")}
    backend.load_driver()


def test_a_driver_that_cannot_be_loaded_says_what_modprobe_says(make: Make, root: Path) -> None:
    make("mi300xx1")
    (root / "usr/sbin/modprobe").unlink()
    with pytest.raises(HardwareError, match=r"modprobe cannot be run under .*modprobe.*load amdgpu by hand"):
        AmdSmi(AmdRoot("/", root)).load_driver()


def test_a_gpu_in_the_middle_of_a_change_is_not_published(make: Make, root: Path) -> None:
    """While a change shows itself half done, the GPU is unreadable rather than wrong; afterwards it is read."""
    backend = make("mi300xx1")
    seen: list[AmdInventory] = [backend.read_inventory()]
    node.set_fault(root, "change_pause_ms", 400)
    change = threading.Thread(target=lambda: node.set_modes(root, "CPX", 1))
    change.start()
    while change.is_alive():
        seen.append(backend.read_inventory())
    seen.append(backend.read_inventory())
    assert {mode for inventory in seen for mode in modes(inventory)} <= {Mode("SPX", "NPS1"), Mode("CPX", "NPS1")}
    assert all(len(g.partitions) == (8 if g.mode == Mode("CPX", "NPS1") else 1) for i in seen for g in i.gpus)
    assert any(inventory.unreadable for inventory in seen)
    assert modes(seen[-1]) == {Mode("CPX", "NPS1")}


def test_device_nodes_carry_their_numbers(make: Make) -> None:
    """Those that are asked for and that there are, with the host's path and their numbers."""
    nodes = make("mi300xx1").read_device_nodes(("/dev/kfd", "/dev/dri/renderD135", "/dev/dri/renderD999", "/dev/dri"))
    assert set(nodes) == {"/dev/kfd", "/dev/dri/renderD135"}
    assert nodes["/dev/kfd"].host_path == "/host/dev/kfd"
    assert (nodes["/dev/kfd"].major, nodes["/dev/kfd"].minor) == (511, 0)
    assert (nodes["/dev/dri/renderD135"].major, nodes["/dev/dri/renderD135"].minor) == (226, 135)


def test_without_the_library_the_back_end_says_where_it_looked(tmp_path: Path, make: Make, root: Path) -> None:
    """The GPUs are read all the same; what needs the library is LibraryMissing, not the import error of the package."""
    make("mi300xx1")
    program = (
        "from pathlib import Path; import sys; from kubeletplugin.hardware.amd_sysfs import AmdRoot\n"
        "from kubeletplugin.hardware.amdsmi import AmdSmi; from kubeletplugin.hardware.backend import LibraryMissing\n"
        "class Root(AmdRoot):\n    library_folder = Path(sys.argv[2])\n"
        "from kubeletplugin.model.amd_prepare import SetComputeMode\n"
        "from kubeletplugin.model.amd_partitions import Mode\n"
        "backend = AmdSmi(Root('/', Path(sys.argv[1])))\n"
        "(gpu,) = backend.read_inventory().gpus\n"
        "print(sorted(offer.mode.profile for offer in gpu.offers))\n"
        "try: backend.apply_step(SetComputeMode(gpu.pci_address, Mode('CPX', 'NPS1')))\n"
        "except LibraryMissing as error: print('MISSING', error)\n"
    )
    libraries = tmp_path / "lib"
    libraries.mkdir()
    environment = {key: value for key, value in os.environ.items() if key not in ("ROCM_PATH", "ROCM_HOME")}
    for compiled in (None, "int amdsmi_init(unsigned long f) { return 0; }"):
        if compiled is not None:
            source = libraries / "partial.c"
            source.write_text(compiled)
            subprocess.run(["cc", "-shared", "-o", libraries / "libamd_smi.so", source], check=True)
        done = subprocess.run(
            [sys.executable, "-c", program, root, libraries],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        assert "['spx_nps1']" in done.stdout, "what it cannot be brought into is not offered"
        assert "MISSING AMD SMI cannot be loaded" in done.stdout


def test_a_modprobe_that_cannot_be_run_is_no_busy_driver(make: Make, root: Path) -> None:
    """What waiting does not cure is not waited for."""
    backend = make("mi300xx1")
    backend.apply_step(SetMemoryMode(FIRST, "NPS4"))
    (root / "usr/sbin/modprobe").unlink()
    with pytest.raises(HardwareError, match="cannot be run under") as failed:
        backend.apply_step(ReloadDriver((FIRST,), "NPS4"))
    assert not isinstance(failed.value, DeviceBusy)


def test_the_driver_root_counts_where_amdgpu_or_rocm_is_below_it(make: Make, root: Path, tmp_path: Path) -> None:
    """An empty one is another vendor's: then what this process itself sees."""
    make("mi300xx1")
    assert AmdRoot.find("/host", root) == AmdRoot("/host", root)
    (root / "opt/rocm/lib/libamd_smi.so").rename(root / "aside")
    assert AmdRoot.find("/host", root) == AmdRoot("/host", root)
    (root / "aside").rename(root / "opt/rocm/lib/libamd_smi.so")
    assert AmdRoot.find("/host", tmp_path) == AmdRoot("/", Path("/"))


def test_importing_the_back_end_does_not_import_the_library() -> None:
    """A node without AMD hardware never loads `amdsmi`."""
    program = "import sys, kubeletplugin.hardware.amdsmi; print('amdsmi' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
