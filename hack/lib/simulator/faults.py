"""`simulator inject`, `reset` and `reboot`: what can happen to hardware, on demand."""

import argparse
import shutil
from pathlib import Path
from typing import Any

from simulator.compile import set_latencies
from simulator.layout import (
    ALWAYS,
    MAX_FAULTS,
    MAX_PROCESSES,
    WHOLE_GPU,
    Changing,
    Fault,
    Gpu,
    State,
    add_event,
    changed,
    open_state,
)
from simulator.show import state_file
from simulator.tree import FIRST_GPU_MINOR, MINORS_PER_GPU, show_device

XID_EVENT = 0x8  # nvml.h nvmlEventTypeXidCriticalError
XID_GPU_LOST = 79  # "GPU has fallen off the bus"
IMEX_FAULTS = ("hang", "die", "degraded", "ignore-sigterm", "slow", "slow-domain")
"""What `imex/internal/imex/faults.go` knows."""
PROCESS_TYPES = {"C": 0, "G": 1, "M+C": 2}
"""As nvidia-smi names them -> `state.h` PROCESS_*: compute, graphics, compute through MPS."""
FABRIC_STATES = {"not-supported": 0, "not-started": 1, "in-progress": 2, "completed": 3}
ERRORS = {
    "uninitialized": 1,
    "invalid-argument": 2,
    "not-supported": 3,
    "no-permission": 4,
    "not-found": 6,
    "timeout": 10,
    "gpu-is-lost": 15,
    "reset-required": 16,
    "in-use": 19,
    "memory": 20,
    "insufficient-resources": 23,
    "not-ready": 27,
    "unknown": 999,
}
"""nvml.h nvmlReturn_t"""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="simulator inject", description="Makes simulated hardware misbehave.")
    parser.add_argument("--root", type=Path, required=True)
    kinds = parser.add_subparsers(dest="kind", required=True)
    _add_gpu_faults(kinds)
    _add_fabric_faults(kinds)
    _add_call_faults(kinds)
    return parser


def _add_gpu_faults(kinds: Any) -> None:
    xid = kinds.add_parser("xid", help="a critical error, seen by every process that waits for events")
    xid.add_argument("--xid", type=int, required=True)
    lost = kinds.add_parser("lost", help="the GPU falls off the bus (XID 79); every call on it fails")
    absent = kinds.add_parser(
        "absent", help="the GPU is not in the machine; clients that start from now on do not see it"
    )
    in_use = kinds.add_parser("in-use", help="a process uses the GPU or an instance")
    in_use.add_argument("--pid", type=int, default=4242)
    in_use.add_argument("--memory-mib", type=int, default=512)
    in_use.add_argument("--type", choices=PROCESS_TYPES, default="C", help="as nvidia-smi shows it (default: C)")
    for kind in (xid, lost, absent, in_use):
        kind.add_argument("--gpu", type=int, required=True, help="minor number")
    for kind in (xid, in_use):
        kind.add_argument("--gi", type=int, default=WHOLE_GPU, help="GPU instance id (default: the whole GPU)")
        kind.add_argument("--ci", type=int, default=WHOLE_GPU)
    for kind in (lost, absent, in_use):
        kind.add_argument("--off", action="store_true", help="end it")


def _add_fabric_faults(kinds: Any) -> None:
    fabric = kinds.add_parser("fabric", help="state of the NVLink fabric")
    fabric.add_argument("--state", choices=FABRIC_STATES)
    fabric.add_argument("--status", type=int, help="NVML code of the registration")
    fabric.add_argument("--clique", type=int)
    fabric.add_argument("--health-mask", type=lambda text: int(text, 0))
    fabric.add_argument("--health-summary", type=int, help="1 healthy, 2 unhealthy, 3 limited")
    fabric.add_argument("--gpu", type=int, help="minor number (default: all)")
    imex = kinds.add_parser("imex", help="nvidia-imex of this node misbehaves, in every pod, until --off")
    imex.add_argument("fault", choices=IMEX_FAULTS)
    imex.add_argument(
        "--ms",
        type=float,
        default=10_000,
        help="slow: from start to READY; slow-domain: before an answer for the domain (default 10000)",
    )
    imex.add_argument("--off", action="store_true", help="end it")


