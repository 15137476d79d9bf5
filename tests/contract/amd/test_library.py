"""The simulated `libamd_smi.so` behaves, through the PyPI package, as AMD describes its own."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from simulator.amd import node, state
from simulator.amd.models import MODELS

Install = Callable[..., Any]
MIB = 1 << 20

# Model, compute mode, memory mode: partitions, CUs of each, MiB of the first and of the last.
MODES = [
    ("mi300x", "SPX", 1, 1, 304, 196592, 196592),
    ("mi300x", "DPX", 1, 2, 152, 98296, 98296),
    ("mi300x", "DPX", 2, 2, 152, 98304, 98288),
    ("mi300x", "QPX", 1, 4, 76, 49148, 49148),
    ("mi300x", "QPX", 4, 4, 76, 49152, 49136),
    ("mi300x", "CPX", 1, 8, 38, 24574, 24574),
    ("mi300x", "CPX", 4, 8, 38, 24576, 24568),
    ("mi325x", "SPX", 1, 1, 304, 262128, 262128),
    ("mi325x", "DPX", 1, 2, 152, 131064, 131064),
    ("mi325x", "DPX", 2, 2, 152, 131072, 131056),
    ("mi325x", "QPX", 1, 4, 76, 65532, 65532),
    ("mi325x", "QPX", 4, 4, 76, 65536, 65520),
    ("mi325x", "CPX", 1, 8, 38, 32766, 32766),
    ("mi325x", "CPX", 4, 8, 38, 32768, 32760),
    ("mi300a", "SPX", 1, 1, 228, 131056, 131056),
    ("mi300a", "TPX", 1, 3, 76, 43685, 43685),
    ("mi300a", "CPX", 1, 6, 38, 21842, 21842),
    ("mi308x", "SPX", 1, 1, 80, 196592, 196592),
    ("mi308x", "DPX", 1, 2, 40, 98296, 98296),
    ("mi308x", "CPX", 1, 4, 20, 49148, 49148),
    ("mi308x", "CPX", 4, 4, 20, 49152, 49136),
    ("mi350x", "SPX", 1, 1, 256, 294896, 294896),
    ("mi350x", "DPX", 1, 2, 128, 147448, 147448),
    ("mi350x", "DPX", 2, 2, 128, 147456, 147440),
    ("mi350x", "QPX", 1, 4, 64, 73724, 73724),
    ("mi350x", "QPX", 2, 4, 64, 73728, 73720),
    ("mi350x", "CPX", 1, 8, 32, 36862, 36862),
    ("mi350x", "CPX", 2, 8, 32, 36864, 36860),
    ("mi355x", "SPX", 1, 1, 256, 294896, 294896),
    ("mi355x", "DPX", 1, 2, 128, 147448, 147448),
    ("mi355x", "DPX", 2, 2, 128, 147456, 147440),
    ("mi355x", "QPX", 1, 4, 64, 73724, 73724),
    ("mi355x", "QPX", 2, 4, 64, 73728, 73720),
    ("mi355x", "CPX", 1, 8, 32, 36862, 36862),
    ("mi355x", "CPX", 2, 8, 32, 36864, 36860),
]


def reopen(smi: Any) -> list[Any]:
    smi.amdsmi_shut_down()
    smi.amdsmi_init()
    return list(smi.amdsmi_get_processor_handles())


def primaries(smi: Any, handles: list[Any]) -> list[Any]:
    return [h for h in handles if smi.amdsmi_get_gpu_kfd_info(h)["current_partition_id"] == 0]


def error_code(smi: Any, call: Callable[[], Any]) -> int:
    with pytest.raises(smi.AmdSmiLibraryException) as raised:
        call()
    return int(raised.value.get_error_code())


def set_memory(smi: Any, handle: Any, mode: int) -> None:
    smi.amdsmi_set_gpu_memory_partition(handle, smi.AmdSmiMemoryPartitionType(mode))


def set_compute(smi: Any, handle: Any, mode: str) -> None:
    smi.amdsmi_set_gpu_compute_partition(handle, smi.AmdSmiComputePartitionType[mode])


@pytest.mark.parametrize(("model", "compute", "memory", "parts", "units", "first", "last"), MODES)
def test_each_mode_has_its_partitions(
    install: Install, root: Path, model: str, compute: str, memory: int, parts: int, units: int, first: int, last: int
) -> None:
    """A mode reached through the library shows the partitions, compute units, memory and minors of that mode."""
    smi = install(f"{model}x2")
    handles = smi.amdsmi_get_processor_handles()
    if memory != 1:
        set_memory(smi, handles[0], memory)
        smi.amdsmi_gpu_driver_reload()
        handles = reopen(smi)
    if smi.amdsmi_get_gpu_compute_partition(handles[0]) != compute:
        set_compute(smi, handles[0], compute)
        handles = reopen(smi)
    sizes = [smi.amdsmi_get_gpu_vram_info(h)["vram_size"] for h in handles[:parts]]
    assert smi.amdsmi_get_gpu_compute_partition(handles[0]) == compute
    assert smi.amdsmi_get_gpu_memory_partition(handles[0]) == f"NPS{memory}"
    assert (sizes[0], sizes[-1]) == (first, last)
    assert {smi.amdsmi_get_gpu_asic_info(h)["num_compute_units"] for h in handles[:parts]} == {units}
    renders = [smi.amdsmi_get_gpu_enumeration_info(h)["drm_render"] for h in handles]
    assert renders[:parts] == list(range(128, 128 + parts))
    assert renders[parts] == 136, "the second GPU begins eight minors further, whatever the mode"
    nodes = root / "sys/class/kfd/kfd/topology/nodes"
    cpus = state.read(root).cpu_nodes
    assert len(list(nodes.iterdir())) == cpus + len(handles)
    bank = (nodes / str(cpus) / "mem_banks/0/properties").read_text()
    assert int(dict(line.split() for line in bank.splitlines())["size_in_bytes"]) // MIB == first


def test_the_tree_tells_the_engines_of_a_partition_as_the_library_does(install: Install, root: Path) -> None:
    """Under CPX a decoder is shared by two partitions, and each has one die and two DMA engines of its own."""
    smi = install("mi300xx1")
    set_compute(smi, smi.amdsmi_get_processor_handles()[0], "CPX")
    handle = reopen(smi)[0]
    profile = smi.amdsmi_get_gpu_accelerator_partition_profile_config(handle)["profiles"][-1]
    told = {
        each["resource_type"]: (each["partition_resource"], each["num_partitions_share_resource"])
        for each in profile["resources"]
    }
    folder = root / "sys/bus/pci/devices/0000:05:00.0/compute_partition_config"
    shown = {
        kind: tuple(int((folder / kind / name).read_text()) for name in ("num_inst", "num_shared"))
        for kind in ("xcc", "dec", "dma", "jpeg")
    }
    assert shown == {"xcc": (1, 1), "dec": (1, 2), "dma": (2, 1), "jpeg": (1, 2)}
    assert [told[kind] for kind in ("XCC", "DECODER", "DMA", "JPEG")] == list(shown.values())


@pytest.mark.parametrize("model", MODELS)
def test_a_fresh_node_shows_the_usual_gpus(install: Install, root: Path, model: str) -> None:
    """A fresh node shows the model's usual number of whole GPUs, in hives, each with its own card and render node."""
    smi = install(model)
    handles = smi.amdsmi_get_processor_handles()
    assert len(handles) == MODELS[model].gpus
    hives = {smi.amdsmi_get_xgmi_info(h)["xgmi_hive_id"] for h in handles}
    assert len(hives) == MODELS[model].gpus // MODELS[model].hive_size
    minors = {tuple(smi.amdsmi_get_gpu_enumeration_info(h)[k] for k in ("drm_card", "drm_render")) for h in handles}
    assert len(minors) == len(handles)
    for card, render in minors:
        device = (root / f"sys/class/drm/renderD{render}/device").resolve()
        assert device == (root / f"sys/class/drm/card{card}/device").resolve()
        assert (device / "vendor").read_text() == "0x1002\n"
        assert (root / f"dev/dri/renderD{render}").is_char_device()


