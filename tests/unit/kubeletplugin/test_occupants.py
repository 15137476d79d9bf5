"""Claims that are gone while processes may still work on their devices: what keeps them, and what does not."""

import asyncio
from pathlib import Path

import pytest

from api.client import Json, NotFound
from api.errors import HardwareError
from api.ref import Ref
from kubeletplugin.model.checkpoint import ClaimRecord, ClaimState, GpuHolding, MigHolding, PreparedDevice
from kubeletplugin.model.inventory import Placement
from kubeletplugin.model.occupation import is_of_a_pod, is_of_pods
from kubeletplugin.occupants import Occupants
from kubeletplugin.stale import StaleClaims

WHOLE = PreparedDevice("r0", "n1", "gpu-0", GpuHolding("GPU-a"))
SLICE = PreparedDevice(
    "r1", "n1", "gpu-1-mig-1g10gb-19-0", MigHolding("GPU-b", 19, Placement(0, 1), True, 7, 0, "MIG-c")
)
MONITORED = PreparedDevice("r2", "n1", "gpu-2", GpuHolding("GPU-d"), admin_access=True)
POD = "0::/../../kubepods-burstable-pod0a1b2c3d_4e5f_6071_8293_a4b5c6d7e8f9.slice/cri-containerd-1.scope\n"


class World:
    """A GPU library's answers by UUID, a node's /proc, and the Events that were sent."""

    def __init__(self, proc: Path) -> None:
        self.processes: dict[str, tuple[int, ...] | HardwareError] = {}
        self.notes: list[str] = []
        self._proc = proc
        self.occupants = Occupants(self._read, self, "n1", proc)  # type: ignore[arg-type]

    def warn(self, regarding: Ref, reason: str, action: str, note: str) -> None:
        assert (regarding.kind, regarding.name, reason) == ("Node", "n1", "StaleClaimInUse")
        self.notes.append(note)

    def run(self, pid: int, cgroup: str) -> None:
        (self._proc / str(pid)).mkdir()
        (self._proc / str(pid) / "cgroup").write_text(cgroup)

    async def _read(self, uuid: str) -> tuple[int, ...]:
        answer = self.processes.get(uuid, ())
        if isinstance(answer, HardwareError):
            raise answer
        return answer

    def remain(self, *devices: PreparedDevice, state: ClaimState = ClaimState.COMPLETED) -> bool:
        return asyncio.run(self.occupants.remain(record(*devices, state=state)))


def record(*devices: PreparedDevice, state: ClaimState = ClaimState.COMPLETED) -> ClaimRecord:
    return ClaimRecord("gpu.nvidia.com", "u1", "team", "train", state, "boot", devices)


@pytest.fixture
def it(tmp_path: Path) -> World:
    return World(tmp_path)


def test_a_claim_without_processes_is_not_kept(it: World) -> None:
    assert not it.remain(WHOLE, SLICE)
    assert it.notes == []


def test_processes_keep_a_claim_and_an_event_names_claim_devices_and_process_ids(it: World) -> None:
    it.processes = {"GPU-a": (71, 72), "MIG-c": (80,)}
    assert it.remain(WHOLE, SLICE)
    assert it.notes == [
        "claim team/train is gone, but processes still use what it held: "
        "gpu-0 (GPU-a) by 71, 72; gpu-1-mig-1g10gb-19-0 (MIG-c) by 80; it is kept until they end"
    ]


def test_processes_on_other_slices_of_the_gpu_do_not_keep_a_slice(it: World) -> None:
    it.processes = {"GPU-b": (71,)}
    assert not it.remain(SLICE)


def test_processes_of_others_do_not_keep_a_claim_with_admin_access(it: World) -> None:
    it.processes = {"GPU-d": (71,)}
    assert not it.remain(MONITORED)


def test_a_claim_that_was_never_completed_has_no_processes(it: World) -> None:
    it.processes = {"GPU-a": (71,)}
    assert not it.remain(WHOLE, state=ClaimState.STARTED)


