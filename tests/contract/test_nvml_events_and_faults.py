"""What goes wrong on demand: events, lost GPUs, calls that fail or take long, fabric trouble."""

import ctypes
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from nvml_node import Node, bound, create_whole, error, make_node, profiles_of, read_line
from simulator import models
from simulator.faults import inject

H100 = tuple[Node, Any, Any]
WAIT = """
s = nvmlEventSetCreate()
for i in range(nvmlDeviceGetCount()):
    nvmlDeviceRegisterEvents(nvmlDeviceGetHandleByIndex(i), nvmlEventTypeXidCriticalError, s)
print(json.dumps("ready"), flush=True)
e = nvmlEventSetWait_v2(s, 20000)
print(json.dumps([nvmlDeviceGetIndex(e.device), e.eventType, e.eventData, e.gpuInstanceId]), flush=True)
"""


def test_an_xid_reaches_every_process_that_waits(h100: H100) -> None:
    node, _, _ = h100
    clients = [node.client(WAIT) for _ in range(3)]
    assert [read_line(client) for client in clients] == ["ready"] * 3
    node.simulator("inject", "xid", "--gpu", "1", "--xid", "48")
    assert [read_line(client) for client in clients] == [[1, 8, 48, 0xFFFFFFFF]] * 3
    for client in clients:
        client.wait()


def test_events_of_before_and_of_other_gpus_are_not_seen(h100: H100) -> None:
    node, nvml, device = h100
    node.simulator("inject", "xid", "--gpu", "0", "--xid", "31")
    events = nvml.nvmlEventSetCreate()
    nvml.nvmlDeviceRegisterEvents(device, nvml.nvmlEventTypeXidCriticalError, events)
    node.simulator("inject", "xid", "--gpu", "1", "--xid", "48")
    node.simulator("inject", "xid", "--gpu", "0", "--gi", "7", "--ci", "0", "--xid", "43")
    event = nvml.nvmlEventSetWait_v2(events, 1000)
    assert (event.eventData, event.gpuInstanceId, event.computeInstanceId) == (43, 7, 0)
    assert error(nvml.nvmlEventSetWait_v2, events, 0) == nvml.NVML_ERROR_TIMEOUT


def test_calls_take_as_long_as_the_profile_says_whatever_faults_come_and_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = (models.FOLDER / "h100.toml").read_text()
    (tmp_path / "slow.toml").write_text(f"latency_ms = {{ nvmlDeviceGetMigMode = 60 }}\n{table}")
    monkeypatch.setattr(models, "FOLDER", tmp_path)
    node = make_node(tmp_path / "driver", "slowx1")
    inject(["--root", str(node.root), "slow", "nvmlDeviceGetUUID", "--ms", "60"])
    inject(["--root", str(node.root), "none"])
    with bound(node.library) as nvml:
        device = nvml.nvmlDeviceGetHandleByIndex(0)
        begun_s = time.monotonic()
        nvml.nvmlDeviceGetMigMode(device)
        assert time.monotonic() - begun_s >= 0.06
    with node.state() as state:
        assert {fault.function for fault in state.faults} == {b"nvmlDeviceGetMigMode", b""}


def test_a_lost_gpu_fails_every_call_and_says_so_in_an_event(h100: H100) -> None:
    node, nvml, device = h100
    events = nvml.nvmlEventSetCreate()
    nvml.nvmlDeviceRegisterEvents(device, nvml.nvmlEventTypeXidCriticalError, events)
    node.simulator("inject", "lost", "--gpu", "0")
    assert nvml.nvmlEventSetWait_v2(events, 1000).eventData == 79
    assert nvml.nvmlDeviceGetCount() == 2
    assert error(nvml.nvmlDeviceGetHandleByIndex, 0) == nvml.NVML_ERROR_GPU_IS_LOST
    assert error(nvml.nvmlDeviceGetMigMode, device) == nvml.NVML_ERROR_GPU_IS_LOST
    nvml.nvmlDeviceGetMigMode(nvml.nvmlDeviceGetHandleByIndex(1))
    node.simulator("reset")
    nvml.nvmlDeviceGetMigMode(device)


def test_a_gpu_that_is_taken_out_is_gone_for_the_next_client_and_comes_back(h100: H100) -> None:
    node, nvml, device = h100
    node.simulator("inject", "absent", "--gpu", "0")
    assert error(nvml.nvmlDeviceGetMigMode, device) == nvml.NVML_ERROR_GPU_IS_LOST
    assert [line[:6] for line in node.smi("-L").stdout.splitlines()] == ["GPU 0:"]
    node.simulator("inject", "absent", "--gpu", "0", "--off")
    assert len(node.smi("-L").stdout.splitlines()) == 2


