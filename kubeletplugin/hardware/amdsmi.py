"""AMD GPUs of this node, through `amdsmi`, AMD's own binding of AMD SMI, and sysfs.

`amdsmi` is imported when AMD hardware is there, and never before: it takes memory, and without its library its import
fails. Handles are invalid after every change, so nothing is kept from one call to the next.
"""

import importlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final, Protocol, TypeVar, assert_never

from api.errors import HardwareError
from kubeletplugin.hardware.amd_module import load_module, reload_module
from kubeletplugin.hardware.amd_offers import (
    Asked,
    GpuKey,
    LibraryFile,
    look_at_library,
    partitionable,
    without_library,
)
from kubeletplugin.hardware.amd_sysfs import (
    COMPUTE_MODES,
    AmdRoot,
    Offers,
    read_inventory,
    with_offers,
    without_changes,
)
from kubeletplugin.hardware.backend import DeviceBusy, LibraryMissing, NotPermitted
from kubeletplugin.model.amd_partitions import AmdInventory, Mode, ModeOffer
from kubeletplugin.model.amd_prepare import AmdStep, ReloadDriver, SetComputeMode, SetMemoryMode
from kubeletplugin.model.cdi import DeviceNode

log = logging.getLogger(__name__)

T = TypeVar("T")

BUSY_TRIES: Final = 3
BUSY_PAUSE_S: Final = 1.0


class ModeRefused(HardwareError):
    """The hardware does not have the mode, or not from where it is now."""

    reason = "ModeRefused"


# amdsmi_status_t (amd_smi/amdsmi.h)
_NOT_SUPPORTED: Final = 2
_NO_PERMISSION: Final = 10
_ERRORS: Final[dict[int, tuple[type[HardwareError], str]]] = {
    1: (ModeRefused, "the GPU does not know this mode"),
    _NOT_SUPPORTED: (ModeRefused, "the GPU cannot be partitioned, or not so"),
    _NO_PERMISSION: (NotPermitted, "AMD SMI needs root"),
    30: (DeviceBusy, "a process uses the GPU; monitoring agents that hold /dev/kfd are the usual cause"),
    31: (DeviceBusy, "the GPUs were changed by somebody else meanwhile"),  # a handle of before the change
    34: (LibraryMissing, "the amdgpu driver is not loaded"),
    54: (DeviceBusy, "the amdgpu driver could not be loaded again, usually because a process uses it"),
    55: (ModeRefused, "the GPU does not have this mode, or not under its memory mode"),
}


class AmdBackend(Protocol):
    """AMD GPUs of this node."""

    def read_inventory(self) -> AmdInventory:
        """Everything, freshly read. Raises LibraryMissing where amdgpu drives nothing."""

    def read_device_nodes(self, paths: Iterable[str]) -> dict[str, DeviceNode]:
        """Those of them that there are, by path in containers (`/dev/kfd`)."""

    def apply_step(self, step: AmdStep) -> None:
        """Do one step, unless it is done. Raises DeviceBusy, ModeRefused, NotPermitted, HardwareError."""

    def load_driver(self) -> None:
        """Load amdgpu, which a reload has left unloaded. Raises HardwareError."""