def test_a_process_of_the_node_itself_keeps_no_claim_and_one_of_a_pod_does(it: World) -> None:
    it.run(50, "0::/../../../system.slice/display-manager.service\n")
    it.run(60, POD)
    it.processes = {"GPU-a": (50,)}
    assert not it.remain(WHOLE)
    it.processes = {"GPU-a": (50, 60)}
    assert it.remain(WHOLE)
    assert "(GPU-a) by 60;" in it.notes[0]


@pytest.mark.parametrize(
    ("cgroup", "expected"),
    [
        (POD, True),
        ("0::/kubepods.slice/kubepods-pod0a1b2c3d_4e5f_6071_8293_a4b5c6d7e8f9.slice/crio-1.scope", True),
        ("0::/kubepods/besteffort/pod0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9/1f", True),
        ("0::/../pod0a1b2c3d4e5f60718293a4b5c6d7e8f9/1f", True),
        ("0::/system.slice/podman.service", False),
        ("0::/user.slice/user-0.slice/session-1.scope", False),
        ("", False),
    ],
)
def test_processes_of_pods_are_known_by_their_cgroup_whatever_the_driver(cgroup: str, expected: bool) -> None:
    assert is_of_a_pod(cgroup) is expected


UID = "0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9"


@pytest.mark.parametrize(
    "cgroup",
    [
        "0::/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod0a1b2c3d_4e5f_6071_8293_a4b5c6d7e8f9.slice/x",
        "0::/../../kubepods-pod0a1b2c3d_4e5f_6071_8293_a4b5c6d7e8f9.slice/cri-containerd-1f.scope",
        f"0::/kubepods/besteffort/pod{UID}/1f",
        f"12:devices:/kubepods/pod{UID}/1f\n1:name=systemd:/kubepods/pod{UID}/1f",
        f"0::/kubepods/pod{UID}/1f (deleted)",
    ],
)
def test_the_processes_of_one_pod_are_told_from_anothers_whatever_the_driver_and_version(cgroup: str) -> None:
    assert is_of_pods(cgroup, ("another", UID))
    assert not is_of_pods(cgroup, (UID.replace("0a", "0b"),))
    assert not is_of_pods(cgroup, ())


def test_a_library_that_cannot_tell_keeps_a_claim_once_and_not_for_ever(it: World) -> None:
    it.processes = {"GPU-a": HardwareError("unknown error")}
    assert [it.remain(WHOLE) for _ in range(2)] == [True, False]
    assert it.notes == []


def test_an_answer_in_between_gives_the_library_another_chance(it: World) -> None:
    it.processes = {"GPU-a": HardwareError("unknown error")}
    assert it.remain(WHOLE)
    it.processes = {"GPU-a": (71,)}
    assert it.remain(WHOLE)
    it.processes = {"GPU-a": HardwareError("unknown error")}
    assert it.remain(WHOLE)


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class EmptyApi:
    async def get(self, path: str) -> Json:
        raise NotFound(f"GET {path}: not found (404)", 404)


@pytest.mark.parametrize(("grace_s", "again_s"), [(300.0, 30.0), (10.0, 10.0)])
def test_a_claim_that_is_in_use_is_looked_at_again_soon(grace_s: float, again_s: float) -> None:
    clock, empty = Clock(), EmptyApi()
    stale = StaleClaims(empty, "n1", grace_s, clock)  # type: ignore[arg-type]

    def is_stale() -> bool:
        return asyncio.run(stale.is_stale(record(WHOLE)))

    assert not is_stale()
    clock.now_s = grace_s
    assert is_stale()
    stale.postpone("u1", 30.0)
    assert stale.next_due_s({"u1"}, 600.0) == again_s
    clock.now_s += again_s - 1
    assert not is_stale()
    clock.now_s += 1
    assert is_stale()
