"""What is prepared on a node for ComputeDomains, by one instance of the plugin or by several."""

import asyncio
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest

from api.client import Client, Json, NotFound
from api.errors import Busy
from kubeletplugin.cdi_files import CdiFiles
from kubeletplugin.disk import DiskFailed, locked
from kubeletplugin.model.channels import DomainUse, PreparedClaim, build_channel_spec
from kubeletplugin.prepared import PreparedClaims
from tests.support.waiting import until

VENDOR = "k8s.compute-domain.nvidia.com"


@dataclass(frozen=True)
class Claim:
    uid: str
    claim: str


def spec(claim: Claim, domain: str) -> dict[str, Any]:
    return build_channel_spec(claim, DomainUse("channel", domain), 501, "/status", ())


def instance(directory: Path) -> PreparedClaims:
    """As each process of a rolling update has one; nothing here asks the API server."""
    return PreparedClaims(cast(Client, None), "n1", CdiFiles(directory / "cdi", VENDOR), directory / "lock", 1.0)


def test_of_two_instances_that_prepare_for_two_domains_at_once_one_finds_the_node_taken(tmp_path: Path) -> None:
    """The second must not look before the first has written, however slow the disk is."""
    old, new = instance(tmp_path), instance(tmp_path)
    mine, theirs = Claim("u1", "a/mine"), Claim("u2", "b/theirs")

    async def play() -> None:
        async with locked(tmp_path / "lock"):  # the new one is just writing
            waiting = asyncio.create_task(old.add(mine, "d1", lambda: spec(mine, "d1")))
            await asyncio.sleep(0.1)
            new.write(theirs, spec(theirs, "d2"))
        await waiting

    with pytest.raises(Busy, match=r"claim a/mine: .* claim b/theirs \(channel\)"):
        asyncio.run(play())
    assert [claim.uid for claim, _ in old.read()] == ["u2"]


def test_an_instance_that_dies_while_it_prepares_is_in_nobodys_way(tmp_path: Path) -> None:
    lock, claim = tmp_path / "lock", Claim("u1", "a/mine")
    hold = f"import fcntl, os, sys; fcntl.flock(os.open({str(lock)!r}, os.O_CREAT | os.O_RDWR), fcntl.LOCK_EX)"
    holder = subprocess.Popen(
        [sys.executable, "-c", f"{hold}; print('held', flush=True); sys.stdin.read()"], stdin=-1, stdout=-1
    )
    assert holder.stdout is not None and holder.stdout.readline() == b"held\n"

    async def play() -> None:
        adding = asyncio.create_task(instance(tmp_path).add(claim, "d1", lambda: spec(claim, "d1")))
        await asyncio.sleep(0.1)
        assert not adding.done()
        holder.kill()
        await adding

    with holder:
        asyncio.run(play())
    assert [each.uid for each, _ in instance(tmp_path).read()] == ["u1"]


def test_a_claim_whose_file_cannot_be_parsed_is_taken_for_another_domains_and_the_file_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    node, claim = instance(tmp_path), Claim("u1", "a/mine")
    node.write(Claim("u2", "a/other"), {})
    (tmp_path / "cdi" / f"{VENDOR}-claim_u2.json").write_text("{")
    for _ in range(2):
        with pytest.raises(Busy, match=r"a/mine: .* whose CDI file k8s\.[a-z.-]+-claim_u2\.json cannot be parsed"):
            asyncio.run(node.add(claim, "d1", lambda: spec(claim, "d1")))
    assert not node.exists("u1")
    assert [each.__dict__["path"] for each in caplog.records] == [str(tmp_path / "cdi" / f"{VENDOR}-claim_u2.json")]


def test_while_a_claims_file_cannot_be_read_nothing_is_prepared_beside_it(tmp_path: Path) -> None:
    node, claim = instance(tmp_path), Claim("u1", "a/mine")
    (tmp_path / "cdi" / f"{VENDOR}-claim_u2.json").mkdir(parents=True)  # to read it is an error
    with pytest.raises(DiskFailed, match=r"claim_u2\.json: Is a directory"):
        asyncio.run(node.add(claim, "d1", lambda: spec(claim, "d1")))
    assert not node.exists("u1")


class NoClaims:
    """An API server that knows no claim."""

    async def get(self, path: str) -> Json:
        raise NotFound(f"GET {path}: not found (404)", 404)


@pytest.mark.parametrize("comes_back", [True, False])
def test_a_claim_that_is_asked_for_again_while_its_processes_are_looked_for_is_kept(
    tmp_path: Path, comes_back: bool
) -> None:
    claim = Claim("u1", "a/mine")
    looked_at = tmp_path / "proc/71/cgroup"
    looked_at.parent.mkdir(parents=True)
    (looked_at.parent / "mountinfo").touch()
    os.mkfifo(looked_at)  # who reads it waits for us
    client, cdi = cast(Client, NoClaims()), CdiFiles(tmp_path / "cdi", VENDOR)
    prepared = PreparedClaims(client, "n1", cdi, tmp_path / "lock", 0.0, tmp_path / "proc")
    prepared.write(claim, build_channel_spec(claim, DomainUse("channel", "d1"), 501, "/status", ("p1",)))

    async def unprepare(gone: PreparedClaim) -> None:
        prepared.remove(gone.uid)

    async def play() -> None:
        sweeping = asyncio.create_task(prepared.sweep_regularly(unprepare))
        answer = await asyncio.to_thread(os.open, looked_at, os.O_WRONLY)
        if comes_back:
            prepared.renew(claim, ("p2",))
        os.close(answer)
        await until(lambda: comes_back or not list(prepared.read()))
        await asyncio.sleep(0.2)
        sweeping.cancel()
        await asyncio.wait((sweeping,))

    asyncio.run(play())
    assert [each.uid for each, _ in prepared.read()] == (["u1"] if comes_back else [])
