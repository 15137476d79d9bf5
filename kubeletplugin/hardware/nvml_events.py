"""Critical XIDs, waited for in a thread of its own beside a session that another thread ends and opens again."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import pynvml

LOST_CODES: Final = frozenset(
    {pynvml.NVML_ERROR_GPU_IS_LOST, pynvml.NVML_ERROR_RESET_REQUIRED, pynvml.NVML_ERROR_GPU_NOT_FOUND}
)
_EVENT_WAIT_MS: Final = 500  # also how long the end of a session may have to wait
_PAUSE_S: Final = 0.2  # between two event sets: long enough to let in who calls the watching thread out
_LOST_PAUSE_S: Final = 1.0
_LOST_XID: Final = 79  # "GPU has fallen off the bus", NVIDIA's XID catalogue


class EventWatcher:
    """`handles` by GPU UUID, kept current by the thread that owns the session."""

    def __init__(self, handles: Mapping[str, Any]) -> None:
        self._handles = handles
        self._inside = threading.Lock()
        """Held by the watching thread while it is inside the library."""
        self._called_out = False

    @contextmanager
    def outside(self) -> Iterator[None]:
        """Keep the watching thread out of the library: a session must not end under a thread that waits in it."""
        self._called_out = True
        with self._inside:
            self._called_out = False
            yield

    def watch(self, on_event: Callable[[str, int], None], stopped: Callable[[], bool]) -> None:
        """Block until `stopped()`; over any number of sessions, and whichever GPUs are lost."""
        while not stopped():
            pause_s = _PAUSE_S
            with self._inside:
                try:
                    self._watch_once(on_event, lambda: stopped() or self._called_out)
                except pynvml.NVMLError as error:
                    # Without a session there is nothing to wait on until the other thread opens one.
                    if error.value in LOST_CODES:
                        pause_s = _LOST_PAUSE_S
                        for uuid in self._find_lost():
                            on_event(uuid, _LOST_XID)
            time.sleep(pause_s)

    def _watch_once(self, on_event: Callable[[str, int], None], stopped: Callable[[], bool]) -> None:
        events = pynvml.nvmlEventSetCreate()
        try:
            registered: set[str] = set()
            while not stopped():
                for uuid, handle in [*self._handles.items()]:
                    if uuid not in registered:
                        registered.add(uuid)
                        if not _register(handle, events):
                            on_event(uuid, _LOST_XID)
                try:
                    event = pynvml.nvmlEventSetWait_v2(events, _EVENT_WAIT_MS)
                except pynvml.NVMLError_Timeout:
                    continue
                on_event(str(pynvml.nvmlDeviceGetUUID(event.device)), int(event.eventData))
        finally:
            _free(events)

    def _find_lost(self) -> list[str]:
        lost = []
        for uuid, handle in [*self._handles.items()]:
            try:
                pynvml.nvmlDeviceGetMigMode(handle)
            except pynvml.NVMLError as error:
                if error.value in LOST_CODES:
                    lost.append(uuid)
        return lost


def _register(handle: Any, events: Any) -> bool:
    """False where the GPU is lost, which must not keep the others from being watched."""
    try:
        pynvml.nvmlDeviceRegisterEvents(handle, pynvml.nvmlEventTypeXidCriticalError, events)
    except pynvml.NVMLError_NotSupported:
        return True  # this GPU reports no XIDs; it is watched by the inventory alone
    except pynvml.NVMLError as error:
        if error.value not in LOST_CODES:
            raise
        return False
    return True


def _free(events: Any) -> None:
    try:
        pynvml.nvmlEventSetFree(events)
    except pynvml.NVMLError_Uninitialized:
        return  # went with the session
