"""The binary state of a simulated node: the same structures as `native/state.h`, and the lock around changes."""

import ctypes
import fcntl
import mmap
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from simulator.files import write_bytes

STATE_OFFSET = 16384
MAGIC = b"nvidia-simulator"
LAYOUT = 1
MAX_GPUS, MAX_GPU_INSTANCES, MAX_COMPUTE_INSTANCES = 32, 15, 8
MAX_PROFILES, MAX_STARTS, MAX_PROCESSES, MAX_EVENTS, MAX_FAULTS = 20, 8, 16, 256, 32
WHOLE_GPU = 0xFFFFFFFF
ALWAYS = 0xFFFFFFFF
u32, u64, i32, char, u8 = ctypes.c_uint32, ctypes.c_uint64, ctypes.c_int32, ctypes.c_char, ctypes.c_uint8


def _numbers(names: str) -> list[tuple[str, type]]:
    return [(name, u32) for name in names.split()]


class Profile(ctypes.Structure):
    _fields_ = [
        *_numbers(
            "slot id slices max_instances multiprocessors copy_engines decoders encoders jpeg_engines ofa_engines"
        ),
        *_numbers("capabilities size start_count"),
        ("starts", u32 * MAX_STARTS),
        ("preferred", u32 * MAX_STARTS),
        ("reserved", u32),
        ("memory_mib", u64),
        ("name", char * 48),
    ]


class Fixed(ctypes.Structure):
    _fields_ = [
        ("name", char * 96),
        ("uuid", char * 80),
        ("serial", char * 32),
        ("board_part_number", char * 32),
        ("vbios", char * 32),
        ("chassis_serial", char * 16),
        *_numbers("minor module_id slot_number tray_index"),
        *_numbers("pci_domain pci_bus pci_device pci_device_id pci_subsystem_id"),
        ("numa_node", i32),
        *_numbers("architecture brand compute_major compute_minor cores multiprocessors"),
        *_numbers("copy_engines decoders encoders jpeg_engines ofa_engines"),
        *_numbers("mig_capable mode_change_needs_reset mode_survives_reboot"),
        *_numbers("memory_slices max_mig_devices profile_count"),
        *_numbers("has_fabric nvlinks nvlink_version addressing_mode"),
        *_numbers("pcie_generation pcie_width max_sm_clock_mhz max_memory_clock_mhz memory_bus_bits power_limit_mw"),
        ("memory_bytes", u64),
        ("reserved_bytes", u64),
        ("bar1_bytes", u64),
        ("profiles", Profile * MAX_PROFILES),
    ]


class ComputeInstance(ctypes.Structure):
    _fields_ = [*_numbers("used slices start profile_id"), ("uuid", char * 48)]


class GpuInstance(ctypes.Structure):
    _fields_ = [*_numbers("used profile start reserved"), ("compute", ComputeInstance * MAX_COMPUTE_INSTANCES)]


class Process(ctypes.Structure):
    _fields_ = [*_numbers("pid gpu_instance compute_instance type"), ("memory_bytes", u64)]


class Changing(ctypes.Structure):
    _fields_ = [
        *_numbers("mig_current mig_pending lost absent persistence compute_mode timeslice process_count"),
        *_numbers("fabric_state fabric_status fabric_clique fabric_health_mask fabric_health_summary reserved"),
        ("fabric_cluster", u8 * 16),
        ("processes", Process * MAX_PROCESSES),
        ("instances", GpuInstance * MAX_GPU_INSTANCES),
    ]


class Gpu(ctypes.Structure):
    _fields_ = [("fixed", Fixed), ("generation", u32), ("in_tree", u32), ("slots", Changing * 2)]

    @property
    def now(self) -> Changing:
        slot: Changing = self.slots[self.generation & 1]
        return slot


class Event(ctypes.Structure):
    _fields_ = [("type", u64), ("data", u64), *_numbers("gpu gpu_instance compute_instance reserved")]


class Fault(ctypes.Structure):
    _fields_ = [("function", char * 64), *_numbers("skip remaining code delay_us")]


class State(ctypes.Structure):
    _fields_ = [
        ("magic", char * 16),
        *_numbers("layout size gpu_count caps_major plain_nodes cuda_version fault_count event_count"),
        ("install_id", char * 40),
        ("root", char * 256),
        ("node", char * 64),
        ("spec", char * 128),
        ("driver_version", char * 32),
        ("faults", Fault * MAX_FAULTS),
        ("events", Event * MAX_EVENTS),
        ("gpus", Gpu * MAX_GPUS),
    ]


def check(state: State, path: Path) -> None:
    """Raises ValueError where `path` is not a state of this layout."""
    if state.magic != MAGIC or state.layout != LAYOUT or state.size != ctypes.sizeof(State):
        raise ValueError(f"{path} is not the state of a node simulated by this version; install again with --force")


@contextmanager
def open_state(path: Path) -> Iterator[State]:
    """The live state, locked against every client's changes."""
    with path.open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        if path.stat().st_size < STATE_OFFSET + ctypes.sizeof(State):
            raise ValueError(f"{path} is too short for the state of a simulated node; install again with --force")
        state = State.from_buffer(mmap.mmap(file.fileno(), 0), STATE_OFFSET)  # unmapped with its last reference
        check(state, path)
        yield state


@contextmanager
def changed(gpu: Gpu) -> Iterator[Changing]:
    """A GPU's next state, in force when the block ends: written aside, then switched to by one store."""
    in_tree = gpu.in_tree == gpu.generation
    following = gpu.slots[(gpu.generation + 1) & 1]
    ctypes.memmove(ctypes.byref(following), ctypes.byref(gpu.now), ctypes.sizeof(Changing))
    yield following
    gpu.generation += 1
    if in_tree:
        gpu.in_tree = gpu.generation  # callers that change instances see to the tree themselves


_FUTEX = {"x86_64": 202, "aarch64": 98}
_FUTEX_WAKE = 1


def add_event(state: State, gpu: int, kind: int, data: int, gpu_instance: int, compute_instance: int) -> None:
    """Makes an event visible and wakes every process that waits for one."""
    event = state.events[state.event_count % MAX_EVENTS]
    event.type, event.data, event.gpu = kind, data, gpu
    event.gpu_instance, event.compute_instance = gpu_instance, compute_instance
    state.event_count += 1
    number = _FUTEX.get(platform.machine())
    if number is not None:
        address = ctypes.byref(state, State.event_count.offset)
        ctypes.CDLL(None, use_errno=True).syscall(number, address, _FUTEX_WAKE, 0x7FFFFFFF, None, None, 0)


def write_new(path: Path, stub: bytes, state: State) -> None:
    """A fresh state file, in place at once: `stub` is the valid shared object that it starts with."""
    if len(stub) > STATE_OFFSET:
        raise ValueError(f"the stub of the state file is {len(stub)} bytes, more than {STATE_OFFSET}")
    write_bytes(path, stub.ljust(STATE_OFFSET, b"\0") + bytes(state), 0o644)