def test_a_model_without_partitions_says_so(install: Install, root: Path) -> None:
    """MI210 has no partition files, and every partition call answers NOT_SUPPORTED."""
    smi = install("mi210")
    handle = smi.amdsmi_get_processor_handles()[0]
    assert error_code(smi, lambda: smi.amdsmi_get_gpu_compute_partition(handle)) == 2
    assert error_code(smi, lambda: set_compute(smi, handle, "CPX")) == 2
    assert error_code(smi, lambda: set_memory(smi, handle, 4)) == 2
    assert not list((root / "sys/bus/pci/devices").glob("*/current_compute_partition"))
    assert not (root / "sys/devices/platform").exists()


@pytest.mark.parametrize(
    ("model", "compute", "code"),
    [("mi300x", "TPX", 55), ("mi300a", "DPX", 55), ("mi308x", "QPX", 55), ("mi300x", "INVALID", 1)],
)
def test_unknown_compute_modes_are_refused(install: Install, model: str, compute: str, code: int) -> None:
    """A mode that the number of dies does not allow is refused and nothing changes."""
    smi = install(f"{model}x1")
    handle = smi.amdsmi_get_processor_handles()[0]
    assert error_code(smi, lambda: set_compute(smi, handle, compute)) == code
    assert smi.amdsmi_get_gpu_compute_partition(handle) == "SPX"