def _add_call_faults(kinds: Any) -> None:
    kinds.add_parser("none", help="calls work again; instances and modes stay as they are")
    fail = kinds.add_parser("fail", help="calls of a function fail")
    fail.add_argument("--code", required=True, help=f"{', '.join(ERRORS)}, or a number")
    slow = kinds.add_parser("slow", help="calls of a function take longer")
    for kind in (fail, slow):
        kind.add_argument(
            "function", help="e.g. nvmlDeviceCreateGpuInstanceWithPlacement; version suffixes do not matter"
        )
        kind.add_argument("--ms", type=float, default=0, required=kind is slow)
        kind.add_argument("--nth", type=int, default=1, help="the first call that is hit, from now on (default 1)")
        kind.add_argument("--times", type=int, help="how many calls are hit (fail: 1, slow: all)")


def inject(arguments: list[str]) -> int:
    options = build_parser().parse_args(arguments)
    with open_state(state_file(options.root)) as state:
        if options.kind in ("fail", "slow"):
            _add_fault(state, options)
        elif options.kind == "imex":
            _set_imex_fault(state, options)
        elif options.kind == "none":
            _end_faults(state)
        elif options.kind == "fabric":
            gpus = state.gpus[: state.gpu_count] if options.gpu is None else [_find_gpu(state, options.gpu)]
            for gpu in gpus:
                _set_fabric(gpu, options)
        else:
            _afflict(state, options)
    return 0


def _find_gpu(state: State, minor: int) -> Gpu:
    gpus: list[Gpu] = state.gpus[: state.gpu_count]
    for gpu in gpus:
        if gpu.fixed.minor == minor:
            return gpu
    raise ValueError(f"GPU {minor} does not exist; this node has minors 0 to {state.gpu_count - 1}")


def _add_fault(state: State, options: argparse.Namespace) -> None:
    name = options.function
    if not name.startswith("nvml") or len(name) > 60:
        raise ValueError(f"{name!r} is not the name of an NVML function")
    code = 0
    if options.kind == "fail":
        code = int(options.code) if options.code.isdigit() else ERRORS.get(options.code.lower().replace("_", "-"), 0)
        if not code:
            raise ValueError(f"unknown code {options.code!r}: {', '.join(ERRORS)}, or a number above 0")
    fault = _free_fault(state)
    fault.skip, fault.code, fault.delay_us = options.nth - 1, code, int(options.ms * 1000)
    fault.remaining = options.times or (1 if options.kind == "fail" else ALWAYS)
    fault.function = name.encode()
    state.fault_count += 1


def _free_fault(state: State) -> Fault:
    free: Fault | None = next((fault for fault in state.faults if not fault.function), None)
    if free is None:
        raise ValueError(f"{MAX_FAULTS} faults are set already; `simulator inject none` removes them")
    return free


def _set_imex_fault(state: State, options: argparse.Namespace) -> None:
    name = f"imex-{options.fault}".encode()
    same = next((fault for fault in state.faults if fault.function == name), None)
    if options.off:
        if same is not None:
            same.function = b""
        return
    fault = same or _free_fault(state)
    fault.skip, fault.remaining, fault.delay_us = 0, ALWAYS, int(options.ms * 1000)
    fault.function = name


def _set_fabric(gpu: Gpu, options: argparse.Namespace) -> None:
    with changed(gpu) as now:
        if options.state:
            now.fabric_state = FABRIC_STATES[options.state]
        for name in ("status", "clique", "health_mask", "health_summary"):
            value = getattr(options, name)
            if value is not None:
                setattr(now, f"fabric_{name}", value)