class AmdSmi:
    """`AmdBackend` by the vendor's library."""

    def __init__(
        self,
        root: AmdRoot,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._root, self._sleep, self._clock = root, sleep, clock
        self._lock = threading.Lock()  # AMD: no concurrent partition operations
        self._asked = Asked()

    def read_inventory(self) -> AmdInventory:
        with self._lock:
            if not self._root.has_gpus():
                raise LibraryMissing(f"no GPU is driven by amdgpu under {self._root.sys}")
            found = read_inventory(self._root, self._sleep)
            gpus, library = partitionable(found), look_at_library(self._root.library)
            if self._asked.is_due(gpus, library, self._clock()):
                self._asked = self._ask(gpus, library)
            return with_offers(found, self._asked.offers) if self._asked.has_library else without_changes(found)

    def _ask(self, gpus: frozenset[GpuKey], library: LibraryFile | None) -> Asked:
        """What modes these GPUs can be brought into; on a node without ROCm they stay in those that they are in."""
        try:
            self._load()
        except LibraryMissing as error:
            log.warning("amd_smi_missing", extra={"note": f"{error}; modes are read from sysfs and stay as they are"})
            return without_library(gpus, library)
        return self._asked.answered(gpus, self._while_busy(self._read_offers), library, self._clock())

    def read_device_nodes(self, paths: Iterable[str]) -> dict[str, DeviceNode]:
        return self._root.device_nodes(paths)

    def apply_step(self, step: AmdStep) -> None:
        with self._lock:
            match step:
                case SetMemoryMode():
                    self._set_memory(step)
                case ReloadDriver():
                    self._reload(step)
                case SetComputeMode():
                    self._while_busy(lambda: self._set_compute(step))
                case _:
                    assert_never(step)

    def load_driver(self) -> None:
        with self._lock:
            load_module(self._root)

    def _read_offers(self) -> Offers:
        """By GPU its modes under every memory mode; none where the library will not tell."""
        offers: dict[str, tuple[ModeOffer, ...]] = {}
        with self._session() as smi:
            for number, handle in enumerate(smi.amdsmi_get_processor_handles()):
                try:
                    if smi.amdsmi_get_gpu_kfd_info(handle)["current_partition_id"] == 0:
                        offers[smi.amdsmi_get_gpu_device_bdf(handle)] = _read_modes(smi, handle)
                except smi.AmdSmiLibraryException as error:
                    # The others serve; this one is asked again.
                    log.warning("gpu_not_asked", extra={"number": number, "error": str(_translate(error))})
        return offers

    def _set_memory(self, step: SetMemoryMode) -> None:
        with self._session() as smi:
            handle = _primary(smi, step.gpu_uuid)
            if smi.amdsmi_get_gpu_memory_partition(handle) != step.memory_mode:
                smi.amdsmi_set_gpu_memory_partition(handle, smi.AmdSmiMemoryPartitionType[step.memory_mode])

    def _reload(self, step: ReloadDriver) -> None:
        with self._session() as smi:
            if all(smi.amdsmi_get_gpu_memory_partition(_primary(smi, pci)) == step.memory_mode for pci in step.gpus):
                return
        try:
            reload_module(self._root)
        except HardwareError as error:
            # Nor can it be taken back: the kernel ignores a request for the mode that the GPUs are in.
            pending = f"memory mode {step.memory_mode} stays asked for, and comes with the next load of amdgpu"
            raise type(error)(f"{error}; {pending}") from error
        with self._session() as smi:
            for pci in step.gpus:
                memory = smi.amdsmi_get_gpu_memory_partition(_primary(smi, pci))
                if memory != step.memory_mode:
                    raise ModeRefused(f"GPU {pci} is in {memory} after the reload; asked for was {step.memory_mode}")

    def _while_busy(self, work: Callable[[], T]) -> T:
        """What uses a GPU for a moment, or changes it, is waited for."""
        for _ in range(BUSY_TRIES - 1):
            try:
                return work()
            except DeviceBusy:
                self._sleep(BUSY_PAUSE_S)
        return work()

    def _set_compute(self, step: SetComputeMode) -> None:
        with self._session() as smi:
            handle = _primary(smi, step.gpu_uuid)
            memory = smi.amdsmi_get_gpu_memory_partition(handle)
            if memory != step.mode.memory:
                raise ModeRefused(f"GPU {step.gpu_uuid} is in memory mode {memory}; {step.mode.profile} needs another")
            if smi.amdsmi_get_gpu_compute_partition(handle) != step.mode.compute:
                smi.amdsmi_set_gpu_compute_partition(handle, smi.AmdSmiComputePartitionType[step.mode.compute])

    @contextmanager
    def _session(self) -> Iterator[Any]:
        """The library, opened for one enumeration; its errors become ours."""
        smi = self._load()
        try:
            smi.amdsmi_init(smi.AmdSmiInitFlags.INIT_AMD_GPUS)
            try:
                yield smi
            finally:
                smi.amdsmi_shut_down()
        except smi.AmdSmiLibraryException as error:
            raise _translate(error) from error

    def _load(self) -> Any:
        folder = self._root.library_folder
        if self._root.library.exists():
            os.environ["ROCM_PATH"] = str(folder.parent)  # amdsmi looks nowhere else first
        try:
            return importlib.import_module("amdsmi")
        except (KeyError, AttributeError, OSError) as error:
            # Without a library its import ends with KeyError, with one that lacks a function with AttributeError.
            raise LibraryMissing(f"AMD SMI cannot be loaded (looked in {folder}): {error!r}") from error


def _read_modes(smi: Any, handle: Any) -> tuple[ModeOffer, ...]:
    """Empty where the library will not tell. Raises AmdSmiLibraryException."""
    try:
        config = smi.amdsmi_get_gpu_accelerator_partition_profile_config(handle)
        can_switch = "N/A" not in smi.amdsmi_get_gpu_memory_partition_config(handle)["partition_caps"]
    except smi.AmdSmiLibraryException as error:
        if error.get_error_code() in (_NOT_SUPPORTED, _NO_PERMISSION):
            return ()
        raise
    return tuple(
        ModeOffer(Mode(profile["profile_type"], memory), profile["num_partitions"])
        for profile in config["profiles"]
        for memory in profile["memory_caps"]
        if can_switch and memory != "N/A" and profile["profile_type"] in COMPUTE_MODES
    )


def _primary(smi: Any, pci_address: str) -> Any:
    """Handle of the GPU's first partition, the only one that modes can be asked of."""
    for handle in smi.amdsmi_get_processor_handles():
        if smi.amdsmi_get_gpu_device_bdf(handle) == pci_address:
            return handle
    raise HardwareError(f"AMD SMI knows no GPU {pci_address}")


def _translate(error: Any) -> HardwareError:
    code, info = error.get_error_code(), str(error.get_error_info())
    kind, meaning = _ERRORS.get(code, (HardwareError, "AMD SMI failed"))
    return kind(f"{meaning}: {info} ({code})")