def test_spx_is_refused_under_nps4(install: Install) -> None:
    """Under NPS4 the whole GPU cannot be one partition; it has to return to NPS1 first."""
    smi = install("mi300xx1")
    node_handle = smi.amdsmi_get_processor_handles()[0]
    set_memory(smi, node_handle, 4)
    smi.amdsmi_gpu_driver_reload()
    handle = reopen(smi)[0]
    assert error_code(smi, lambda: set_compute(smi, handle, "SPX")) == 55


@pytest.mark.parametrize(("model", "memory", "code"), [("mi300x", 8, 1), ("mi308x", 2, 1), ("mi300a", 4, 2)])
def test_unknown_memory_modes_are_refused(install: Install, model: str, memory: int, code: int) -> None:
    """A memory mode that the model does not list is refused; on an APU every one is."""
    smi = install(f"{model}x1")
    handle = smi.amdsmi_get_processor_handles()[0]
    assert error_code(smi, lambda: set_memory(smi, handle, memory)) == code


def test_a_memory_mode_waits_for_the_reload_and_takes_the_hive(install: Install, root: Path) -> None:
    """A memory mode is only recorded, for the whole hive; the reload applies it and picks the compute mode."""
    smi = install("mi300x")
    handle = smi.amdsmi_get_processor_handles()[3]
    set_memory(smi, handle, 4)
    assert smi.amdsmi_get_gpu_memory_partition(handle) == "NPS1"
    assert {gpu["requested_memory_mode"] for gpu in node.describe(root)["gpus"]} == {"NPS4"}
    smi.amdsmi_gpu_driver_reload()
    handles = primaries(smi, reopen(smi))
    assert {smi.amdsmi_get_gpu_memory_partition(h) for h in handles} == {"NPS4"}
    assert {smi.amdsmi_get_gpu_compute_partition(h) for h in handles} == {"CPX"}


def test_a_request_for_a_memory_mode_is_not_taken_back(install: Install, root: Path) -> None:
    """The kernel skips one for the mode that the GPUs are in, and keeps what was asked for before."""
    smi = install("mi300x")
    handle = smi.amdsmi_get_processor_handles()[0]
    set_memory(smi, handle, 4)
    set_memory(smi, handle, 1)
    assert {gpu["requested_memory_mode"] for gpu in node.describe(root)["gpus"]} == {"NPS4"}


def test_a_reload_returns_compute_to_automatic(install: Install) -> None:
    """A reload without a new memory mode brings the compute mode back to the automatic one."""
    smi = install("mi300xx2")
    set_compute(smi, smi.amdsmi_get_processor_handles()[0], "QPX")
    reopen(smi)
    smi.amdsmi_gpu_driver_reload()
    assert len(reopen(smi)) == 2


def test_handles_are_invalid_after_a_change(install: Install) -> None:
    """After a change every earlier handle is refused, until the library is opened again."""
    smi = install("mi300xx2")
    before = smi.amdsmi_get_processor_handles()
    set_compute(smi, before[0], "DPX")
    for handle in before:
        assert error_code(smi, lambda handle=handle: smi.amdsmi_get_gpu_device_bdf(handle)) == 31
    assert len(reopen(smi)) == 3


def test_a_used_gpu_is_busy(install: Install, root: Path) -> None:
    """A GPU that a process uses refuses another compute mode, and the driver refuses to be reloaded."""
    smi = install("mi300xx2")
    handles = smi.amdsmi_get_processor_handles()
    node.hold(root, 0, os.getpid())
    assert error_code(smi, lambda: set_compute(smi, handles[0], "CPX")) == 30
    assert error_code(smi, smi.amdsmi_gpu_driver_reload) == 54
    assert [p["pid"] for p in smi.amdsmi_get_gpu_process_list(handles[0])] == [os.getpid()]
    set_compute(smi, handles[1], "CPX")
    node.hold(root, 0, None)
    set_compute(smi, reopen(smi)[0], "CPX")
    assert len(reopen(smi)) == 16


