"""NVIDIA GPUs through `pynvml`: one long-lived session, opened again when the library loses it.

Names and error codes: nvml.h.
"""

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, assert_never

import pynvml

from api.errors import HardwareError
from kubeletplugin.hardware.backend import DeviceBusy, DeviceLost, LibraryMissing, NotPermitted, PlacementOccupied
from kubeletplugin.hardware.mig import MigReader
from kubeletplugin.hardware.nvml_static import StaticGpu, read_fabric, read_static
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
    pynvml.NVML_ERROR_GPU_IS_LOST: DeviceLost,
    pynvml.NVML_ERROR_RESET_REQUIRED: DeviceLost,
    pynvml.NVML_ERROR_GPU_NOT_FOUND: DeviceLost,
    pynvml.NVML_ERROR_NO_PERMISSION: NotPermitted,
}
_SESSION_LOST: Final = frozenset(
    {
        pynvml.NVML_ERROR_UNINITIALIZED,
        pynvml.NVML_ERROR_DRIVER_NOT_LOADED,
        pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH,
    }
)
_BUSY_TRIES: Final = 5
_BUSY_PAUSE_S: Final = 0.1  # a process that was just killed lets go within moments
_EVENT_WAIT_MS: Final = 1000
_LOST_XID: Final = 79  # "GPU has fallen off the bus", NVIDIA's XID catalogue
_TIME_SLICE_TIMEOUT_S: Final = 20.0


class NvmlBackend:
    """`kubeletplugin.hardware.backend.NvidiaBackend` over NVML. Not thread-safe but for `watch_events`."""

    def __init__(self, root: DriverRoot) -> None:
        self._root = root
        self._library: str | None = None
        self._handles: dict[str, Any] = {}
        self._static: dict[str, StaticGpu] = {}
        self._by_index: dict[int, str] = {}

    def read_inventory(self) -> Inventory:
        with self._session("reading the GPUs"):
            driver_version = str(pynvml.nvmlSystemGetDriverVersion())
            cuda = pynvml.nvmlSystemGetCudaDriverVersion_v2()
            gpus: list[Gpu] = []
            unreadable: list[str] = []
            for index in range(pynvml.nvmlDeviceGetCount()):
                try:
                    gpus.append(self._read_gpu(index))
                except pynvml.NVMLError as error:
                    known = self._by_index.get(index)
                    if error.value in _SESSION_LOST:
                        raise
                    if _ERRORS.get(error.value) is DeviceLost and known in self._static:
                        gpus.append(self._static[known].lost())
                    else:
                        unreadable.append(f"GPU {index}: {error}")
        if unreadable or any(gpu.lost for gpu in gpus):
            self.close()  # a GPU that was reset answers a new session only
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

    def watch_events(self, on_event: Callable[[str, int], None], stopped: Callable[[], bool]) -> None:
        while not stopped():
            try:
                self._watch_once(on_event, stopped)
            except pynvml.NVMLError as error:
                # The other thread reopens the session; until then there is nothing to wait on.
                if _ERRORS.get(error.value) is DeviceLost:
                    for uuid in self._find_lost():
                        on_event(uuid, _LOST_XID)
                time.sleep(1.0)

    def close(self) -> None:
        if self._library is None:
            return
        self._library = None
        self._handles.clear()
        try:
            pynvml.nvmlShutdown()
        except pynvml.NVMLError_Uninitialized:
            return

    # Session

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
        pynvml.nvmlInitWithFlags(pynvml.NVML_INIT_FLAG_NO_GPUS)
        self._library = str(path)

    @contextmanager
    def _session(self, what: str) -> Iterator[None]:
        """Open where needed, and turn NVML's errors into ours."""
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
        static = self._static.get(uuid)
        if static is None or static.index != index:
            self._static[uuid] = read_static(handle, uuid, index, self._root)
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
        if static is None:
            index = pynvml.nvmlDeviceGetIndex(handle)
            static = self._static[uuid] = read_static(handle, uuid, index, self._root)
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
        tool = self._root.seen / "usr/bin/nvidia-smi"
        pynvml.nvmlDeviceSetComputeMode(handle, pynvml.NVML_COMPUTEMODE_DEFAULT)
        command = [str(tool), "compute-policy", "-i", step.gpu_uuid, f"--set-timeslice={step.interval}"]
        environment = {"LD_PRELOAD": self._library or "", "PATH": "/usr/bin:/bin"}
        try:
            subprocess.run(command, env=environment, check=True, capture_output=True, timeout=_TIME_SLICE_TIMEOUT_S)
        except FileNotFoundError as error:
            raise LibraryMissing(f"{tool} is missing; it is needed to set time-slices") from error
        except subprocess.SubprocessError as error:
            output = getattr(error, "stdout", None) or b""
            raise HardwareError(f"{' '.join(command)}: {error} {output.decode(errors='replace').strip()}") from error

    # Events

    def _watch_once(self, on_event: Callable[[str, int], None], stopped: Callable[[], bool]) -> None:
        events = pynvml.nvmlEventSetCreate()
        try:
            registered: set[str] = set()
            while not stopped():
                for uuid, handle in [*self._handles.items()]:
                    if uuid not in registered:
                        registered.add(uuid)
                        self._register(handle, events)
                try:
                    event = pynvml.nvmlEventSetWait_v2(events, _EVENT_WAIT_MS)
                except pynvml.NVMLError_Timeout:
                    continue
                on_event(str(pynvml.nvmlDeviceGetUUID(event.device)), int(event.eventData))
        finally:
            _free(events)

    @staticmethod
    def _register(handle: Any, events: Any) -> None:
        try:
            pynvml.nvmlDeviceRegisterEvents(handle, pynvml.nvmlEventTypeXidCriticalError, events)
        except pynvml.NVMLError_NotSupported:
            return  # this GPU reports no XIDs; it is watched by the inventory alone

    def _find_lost(self) -> list[str]:
        lost = []
        for uuid, handle in [*self._handles.items()]:
            try:
                pynvml.nvmlDeviceGetMigMode(handle)
            except pynvml.NVMLError as error:
                if _ERRORS.get(error.value) is DeviceLost:
                    lost.append(uuid)
        return lost


def _free(events: Any) -> None:
    try:
        pynvml.nvmlEventSetFree(events)
    except pynvml.NVMLError_Uninitialized:
        return  # went with the session
