"""NVIDIA GPUs through `pynvml`: one long-lived session, opened again when the library loses it.

Names and error codes: nvml.h.
"""

import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, assert_never

import pynvml

from api.errors import HardwareError
from kubeletplugin.hardware.backend import DeviceBusy, DeviceLost, LibraryMissing, NotPermitted, PlacementOccupied
from kubeletplugin.hardware.mig import MigReader
from kubeletplugin.hardware.nvml_events import LOST_CODES, EventWatcher
from kubeletplugin.hardware.nvml_static import StaticGpu, read_fabric, read_static, renumber
from kubeletplugin.hardware.tree import DriverRoot
from kubeletplugin.model.inventory import Gpu, Inventory, Mig, MigInstance
from kubeletplugin.model.steps import (
    CreateMigInstance,
    DeleteMigInstance,
    DisableMig,
    EnableMig,
    HardwareStep,
    SetTimeSlice,
)

_ERRORS: Final[dict[int, type[HardwareError]]] = {
    pynvml.NVML_ERROR_LIBRARY_NOT_FOUND: LibraryMissing,
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED: LibraryMissing,
    pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: LibraryMissing,
    pynvml.NVML_ERROR_UNINITIALIZED: LibraryMissing,
    pynvml.NVML_ERROR_IN_USE: DeviceBusy,
    pynvml.NVML_ERROR_NOT_READY: DeviceBusy,
    pynvml.NVML_ERROR_INSUFFICIENT_RESOURCES: PlacementOccupied,
    **dict.fromkeys(LOST_CODES, DeviceLost),
    pynvml.NVML_ERROR_NO_PERMISSION: NotPermitted,
}
_SESSION_LOST: Final = frozenset(
    {
        pynvml.NVML_ERROR_UNINITIALIZED,
        pynvml.NVML_ERROR_DRIVER_NOT_LOADED,
        pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH,
    }
)
_NO_PROCESSES: Final = LOST_CODES | {
    pynvml.NVML_ERROR_NOT_FOUND,  # a MIG device that is gone
    pynvml.NVML_ERROR_NOT_SUPPORTED,
    pynvml.NVML_ERROR_FUNCTION_NOT_FOUND,
    pynvml.NVML_ERROR_NO_PERMISSION,
}
"""Answers that stay what they are however often one asks, and those of what no process can work on."""
_BUSY_TRIES: Final = 5
_BUSY_PAUSE_S: Final = 0.1  # a process that was just killed lets go within moments
_REOPEN_S: Final = (3.0, 60.0)  # shortest, longest: others' XIDs are missed while a session is opened again
_TIME_SLICE_TIMEOUT_S: Final = 20.0


