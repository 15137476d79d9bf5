"""Whether somebody still has what a claim was for that is gone from the API server."""

import asyncio
import errno
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest

from api.client import Client, NotFound
from kubeletplugin.cdi_files import CdiFiles
from kubeletplugin.model.channels import (
    STATUS_FOLDER,
    DomainUse,
    PreparedClaim,
    build_channel_spec,
    is_mounted,
    read_pods,
)
from kubeletplugin.prepared import PreparedClaims
from tests.support.waiting import until

VENDOR = "k8s.compute-domain.nvidia.com"
DOMAIN = "5b8e2a0c-0000-4000-8000-000000000001"
POD, LATER = "0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9", "1a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9"
SLICE = "0::/kubepods.slice/kubepods-pod{}.slice/cri-containerd-1f.scope\n"
MOUNTED = f"31 22 8:1 /plugins/domains/{DOMAIN}/status {STATUS_FOLDER} ro - ext4 /dev/root rw\n"
HIDDEN = "22 1 8:1 / / rw,relatime - ext4 /dev/root rw\n"


@dataclass(frozen=True)
class Claim:
    uid: str = "u1"
    claim: str = "team/job"


class Empty:
    """An API server that has no claim any more."""

    async def get(self, path: str) -> Any:
        raise NotFound(path, 404)


class Node:
    """One channel claim that is prepared, of these pods, and processes."""

    def __init__(self, folder: Path, *pods: str) -> None:
        self._proc = folder / "proc"
        self._proc.mkdir()
        self._cdi = CdiFiles(folder / "cdi", VENDOR)
        client = cast(Client, Empty())
        self.claims = PreparedClaims(client, "n1", self._cdi, folder / "lock", 0.0, self._proc)
        self.claims.write(Claim(), build_channel_spec(Claim(), DomainUse("channel", DOMAIN), 501, "/s", pods))

    def run(self, pid: int, cgroup: str, mountinfo: str | bytes) -> None:
        process = self._proc / str(pid)
        process.mkdir()
        (process / "cgroup").write_text(cgroup)
        (process / "mountinfo").write_bytes(mountinfo if isinstance(mountinfo, bytes) else mountinfo.encode())

    def gives_back(self, told: pytest.LogCaptureFixture) -> bool:
        """Whether the first sweep does so, which finds that the claim is gone."""

        async def unprepare(claim: PreparedClaim) -> None:
            self.claims.remove(claim.uid)

        async def sweep() -> None:
            sweeping = asyncio.create_task(self.claims.sweep_regularly(unprepare))
            await until(lambda: sweeping.done() or any(each.msg.startswith("stale_claim") for each in told.records))
            if sweeping.done():
                sweeping.result()
            sweeping.cancel()

        asyncio.run(sweep())
        return not self.claims.exists("u1")


def test_what_no_process_has_is_given_back(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    node = Node(tmp_path, POD)
    node.run(1, "0::/init.scope\n", HIDDEN)
    node.run(70, SLICE.format(LATER.replace("-", "_")), HIDDEN)
    assert node.gives_back(caplog)


@pytest.mark.parametrize("uid", [POD, POD.replace("-", "_")])
def test_a_process_that_hides_its_mounts_is_known_by_its_pod(
    uid: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """By chroot, or a mount namespace of its own; a file that it has opened before serves it all the same."""
    node = Node(tmp_path, LATER, POD)
    node.run(71, SLICE.format(uid), HIDDEN)
    assert not node.gives_back(caplog)


@pytest.mark.parametrize("pods", [(), (LATER,)])
def test_of_a_claim_whose_pods_are_not_all_known_the_mounts_show_who_has_it(
    pods: tuple[str, ...], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    node = Node(tmp_path, *pods)
    node.run(71, SLICE.format(POD), MOUNTED)
    assert not node.gives_back(caplog)


def test_pods_for_which_a_claim_is_asked_for_again_join_those_that_it_was_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    node = Node(tmp_path, POD)
    node.claims.renew(Claim(), (LATER,))
    assert {pod for claim, _ in node.claims.read() for pod in claim.pods} == {POD, LATER}
    node.run(71, SLICE.format(LATER), HIDDEN)
    assert not node.gives_back(caplog)


@pytest.mark.parametrize(
    ("number", "given_back"),
    [(errno.EMFILE, False), (errno.EIO, False), (errno.ENOENT, True), (errno.ESRCH, True), (errno.EINVAL, True)],
)
def test_a_process_that_cannot_be_looked_at_may_have_it_and_one_that_has_ended_has_not(
    number: int,
    given_back: bool,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    node = Node(tmp_path, POD)
    node.run(71, "", HIDDEN)
    real = Path.read_text

    def read(path: Path, **how: Any) -> str:
        if path.parent.name == "71":
            raise OSError(number, os.strerror(number))
        return real(path, **how)

    monkeypatch.setattr(Path, "read_text", read)
    assert node.gives_back(caplog) is given_back


def test_a_mount_with_any_name_ends_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    node = Node(tmp_path, POD)
    node.run(71, SLICE.format(LATER), b"31 22 0:9 / /\xff rw - tmpfs none rw\n")
    assert node.gives_back(caplog)


MOUNTINFO = """\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/root rw
31 22 8:1 /var/lib/kubelet/plugins/compute-domain.nvidia.com/domains/{uid}/status{gone} {place} ro - ext4 /dev/root rw
"""


@pytest.mark.parametrize(
    ("uid", "place", "gone", "mounted"),
    [
        (DOMAIN, STATUS_FOLDER, "", True),
        (DOMAIN, STATUS_FOLDER, "//deleted", True),
        (DOMAIN, "/imexd/status", "", False),
        ("another", STATUS_FOLDER, "", False),
    ],
)
def test_who_has_a_channel_is_seen_by_the_folder_that_came_with_it(
    uid: str, place: str, gone: str, mounted: bool
) -> None:
    assert is_mounted(MOUNTINFO.format(uid=uid, place=place, gone=gone), DOMAIN, STATUS_FOLDER) is mounted


def test_of_what_a_claim_is_reserved_for_pods_count_alone() -> None:
    consumers = [
        {"resource": "pods", "name": "a", "uid": "u1"},
        {"apiGroup": "scheduling.k8s.io", "resource": "podgroups", "name": "g", "uid": "u2"},
    ]
    assert read_pods({"status": {"reservedFor": consumers}}) == ("u1",)
    assert read_pods({}) == ()
