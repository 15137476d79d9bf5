"""What `hack/simulator` does with AMD GPUs: install, show, faults, reboot."""

import shutil
from pathlib import Path
from typing import Any, Final, Literal

from simulator.amd import build
from simulator.amd import state as store
from simulator.amd.models import BUSES, Model, parse_profile
from simulator.files import remove, write_bytes

Fault = Literal["failing_reloads", "losing_reloads", "change_pause_ms", "reload_pause_ms"]
_SHOWN: Final = (
    "dev/dri",
    "dev/kfd",
    "sys/module/amdgpu",
    "sys/bus/pci/drivers/amdgpu",
    "sys/class/drm",
    "sys/class/kfd",
    "sys/devices/virtual/kfd",
    "sys/devices/platform",
)
"""What amdgpu shows; other vendors' hardware in the same tree stays."""
MODPROBE: Final = Path("usr/sbin/modprobe")
FIRST_HIVE_ID: Final = 15188982192727901047  # of a captured MI300X node
FIRST_UNIQUE_ID: Final = 16404946649897475633  # of its first GPU
DRIVER_VERSION: Final = "6.12.12"
KFD_MAJOR: Final = 511  # dynamic; the first that Linux gives out
FIRST_RENDER_MINOR: Final = 128  # DRM render nodes begin here
XCP_STRIDE: Final = 8  # minors per GPU that can partition, whatever its number of dies


def install(
    root: Path,
    profile: str,
    *,
    index: int = 0,
    driver_version: str = DRIVER_VERSION,
    dotted_xcp: bool = False,
) -> None:
    """Make `root` a node with the GPUs of `profile`. `index` tells nodes apart: ids differ between them."""
    parsed = parse_profile(profile)
    if parsed is None:
        raise ValueError(f"{profile!r} names no AMD model")
    model, count = parsed
    built = build.build()
    _put(built / build.LIBRARY, root / store.LIBRARY)
    _put(built / build.MODPROBE, root / MODPROBE)
    for shown in _SHOWN:
        remove(root / shown)
    for link in (root / "sys/bus/pci/devices").glob("*"):
        if (link / "vendor").exists() and (link / "vendor").read_text() == "0x1002\n":
            shutil.rmtree(link.resolve())
            link.unlink()
    state = _first_state(model, count, index, driver_version)
    state.dotted_xcp = dotted_xcp
    store.create(root, state)


def _put(built: Path, place: Path) -> None:
    """Where it is that already, a process that has loaded it shall not load another."""
    content = built.read_bytes()
    if not place.exists() or place.read_bytes() != content:
        write_bytes(place, content, 0o755)


def is_installed(root: Path) -> bool:
    return (root / store.STATE).exists()


def _first_state(model: Model, count: int, index: int, driver_version: str) -> store.State:
    state = store.State()
    state.driver_version = driver_version.encode()
    state.source_version = b"0F4C2B7B1B5E3A1D9C8E7F6"
    state.driver_loaded = 1
    state.gpu_count = count
    state.cpu_nodes = count if model.apu else 2
    state.kfd_major = KFD_MAJOR
    major, minor = (int(part) for part in driver_version.split(".")[:2])
    state.distinct_ids = (major, minor) >= (6, 16)
    for number in range(count):
        state.gpus[number] = _gpu(model, number, index)
    _number_minors(state, first_card=1)
    return state


def _gpu(model: Model, number: int, index: int) -> store.Gpu:
    bus = BUSES[number]
    return store.Gpu(
        bdf=f"0000:{bus:02x}:00.0".encode(),
        pcie_root=f"pci0000:{bus & 0xF0:02x}".encode(),
        product=model.product.encode(),
        vram_bytes=model.vram_bytes,
        unique_id=FIRST_UNIQUE_ID - (index << 20) - (number << 8),
        hive_id=FIRST_HIVE_ID - (index << 20) - number // model.hive_size,
        device_id=model.device_id,
        gfx_version=model.gfx_version,
        xcc_count=model.xcc_count,
        compute_units=model.compute_units,
        max_clock_mhz=model.max_clock_mhz,
        numa_node=number if model.apu else number // 4,
        memory_modes=sum(1 << mode for mode in model.memory_modes),
        two_io_dies=model.two_io_dies,
        apu=model.apu,
        compute_mode=store.COMPUTE_MODES.index("SPX") if model.xcc_count else 0,
        memory_mode=1,
    )


def _number_minors(state: store.State, first_card: int) -> None:
    next_minor = 0
    for gpu in state.installed():
        gpu.card = first_card + next_minor
        gpu.render = FIRST_RENDER_MINOR + next_minor
        next_minor += XCP_STRIDE if gpu.xcc_count else 1


def describe(root: Path) -> dict[str, Any]:
    """The truth, as plain values."""
    state = store.read(root)
    return {
        "driver": {"version": state.driver_version.decode(), "loaded": bool(state.driver_loaded)},
        "faults": {
            "failing_reloads": state.failing_reloads,
            "losing_reloads": state.losing_reloads,
            "change_pause_ms": state.change_pause_ms,
            "reload_pause_ms": state.reload_pause_ms,
        },
        "gpus": [_describe_gpu(gpu) for gpu in state.installed()],
    }


def _describe_gpu(gpu: store.Gpu) -> dict[str, Any]:
    return {
        "pci": gpu.bdf.decode(),
        "product": gpu.product.decode(),
        "compute_mode": store.COMPUTE_MODES[gpu.compute_mode] or None,
        "memory_mode": f"NPS{gpu.memory_mode}",
        "requested_memory_mode": f"NPS{gpu.requested_memory_mode}" if gpu.requested_memory_mode else None,
        "card": gpu.card,
        "render": gpu.render,
        "holder": gpu.holder or None,
    }


def hold(root: Path, number: int, pid: int | None) -> None:
    """GPU `number` has a KFD process: `pid` until it exits, 0 for one without name, None for none."""
    with store.change(root) as state:
        state.gpus[number].holder = 0 if pid is None else pid or store.UNNAMED_HOLDER


def set_fault(root: Path, name: Fault, value: int) -> None:
    with store.change(root) as state:
        setattr(state, name, value)


def show_links(root: Path) -> None:
    """KFD tells of the links between its nodes from now on, which takes seconds at every change of many partitions."""
    with store.change(root) as state:
        state.kfd_links = 1


def set_modes(root: Path, compute_mode: str, memory_mode: int) -> None:
    """As an admin sets them, on every GPU; for tests that begin in another mode than a fresh node."""
    with store.change(root) as state:
        state.topology += 1
        for gpu in state.installed():
            gpu.compute_mode = store.COMPUTE_MODES.index(compute_mode)
            gpu.memory_mode = memory_mode


def load_driver(root: Path) -> None:
    """`modprobe amdgpu`, after a reload that lost the driver."""
    with store.change(root) as state:
        state.loading = not state.driver_loaded


def reboot(root: Path, *, first_card: int = 1, kfd_major: int = KFD_MAJOR) -> None:
    """Modes return to those of a fresh node; DRM minors and KFD's major may be others than before."""
    with store.change(root) as state:
        for gpu in state.installed():
            gpu.requested_memory_mode, gpu.memory_mode, gpu.holder = 0, 1, 0
        state.driver_loaded, state.loading, state.kfd_major = 0, 1, kfd_major
    with store.change(root) as state:
        _number_minors(state, first_card)