def test_a_node_that_lost_all_gpus_opens_only_for_clients_that_can_do_without(h100: H100) -> None:
    node, nvml, _ = h100
    for gpu in ("0", "1"):
        node.simulator("inject", "absent", "--gpu", gpu)
    nvml.nvmlShutdown()
    assert error(nvml.nvmlInit) == nvml.NVML_ERROR_GPU_NOT_FOUND
    nvml.nvmlInitWithFlags(nvml.NVML_INIT_FLAG_NO_GPUS)
    assert nvml.nvmlDeviceGetCount() == 0


def test_the_nth_call_of_a_function_fails_as_often_as_asked(h100: H100) -> None:
    node, nvml, device = h100
    node.simulator("inject", "fail", "nvmlDeviceCreateGpuInstance", "--nth", "2", "--times", "2", "--code", "in-use")
    codes = [error(nvml.nvmlDeviceCreateGpuInstance, device, 19) for _ in range(4)]
    assert codes == [0, nvml.NVML_ERROR_IN_USE, nvml.NVML_ERROR_IN_USE, 0]


def test_a_fault_names_a_call_whatever_its_version(h100: H100) -> None:
    node, nvml, device = h100
    _, compute = create_whole(device, profiles_of(device)["1g.10gb"])
    node.simulator("inject", "fail", "nvmlComputeInstanceGetInfo", "--code", "gpu-is-lost")
    assert error(nvml.nvmlComputeInstanceGetInfo_v2, compute) == nvml.NVML_ERROR_GPU_IS_LOST
    nvml.nvmlComputeInstanceGetInfo_v2(compute)


def test_a_slow_call_takes_at_least_as_long_as_asked(h100: H100) -> None:
    node, _, device = h100
    node.simulator("inject", "slow", "nvmlDeviceCreateGpuInstanceWithPlacement", "--ms", "120")
    before = time.monotonic()
    create_whole(device, profiles_of(device)["1g.10gb"], 3)
    assert time.monotonic() - before >= 0.12


@pytest.mark.parametrize("arguments", [("fail", "create", "--code", "in-use"), ("xid", "--gpu", "9", "--xid", "1")])
def test_a_fault_that_makes_no_sense_is_refused(h100: H100, arguments: tuple[str, ...]) -> None:
    node, _, _ = h100
    with pytest.raises(AssertionError, match="simulator inject"):
        node.simulator("inject", *arguments)


def test_nodes_of_a_rack_share_a_fabric_and_the_next_rack_has_another(
    simulate: Callable[..., Node], tmp_path: Any
) -> None:
    seen = []
    for index in (0, 17, 18):
        node = make_node(tmp_path / str(index), "gb200", "--index", str(index))
        with bound(node.library) as nvml:
            info = nvml.c_nvmlGpuFabricInfo_v3_t()
            nvml.nvmlDeviceGetGpuFabricInfoV(nvml.nvmlDeviceGetHandleByIndex(3), ctypes.byref(info))
            assert (info.state, info.status, info.healthSummary) == (nvml.NVML_GPU_FABRIC_STATE_COMPLETED, 0, 1)
            seen.append(bytes(info.clusterUuid))
    assert seen[0] == seen[1] != seen[2]
    assert any(seen[0])


def test_fabric_trouble_shows_at_once(simulate: Callable[..., Node]) -> None:
    node = simulate("gb200:clique=2")
    with bound(node.library) as nvml:
        info = nvml.c_nvmlGpuFabricInfo_v2_t()
        device = nvml.nvmlDeviceGetHandleByIndex(0)
        node.simulator("inject", "fabric", "--state", "in-progress", "--status", "27")
        nvml.nvmlDeviceGetGpuFabricInfoV(device, ctypes.byref(info))
        assert (info.state, info.status, info.cliqueId) == (nvml.NVML_GPU_FABRIC_STATE_IN_PROGRESS, 27, 2)


def test_gpus_without_nvlink_fabric_say_not_supported_as_a_code_before_hopper_and_as_a_state_since(
    simulate: Callable[..., Node],
) -> None:
    with bound(simulate("a100-80x1+rtx-pro-6000x1").library) as nvml:
        older, newer = (nvml.nvmlDeviceGetHandleByIndex(index) for index in range(2))
        info = nvml.c_nvmlGpuFabricInfo_v2_t()
        assert error(nvml.nvmlDeviceGetGpuFabricInfoV, older, ctypes.byref(info)) == nvml.NVML_ERROR_NOT_SUPPORTED
        nvml.nvmlDeviceGetGpuFabricInfoV(newer, ctypes.byref(info))
        assert info.state == nvml.NVML_GPU_FABRIC_STATE_NOT_SUPPORTED
