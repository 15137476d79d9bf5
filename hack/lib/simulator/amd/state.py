"""The state file of the simulation, through the library that owns it; layout as in `src/state.h`."""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

LIBRARY: Final = Path("opt/rocm/lib/libamd_smi.so")
STATE: Final = LIBRARY.with_name("amd-simulator.state")
MAX_GPUS: Final = 16
COMPUTE_MODES: Final = ("", "SPX", "DPX", "TPX", "QPX", "CPX")
UNNAMED_HOLDER: Final = -1


class Gpu(ctypes.Structure):
    _fields_ = (
        ("bdf", ctypes.c_char * 16),
        ("pcie_root", ctypes.c_char * 16),
        ("product", ctypes.c_char * 64),
        ("vram_bytes", ctypes.c_uint64),
        ("unique_id", ctypes.c_uint64),
        ("hive_id", ctypes.c_uint64),
        ("device_id", ctypes.c_uint32),
        ("gfx_version", ctypes.c_uint32),
        ("xcc_count", ctypes.c_uint32),
        ("compute_units", ctypes.c_uint32),
        ("max_clock_mhz", ctypes.c_uint32),
        ("numa_node", ctypes.c_uint32),
        ("memory_modes", ctypes.c_uint32),
        ("two_io_dies", ctypes.c_uint32),
        ("apu", ctypes.c_uint32),
        ("compute_mode", ctypes.c_uint32),
        ("memory_mode", ctypes.c_uint32),
        ("requested_memory_mode", ctypes.c_uint32),
        ("card", ctypes.c_uint32),
        ("render", ctypes.c_uint32),
        ("holder", ctypes.c_int32),
        ("reserved", ctypes.c_uint32),
    )


class State(ctypes.Structure):
    _fields_ = (
        ("magic", ctypes.c_uint64),
        ("sequence", ctypes.c_uint64),
        ("rendered", ctypes.c_uint64),
        ("topology", ctypes.c_uint64),
        ("driver_version", ctypes.c_char * 32),
        ("source_version", ctypes.c_char * 32),
        ("driver_loaded", ctypes.c_uint32),
        ("gpu_count", ctypes.c_uint32),
        ("cpu_nodes", ctypes.c_uint32),
        ("kfd_major", ctypes.c_uint32),
        ("distinct_ids", ctypes.c_uint32),
        ("failing_reloads", ctypes.c_uint32),
        ("losing_reloads", ctypes.c_uint32),
        ("change_pause_ms", ctypes.c_uint32),
        ("reload_pause_ms", ctypes.c_uint32),
        ("dotted_xcp", ctypes.c_uint32),
        ("kfd_links", ctypes.c_uint32),
        ("reserved", ctypes.c_uint32),
        ("loading", ctypes.c_uint32),
        ("drawn_topology", ctypes.c_uint64),
        ("gpus", Gpu * MAX_GPUS),
        ("checksum", ctypes.c_uint64),
    )

    def installed(self) -> list[Gpu]:
        return [self.gpus[index] for index in range(self.gpu_count)]


def _library(root: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str((root / LIBRARY).resolve()))
    library.simulator_state_size.restype = ctypes.c_size_t
    if library.simulator_state_size() != ctypes.sizeof(State):
        raise RuntimeError(f"{root / LIBRARY} was built from another state.h than this program expects; install again")
    return library


def _check(failed: int, root: Path) -> None:
    if failed:
        raise OSError(failed, os.strerror(failed), str(root / STATE))


def create(root: Path, state: State) -> None:
    """Write the first state and draw it. Handles that a process holds from before are invalid after."""
    (root / STATE).touch()
    _check(_library(root).simulator_create(ctypes.byref(state)), root)


@contextmanager
def change(root: Path) -> Iterator[State]:
    """The state, locked; what the block changed is stored and drawn, unless it raises."""
    library, state = _library(root), State()
    _check(library.simulator_lock(ctypes.byref(state)), root)
    try:
        yield state
    except BaseException:
        library.simulator_release(None)
        raise
    _check(library.simulator_release(ctypes.byref(state)), root)


def read(root: Path) -> State:
    library, state = _library(root), State()
    _check(library.simulator_lock(ctypes.byref(state)), root)
    library.simulator_release(None)
    return state