def _afflict(state: State, options: argparse.Namespace) -> None:
    gpu = _find_gpu(state, options.gpu)
    position = next(index for index in range(state.gpu_count) if state.gpus[index].fixed.minor == options.gpu)
    if options.kind == "xid":
        add_event(state, position, XID_EVENT, options.xid, options.gi, options.ci)
        return
    with changed(gpu) as now:
        if options.kind == "lost":
            now.lost = 0 if options.off else 1
        elif options.kind == "absent":
            now.absent = 0 if options.off else 1
            show_device(options.root, gpu.fixed, present=options.off)
        else:
            _set_process(now, options)
    if options.kind == "lost" and not options.off:
        add_event(state, position, XID_EVENT, XID_GPU_LOST, WHOLE_GPU, WHOLE_GPU)


def _set_process(now: Changing, options: argparse.Namespace) -> None:
    kept = [bytes(process) for process in now.processes[: now.process_count]]
    kept = [raw for raw in kept if not _same_place(raw, options)]
    if not options.off:
        if len(kept) == MAX_PROCESSES:
            raise ValueError(f"{MAX_PROCESSES} processes run on GPU {options.gpu} already; end one with --off")
        where, kind = (options.gi, options.ci), PROCESS_TYPES[options.type]
        kept.append(bytes(type(now.processes[0])(options.pid, *where, kind, options.memory_mib << 20)))
    now.process_count = len(kept)
    for index, raw in enumerate(kept):
        now.processes[index] = type(now.processes[0]).from_buffer_copy(raw)


def _same_place(raw: bytes, options: argparse.Namespace) -> bool:
    pid, gpu_instance, compute_instance = (int.from_bytes(raw[at : at + 4], "little") for at in (0, 4, 8))
    return (pid, gpu_instance, compute_instance) == (options.pid, options.gi, options.ci)


def reset(arguments: list[str]) -> int:
    """A GPU reset: what ran is gone, instances are gone, a pending mode takes effect; without --gpu faults end too."""
    parser = argparse.ArgumentParser(prog="simulator reset", description=reset.__doc__)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--gpu", type=int, help="minor number (default: every GPU, and all faults end)")
    options = parser.parse_args(arguments)
    with open_state(state_file(options.root)) as state:
        gpus = list(state.gpus[: state.gpu_count]) if options.gpu is None else [_find_gpu(state, options.gpu)]
        for gpu in gpus:
            _restart(options.root, gpu, reboot=False)
        if options.gpu is None:
            _end_faults(state)
    return 0


def reboot(arguments: list[str]) -> int:
    """The node starts again: no instance is left; MIG mode stays where the GPU keeps it (Ampere), else it is off."""
    parser = argparse.ArgumentParser(prog="simulator reboot", description=reboot.__doc__)
    parser.add_argument("--root", type=Path, required=True)
    options = parser.parse_args(arguments)
    with open_state(state_file(options.root)) as state:
        for gpu in state.gpus[: state.gpu_count]:
            _restart(options.root, gpu, reboot=True)
        _end_faults(state)
    return 0


def _restart(root: Path, gpu: Gpu, *, reboot: bool) -> None:
    hide_instances(root, gpu.fixed.minor)
    with changed(gpu) as now:
        for instance in now.instances:
            instance.used = 0
            for compute in instance.compute:
                compute.used = 0
        mode = now.mig_pending if gpu.fixed.mode_survives_reboot or not reboot else 0
        now.mig_current = now.mig_pending = mode
        now.lost = now.process_count = now.timeslice = now.compute_mode = 0
        now.persistence = 0 if reboot else now.persistence
    gpu.in_tree = gpu.generation


def hide_instances(root: Path, minor: int) -> None:
    """Takes every instance of a GPU out of /proc and /dev, as the library does one by one."""
    for folder in (root / f"proc/driver/nvidia/capabilities/gpu{minor}/mig").glob("gi*"):
        shutil.rmtree(folder)
    first = FIRST_GPU_MINOR + MINORS_PER_GPU * minor
    for number in range(first, first + MINORS_PER_GPU):
        (root / f"dev/nvidia-caps/nvidia-cap{number}").unlink(missing_ok=True)


def _end_faults(state: State) -> None:
    state.fault_count = 0
    for fault in state.faults:
        fault.function = b""
        fault.skip = fault.code = 0
    set_latencies(state)