class NvmlBackend:
    """`kubeletplugin.hardware.backend.NvidiaBackend` over NVML; a session is the process's, so have one of these."""

    def __init__(self, root: DriverRoot) -> None:
        self._root = root
        self._library: str | None = None
        self._lock = threading.RLock()
        self._handles: dict[str, Any] = {}
        self._watcher = EventWatcher(self._handles)
        self._static: dict[str, StaticGpu] = {}
        self._current: set[str] = set()
        """UUIDs of the GPUs whose `_static` is of this session, and of the MIG mode that they are in."""
        self._by_index: dict[int, str] = {}
        self._bound: frozenset[str] = frozenset()
        """The GPUs that the driver had when the session was opened."""
        self._unreachable = False
        self._reopen_delay_s = _REOPEN_S[0]
        self._reopen_at_s = 0.0

    def read_inventory(self) -> Inventory:
        with self._lock:
            self._reopen_where_due()
            inventory = self._read_all()
            self._unreachable = bool(inventory.unreadable) or any(gpu.lost for gpu in inventory.gpus)
            return inventory

    def _read_all(self) -> Inventory:
        with self._session("reading the GPUs"):
            driver_version = str(pynvml.nvmlSystemGetDriverVersion())
            cuda = pynvml.nvmlSystemGetCudaDriverVersion_v2()
            gpus: list[Gpu] = []
            unreadable: list[str] = []
            for index in range(pynvml.nvmlDeviceGetCount()):
                try:
                    gpus.append(self._read_gpu(index))
                except pynvml.NVMLError as error:
                    known = self._by_index.get(index)  # a session may count otherwise than the one before
                    if any(gpu.uuid == known for gpu in gpus):
                        known = None
                    if error.value in _SESSION_LOST:
                        raise
                    if _ERRORS.get(error.value) is DeviceLost and known in self._static:
                        gpus.append(self._static[known].lost())
                    else:
                        unreadable.append(f"GPU {index}: {error}")
        gpus.sort(key=lambda gpu: gpu.pci_bus_id)
        return Inventory(driver_version, f"{cuda // 1000}.{cuda % 1000 // 10}", tuple(gpus), tuple(unreadable))

    def read_gpu(self, uuid: str) -> Gpu:
        with self._session(f"reading GPU {uuid}"):
            return self._read_handle(self._handle(uuid), uuid)

    def apply_step(self, step: HardwareStep) -> MigInstance | None:
        with self._session(f"{type(step).__name__} on {step.gpu_uuid}"):
            handle = self._handle(step.gpu_uuid)
            match step:
                case EnableMig():
                    self._set_mig_mode(handle, step.gpu_uuid, enable=True)
                case DisableMig():
                    if not self._mig(step.gpu_uuid, handle).read_instances():
                        self._set_mig_mode(handle, step.gpu_uuid, enable=False)
                case CreateMigInstance():
                    return self._mig(step.gpu_uuid, handle).create(step.profile_id, step.placement)
                case DeleteMigInstance():
                    mig = self._mig(step.gpu_uuid, handle)
                    self._while_busy(lambda: mig.delete(step.profile_id, step.placement))
                case SetTimeSlice():
                    self._set_time_slice(handle, step)
                case _:
                    assert_never(step)
        return None

    def read_processes(self, uuid: str) -> tuple[int, ...]:
        with self._session(f"asking for the processes on {uuid}"):
            # A MIG device's handle is not kept: `_handles` are those whose events are watched.
            handle = self._handles.get(uuid) or _unless_moot(None, pynvml.nvmlDeviceGetHandleByUUID, uuid)
            if handle is None:
                return ()
            lists = (
                pynvml.nvmlDeviceGetComputeRunningProcesses_v3,
                pynvml.nvmlDeviceGetGraphicsRunningProcesses_v3,
                pynvml.nvmlDeviceGetMPSComputeRunningProcesses_v3,
            )
            return tuple(sorted({int(process.pid) for ask in lists for process in _unless_moot((), ask, handle)}))

    def watch_events(self, on_event: Callable[[str, int], None], stopped: Callable[[], bool]) -> None:
        self._watcher.watch(on_event, stopped)

    def close(self) -> None:
        with self._lock:
            if self._library is None:
                return
            with self._watcher.outside():
                self._library = None
                self._handles.clear()
                self._current.clear()
                try:
                    pynvml.nvmlShutdown()
                except pynvml.NVMLError_Uninitialized:
                    return

    # Session

    def _reopen_where_due(self) -> None:
        """A GPU that was reset, or that came since, answers a new session only."""
        if self._library is None:
            return
        now_s = time.monotonic()
        if self._root.bound_gpus() != self._bound:
            self.close()
        elif not self._unreachable:
            self._reopen_delay_s, self._reopen_at_s = _REOPEN_S[0], 0.0
        elif now_s >= self._reopen_at_s:
            self._reopen_at_s = now_s + self._reopen_delay_s
            self._reopen_delay_s = min(2 * self._reopen_delay_s, _REOPEN_S[1])
            self.close()

    def _open(self) -> None:
        path = self._root.find_library("libnvidia-ml.so.1")
        if path is None:
            raise LibraryMissing(
                f"libnvidia-ml.so.1 is in none of the library directories under {self._root.seen}; "
                "is the NVIDIA driver installed, and DRIVER_ROOT right?"
            )
        if pynvml.nvmlLib is None or getattr(pynvml.nvmlLib, "_name", None) != str(path):
            try:
                pynvml.nvmlLib = pynvml.CDLL(str(path))
            except OSError as error:
                raise LibraryMissing(f"{path} cannot be loaded: {error}") from error
            pynvml._nvmlGetFunctionPointer_cache.clear()
        self._bound = self._root.bound_gpus()
        pynvml.nvmlInitWithFlags(pynvml.NVML_INIT_FLAG_NO_GPUS)
        self._library = str(path)

    @contextmanager
    def _session(self, what: str) -> Iterator[None]:
        """Open where needed, and turn NVML's errors into ours. One thread at a time."""
        with self._lock:
            try:
                if self._library is None:
                    self._open()
                yield
            except pynvml.NVMLError as error:
                if error.value in _SESSION_LOST:
                    self.close()
                raise _ERRORS.get(error.value, HardwareError)(f"{what}: {error}") from error

    def _handle(self, uuid: str) -> Any:
        handle = self._handles.get(uuid)
        if handle is None:
            handle = self._handles[uuid] = pynvml.nvmlDeviceGetHandleByUUID(uuid)
        return handle

    # Reading

    def _read_gpu(self, index: int) -> Gpu:
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        uuid = str(pynvml.nvmlDeviceGetUUID(handle))
        self._handles[uuid] = handle
        self._by_index[index] = uuid
        return self._read_handle(handle, uuid)

    def _read_handle(self, handle: Any, uuid: str) -> Gpu:
        static = self._read_static(handle, uuid)
        mig: Mig | None = None
        if static.profiles is not None:
            enabled = pynvml.nvmlDeviceGetMigMode(handle)[0] == pynvml.NVML_DEVICE_MIG_ENABLE
            instances = self._mig(uuid, handle).read_instances() if enabled else ()
            mig = Mig(enabled, static.mode_change_needs_reset, static.profiles, instances)
        return static.gpu(mig, read_fabric(handle))

    def _read_static(self, handle: Any, uuid: str) -> StaticGpu:
        static = self._static.get(uuid)
        # A library may list no profiles while MIG is off.
        if static is None or uuid not in self._current or static.profiles == ():
            index = pynvml.nvmlDeviceGetIndex(handle)
            static = self._static[uuid] = read_static(handle, uuid, index, self._root)
            self._current.add(uuid)
        return static

    def _mig(self, uuid: str, handle: Any) -> MigReader:
        static = self._read_static(handle, uuid)
        return MigReader(handle, uuid, static.profiles or (), static.compute_slices)

    # Changing

    def _set_mig_mode(self, handle: Any, uuid: str, *, enable: bool) -> None:
        wanted = pynvml.NVML_DEVICE_MIG_ENABLE if enable else pynvml.NVML_DEVICE_MIG_DISABLE
        if pynvml.nvmlDeviceGetMigMode(handle)[0] == wanted:
            return

        def switch() -> None:
            # The call succeeds even where the mode did not change; the activation status tells.
            status = pynvml.nvmlDeviceSetMigMode(handle, wanted)
            if status != pynvml.NVML_SUCCESS:
                raise pynvml.NVMLError(status)

        self._while_busy(switch)
        self._handles.pop(uuid, None)
        self._renumber(uuid)

    def _renumber(self, uuid: str) -> None:
        """The driver may have given it another minor number; the rest of what was read in this session stays true."""
        if uuid in self._current:
            self._current.remove(uuid)  # until all of this has succeeded
            self._static[uuid] = renumber(self._static[uuid], self._handle(uuid))
            self._current.add(uuid)

    def _while_busy(self, action: Callable[[], object]) -> None:
        for _ in range(_BUSY_TRIES - 1):
            try:
                action()
                return
            except pynvml.NVMLError_InUse:
                time.sleep(_BUSY_PAUSE_S)
        action()

    def _set_time_slice(self, handle: Any, step: SetTimeSlice) -> None:
        # NVML has no call for it; nvidia-smi is the driver's own way.
        tool = self._root.find_tool("nvidia-smi")
        if tool is None:
            raise LibraryMissing(f"nvidia-smi is nowhere under {self._root.seen}; it is needed to set time-slices")
        pynvml.nvmlDeviceSetComputeMode(handle, pynvml.NVML_COMPUTEMODE_DEFAULT)
        command = [str(tool), "compute-policy", "-i", step.gpu_uuid, f"--set-timeslice={step.interval}"]
        environment = {"LD_PRELOAD": self._library or "", "PATH": "/usr/bin:/bin"}
        try:
            subprocess.run(command, env=environment, check=True, capture_output=True, timeout=_TIME_SLICE_TIMEOUT_S)
        except subprocess.SubprocessError as error:
            output = getattr(error, "stdout", None) or b""
            raise HardwareError(f"{' '.join(command)}: {error} {output.decode(errors='replace').strip()}") from error


def _unless_moot(otherwise: Any, ask: Callable[..., Any], *arguments: Any) -> Any:
    """The answer; `otherwise` where it means that there is no process."""
    try:
        return ask(*arguments)
    except pynvml.NVMLError as error:
        if error.value not in _NO_PROCESSES:
            raise
        return otherwise
