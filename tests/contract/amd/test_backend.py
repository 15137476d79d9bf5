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
    node.install(root, "mi300ax1")
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
    why = r"could not be unloaded.*/dev/kfd.*Module amdgpu is in use.*NPS4 stays asked for.*next load of amdgpu"
    with pytest.raises(DeviceBusy, match=why):
        backend.apply_step(ReloadDriver((FIRST,), "NPS4"))
    node.hold(root, 0, None)
    backend.apply_step(ReloadDriver((FIRST,), "NPS4"))
    assert modes(backend.read_inventory()) == {Mode("CPX", "NPS4")}


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


def test_a_gpu_that_the_library_fails_for_is_not_asked_for_at_every_look(
    make: Make, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An open library makes GPUs look used, so it is not opened every three seconds for one that is broken."""
    make("mi300xx2")
    now_s = [0.0]
    backend = AmdSmi(AmdRoot("/host", root), sleep=lambda _: None, clock=lambda: now_s[0])
    import amdsmi

    opened: list[float] = []
    initialise, ask = amdsmi.amdsmi_init, amdsmi.amdsmi_get_gpu_kfd_info

    def init(flags: object) -> None:
        opened.append(now_s[0])
        initialise(flags)

    def kfd_info(handle: object) -> object:
        if amdsmi.amdsmi_get_gpu_device_bdf(handle) == FIRST:
            raise amdsmi.AmdSmiLibraryException(12)
        return ask(handle)

    monkeypatch.setattr(amdsmi, "amdsmi_init", init)
    monkeypatch.setattr(amdsmi, "amdsmi_get_gpu_kfd_info", kfd_info)
    for _ in range(40):
        broken, sound = backend.read_inventory().gpus
        assert sound.partitions_in(Mode("CPX", "NPS4")) == 8
        assert broken.mode == Mode("SPX", "NPS1"), "it serves in the modes that sysfs tells of"
        now_s[0] += 3.0
    assert len(opened) < 6
    monkeypatch.setattr(amdsmi, "amdsmi_get_gpu_kfd_info", ask)
    now_s[0] += 3600.0
    assert all(gpu.partitions_in(Mode("CPX", "NPS4")) == 8 for gpu in backend.read_inventory().gpus)


def test_a_library_that_is_installed_later_is_found_without_a_restart(make: Make, root: Path) -> None:
    make("mi300xx1")
    program = (
        "from pathlib import Path; import sys; from kubeletplugin.hardware.amd_sysfs import AmdRoot\n"
        "from kubeletplugin.hardware.amdsmi import AmdSmi\n"
        "root = AmdRoot('/', Path(sys.argv[1])); aside = root.library.with_name('aside')\n"
        "root.library.rename(aside); backend = AmdSmi(root)\n"
        "for _ in range(2): print(len(backend.read_inventory().gpus[0].offers))\n"
        "aside.rename(root.library); print(len(backend.read_inventory().gpus[0].offers))\n"
    )
    environment = {key: value for key, value in os.environ.items() if key not in ("ROCM_PATH", "ROCM_HOME")}
    done = subprocess.run(
        [sys.executable, "-c", program, root], env=environment, capture_output=True, text=True, check=True
    )
    assert [line for line in done.stdout.splitlines() if line.isdigit()] == ["1", "1", "7"]


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