def test_compute_before_memory_makes_the_reload_fail(install: Install) -> None:
    """A compute change leaves handles open; a reload in the same session fails, in the next one succeeds."""
    smi = install("mi300xx1")
    set_compute(smi, smi.amdsmi_get_processor_handles()[0], "CPX")
    assert error_code(smi, smi.amdsmi_gpu_driver_reload) == 54
    reopen(smi)
    smi.amdsmi_gpu_driver_reload()


def test_a_failing_reload_changes_nothing_and_a_losing_one_unloads(install: Install, root: Path) -> None:
    """Injected faults: the reload fails with the driver as it was, or the driver is gone until it is loaded."""
    smi = install("mi300xx1")
    node.set_fault(root, "failing_reloads", 1)
    set_memory(smi, smi.amdsmi_get_processor_handles()[0], 4)
    assert error_code(smi, smi.amdsmi_gpu_driver_reload) == 54
    assert len(reopen(smi)) == 1
    node.set_fault(root, "losing_reloads", 1)
    assert error_code(smi, smi.amdsmi_gpu_driver_reload) == 54
    assert not (root / "sys/module/amdgpu").exists()
    assert not (root / "dev/kfd").exists()
    smi.amdsmi_shut_down()
    assert error_code(smi, smi.amdsmi_init) == 34
    node.load_driver(root)
    smi.amdsmi_init()
    assert len(smi.amdsmi_get_processor_handles()) == 8, "the recorded NPS4 took effect when the driver was loaded"


def test_a_torn_write_leaves_the_older_state(install: Install, root: Path) -> None:
    """A state whose newest copy was torn by a kill is read from the other copy, and the tree follows it."""
    smi = install("mi300xx1")
    set_compute(smi, smi.amdsmi_get_processor_handles()[0], "CPX")
    path = root / state.STATE
    data = bytearray(path.read_bytes())
    half = len(data) // 2
    newest = state.read(root).sequence & 1
    data[newest * half + 100] ^= 0xFF
    path.write_bytes(data)
    handles = reopen(smi)
    assert len(handles) == 8
    mode = root / "sys/bus/pci/devices/0000:05:00.0/current_compute_partition"
    assert mode.read_text() == "CPX\n"


def test_both_views_agree_after_an_interrupted_drawing(install: Install, root: Path) -> None:
    """A tree that a kill left half drawn is finished by the next caller of the library."""
    smi = install("mi300xx1")
    with state.change(root) as changed:
        changed.gpus[0].compute_mode = state.COMPUTE_MODES.index("DPX")
        changed.topology += 1
    raw = bytearray((root / state.STATE).read_bytes())
    half = len(raw) // 2
    newest = state.read(root).sequence & 1
    raw[newest * half : (newest + 1) * half] = bytes(half)
    (root / state.STATE).write_bytes(raw)
    mode = root / "sys/bus/pci/devices/0000:05:00.0/current_compute_partition"
    mode.write_text("SPX\n")
    assert len(reopen(smi)) == 2
    assert mode.read_text() == "DPX\n"


def test_a_reboot_forgets_modes_and_renumbers(install: Install, root: Path) -> None:
    """After a reboot the modes are those of a fresh node, and minors and majors may be others."""
    smi = install("mi300xx2")
    node.set_modes(root, "CPX", 4)
    reopen(smi)
    node.reboot(root, first_card=0, kfd_major=509)
    handles = reopen(smi)
    assert [smi.amdsmi_get_gpu_enumeration_info(h)["drm_card"] for h in handles] == [0, 8]
    assert (root / "sys/class/kfd/kfd/dev").read_text() == "509:0\n"
    assert not (root / "dev/dri/card17").exists()


@pytest.mark.parametrize(("version", "distinct"), [("6.12.12", 1), ("6.16.6", 8)])
def test_unique_ids_of_partitions_depend_on_the_driver(
    install: Install, root: Path, version: str, distinct: int
) -> None:
    """Up to ROCm 6 all partitions of a GPU have one unique_id; from driver 6.16 on each has its own."""
    install("mi300xx1", driver_version=version)
    node.set_modes(root, "CPX", 1)
    nodes = (root / "sys/class/kfd/kfd/topology/nodes").glob("*/properties")
    lines = [line for path in nodes for line in path.read_text().splitlines() if line.startswith("unique_id ")]
    assert len(set(lines) - {"unique_id 0"}) == distinct
