"""The back-end on a library whose GPUs are lost, come and go, and change under it."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pynvml
import pytest
from nvml_node import Node

from api.errors import HardwareError
from kubeletplugin.executor import Executor
from kubeletplugin.hardware.nvml import NvmlBackend
from kubeletplugin.hardware.tree import DriverRoot
from kubeletplugin.model.inventory import Gpu, Placement
from kubeletplugin.model.steps import CreateMigInstance, DisableMig, EnableMig, SetTimeSlice

Make = Callable[[Node], NvmlBackend]


@pytest.fixture
def backend_of() -> Iterator[Make]:
    made: list[NvmlBackend] = []

    def make(node: Node) -> NvmlBackend:
        made.append(NvmlBackend(DriverRoot(str(node.root), node.root)))
        return made[-1]

    yield make
    for backend in made:
        backend.close()


@contextmanager
def watching(backend: NvmlBackend) -> Iterator[list[tuple[str, int]]]:
    """What the watching thread reports."""
    seen: list[tuple[str, int]] = []
    stop = threading.Event()
    watcher = threading.Thread(
        target=backend.watch_events, args=(lambda uuid, xid: seen.append((uuid, xid)), stop.is_set)
    )
    watcher.start()
    try:
        yield seen
    finally:
        stop.set()
        watcher.join()


def wait_for(what: Callable[[], object], patience_s: float = 10.0) -> None:
    deadline_s = time.monotonic() + patience_s
    while not what():
        assert time.monotonic() < deadline_s
        time.sleep(0.05)


def set_fixed(node: Node, field: str, value: int) -> int:
    """The old value. The state stays locked while a name is left for it."""
    with node.state() as state:
        fixed = state.gpus[0].fixed
        old = int(getattr(fixed, field))
        setattr(fixed, field, value)
    return old


def minors(backend: NvmlBackend) -> list[int]:
    return [gpu.minor for gpu in backend.read_inventory().gpus]


def profiles(gpu: Gpu) -> int:
    assert gpu.mig is not None
    return len(gpu.mig.profiles)


def test_profiles_that_could_not_be_listed_are_read_again(simulate: Callable[..., Node], backend_of: Make) -> None:
    node = simulate("h100x1")
    backend = backend_of(node)
    count = set_fixed(node, "profile_count", 0)
    (gpu,) = backend.read_inventory().gpus
    assert profiles(gpu) == 0
    set_fixed(node, "profile_count", count)
    (gpu,) = backend.read_inventory().gpus
    assert profiles(gpu) == count


@pytest.mark.parametrize("renewed", ["mode", "session"])
def test_what_a_mode_or_a_session_may_change_is_read_again(
    simulate: Callable[..., Node], backend_of: Make, renewed: str
) -> None:
    node = simulate("h100x1")
    backend = backend_of(node)
    (gpu,) = backend.read_inventory().gpus
    set_fixed(node, "minor", 5)
    assert minors(backend) == [0]
    if renewed == "mode":
        backend.apply_step(EnableMig(gpu.uuid))
    else:
        backend.close()
    assert minors(backend) == [5]


def test_a_gpu_that_is_numbered_anew_with_its_mode_is_known_by_its_new_number(
    simulate: Callable[..., Node], backend_of: Make
) -> None:
    node = simulate("h100x1")
    executor = Executor(backend_of(node))

    async def scenario() -> None:
        (gpu,) = (await executor.rescan()).gpus
        for minor, step in ((5, EnableMig(gpu.uuid)), (3, DisableMig(gpu.uuid))):
            set_fixed(node, "minor", minor)
            await executor.run((step,))
            assert [gpu.minor for gpu in executor.inventory.gpus] == [minor]

    asyncio.run(scenario())


def test_a_gpu_in_another_mode_is_described_as_a_new_session_describes_it(
    simulate: Callable[..., Node], backend_of: Make
) -> None:
    backend = backend_of(simulate("h100x1"))
    (gpu,) = backend.read_inventory().gpus
    backend.apply_step(EnableMig(gpu.uuid))
    described = backend.read_gpu(gpu.uuid)
    assert described.mig is not None
    assert described.mig.enabled
    backend.close()
    assert backend.read_gpu(gpu.uuid) == described


def test_a_gpu_that_is_taken_out_and_put_back_is_gone_and_back(simulate: Callable[..., Node], backend_of: Make) -> None:
    node = simulate("h100x2")
    backend = backend_of(node)
    assert minors(backend) == [0, 1]
    node.simulator("inject", "absent", "--gpu", "0")
    assert minors(backend) == [1]
    node.simulator("inject", "absent", "--gpu", "0", "--off")
    assert minors(backend) == [0, 1]


def test_while_a_gpu_is_lost_the_session_stays_and_xids_of_the_others_are_seen(
    simulate: Callable[..., Node], backend_of: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = simulate("h100x2")
    backend = backend_of(node)
    lost, other = (gpu.uuid for gpu in backend.read_inventory().gpus)
    ended: list[float] = []
    shut_down = pynvml.nvmlShutdown
    monkeypatch.setattr(pynvml, "nvmlShutdown", lambda: (ended.append(time.monotonic()), shut_down()))
    with watching(backend) as seen:
        node.simulator("inject", "lost", "--gpu", "0")
        for _ in range(20):
            assert [gpu.lost for gpu in backend.read_inventory().gpus] == [True, False]
            time.sleep(0.1)
        assert len(ended) == 1
        assert (lost, 79) in seen
        node.simulator("inject", "xid", "--gpu", "1", "--xid", "48")
        wait_for(lambda: (other, 48) in seen)


def test_a_lost_gpu_keeps_no_other_from_being_watched(simulate: Callable[..., Node], backend_of: Make) -> None:
    node = simulate("h100x2")
    backend = backend_of(node)
    lost, other = (gpu.uuid for gpu in backend.read_inventory().gpus)
    node.simulator("inject", "lost", "--gpu", "0")
    with watching(backend) as seen:
        wait_for(lambda: (lost, 79) in seen)
        node.simulator("inject", "xid", "--gpu", "1", "--xid", "48")
        wait_for(lambda: (other, 48) in seen)


def test_no_session_ends_under_the_thread_that_waits_in_it(
    simulate: Callable[..., Node], backend_of: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = simulate("h100x1")
    backend = backend_of(node)
    backend.read_inventory()
    waiting = threading.Event()
    waits_at_the_end: list[bool] = []
    wait, shut_down = pynvml.nvmlEventSetWait_v2, pynvml.nvmlShutdown

    def note_wait(*arguments: Any) -> Any:
        waiting.set()
        try:
            return wait(*arguments)
        finally:
            waiting.clear()

    def note_end() -> None:
        waits_at_the_end.append(waiting.is_set())
        shut_down()

    monkeypatch.setattr(pynvml, "nvmlEventSetWait_v2", note_wait)
    monkeypatch.setattr(pynvml, "nvmlShutdown", note_end)
    with watching(backend) as seen:
        for _ in range(3):
            wait_for(waiting.is_set)
            backend.close()
            (gpu,) = backend.read_inventory().gpus
        wait_for(waiting.is_set)
        node.simulator("inject", "xid", "--gpu", "0", "--xid", "48")
        wait_for(lambda: (gpu.uuid, 48) in seen)
    assert waits_at_the_end == [False] * 3


def test_time_slices_are_set_wherever_nvidia_smi_is(simulate: Callable[..., Node], backend_of: Make) -> None:
    node = simulate("h100x1")
    (node.root / "opt/bin").mkdir(parents=True)
    (node.root / "usr/bin/nvidia-smi").rename(node.root / "opt/bin/nvidia-smi")
    backend = backend_of(node)
    (gpu,) = backend.read_inventory().gpus
    backend.apply_step(SetTimeSlice(gpu.uuid, 2))
    with node.state() as state:
        assert state.gpus[0].now.timeslice == 2


def test_a_vgpu_is_offered_whole_only(
    simulate: Callable[..., Node], backend_of: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest = pynvml.NVML_GPU_VIRTUALIZATION_MODE_VGPU
    monkeypatch.setattr(pynvml, "nvmlDeviceGetVirtualizationMode", lambda _: guest)
    (gpu,) = backend_of(simulate("h100x1")).read_inventory().gpus
    assert gpu.mig is None


@pytest.mark.parametrize("answer", ["none", "refused"])
def test_a_gpu_that_reports_no_xids_is_known_as_unmonitored(
    simulate: Callable[..., Node], backend_of: Make, monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    backend = backend_of(simulate("h100x1"))
    assert [gpu.monitored for gpu in backend.read_inventory().gpus] == [True]
    backend.close()

    def supported(_: Any) -> int:
        if answer == "refused":
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return int(pynvml.nvmlEventTypeSingleBitEccError)

    monkeypatch.setattr(pynvml, "nvmlDeviceGetSupportedEventTypes", supported)
    assert [gpu.monitored for gpu in backend.read_inventory().gpus] == [False]


@pytest.fixture
def occupied(simulate: Callable[..., Node], backend_of: Make) -> tuple[Node, NvmlBackend, str, str]:
    """One process on a MIG device, one on its GPU by graphics: node, back-end, UUIDs of GPU and MIG device."""
    node = simulate("h100x1")
    backend = backend_of(node)
    (gpu,) = backend.read_inventory().gpus
    backend.apply_step(EnableMig(gpu.uuid))
    made = backend.apply_step(CreateMigInstance(gpu.uuid, 19, Placement(2, 1)))
    assert made is not None and made.uuid is not None
    node.simulator("inject", "in-use", "--gpu", "0", "--gi", str(made.gpu_instance_id), "--ci", "0", "--pid", "72")
    node.simulator("inject", "in-use", "--gpu", "0", "--pid", "71", "--type", "G")
    return node, backend, gpu.uuid, made.uuid


Occupied = tuple[Node, NvmlBackend, str, str]


def test_a_gpu_has_the_processes_of_every_kind_and_instance_and_a_mig_device_its_own(occupied: Occupied) -> None:
    _, backend, gpu, mig = occupied
    assert backend.read_processes(gpu) == (71, 72)
    assert backend.read_processes(mig) == (72,)


@pytest.mark.parametrize("code", ["not-supported", "no-permission", "13"])  # 13: NVML_ERROR_FUNCTION_NOT_FOUND
def test_a_list_that_the_library_does_not_give_is_empty_and_the_others_count(occupied: Occupied, code: str) -> None:
    node, backend, gpu, _ = occupied
    node.simulator("inject", "fail", "nvmlDeviceGetComputeRunningProcesses", "--code", code, "--times", "9")
    assert backend.read_processes(gpu) == (71,)


def test_nothing_runs_on_what_is_gone_or_lost(occupied: Occupied) -> None:
    node, backend, gpu, mig = occupied
    assert backend.read_processes("MIG-00000000-0000-0000-0000-000000000000") == ()
    node.simulator("inject", "lost", "--gpu", "0")
    assert (backend.read_processes(gpu), backend.read_processes(mig)) == ((), ())


def test_a_library_that_cannot_tell_now_says_so_and_tells_later(occupied: Occupied) -> None:
    node, backend, gpu, _ = occupied
    node.simulator("inject", "fail", "nvmlDeviceGetGraphicsRunningProcesses", "--code", "timeout")
    with pytest.raises(HardwareError, match=f"asking for the processes on {gpu}"):
        backend.read_processes(gpu)
    assert backend.read_processes(gpu) == (71, 72)


def test_asking_for_processes_leaves_events_to_whole_gpus(occupied: Occupied) -> None:
    node, backend, gpu, mig = occupied
    backend.read_processes(mig)
    with watching(backend) as seen:
        node.simulator("inject", "xid", "--gpu", "0", "--xid", "48")
        wait_for(lambda: seen)
    assert seen == [(gpu, 48)]
