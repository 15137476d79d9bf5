"""What the IMEX daemon makes of its files: memberships of any version, a disk without room."""

from pathlib import Path

import pytest

from api.clique import MEMBERSHIP_FILE
from tests.contract.imex.imex_hosts import ip, wait_until
from tests.contract.imex.imex_members import CLIQUE, DOMAIN, Cluster, Member, cluster
from tests.support.disk import fill, small_disk

__all__ = ["cluster"]


def test_a_full_disk_ends_nothing_and_leaves_no_word_that_is_not_true(cluster: Cluster) -> None:
    first, second, _ = cluster.members
    with small_disk(first.host.folder / "imexd/status") as disk:
        cluster.connect(first, second)
        pid = first.imex_pid()
        filler = fill(disk)
        ip("-n", second.host.name, "link", "set", "eth0", "down")
        wait_until(lambda: "status_not_written" in first.events())
        assert not (disk / "status.json").exists(), "it was ready, and is not any more"
        ip("-n", second.host.name, "link", "set", "eth0", "up")
        wait_until(lambda: first.get("/readyz")[0] == 200)
        filler.unlink()
        cluster.wait_ready(first)
        assert first.imex_pid() == pid
        assert first.process is not None
        fill(disk)
        first.process.terminate()
        assert first.process.wait(20) == 0
        assert first.imex_pid() == 0


def test_files_that_cannot_be_written_are_tried_again(cluster: Cluster) -> None:
    first = cluster.members[0]
    hosts = first.host.folder / "hosts"
    hosts.mkdir()
    cluster.publish({0: first})
    cluster.start(first)
    wait_until(lambda: "not_reconciled" in first.events())
    hosts.rmdir()
    cluster.wait_ready(first)


def test_a_membership_that_goes_stops_nvidia_imex_until_it_is_back(cluster: Cluster) -> None:
    first, second, _ = cluster.members
    cluster.connect(first, second)
    cluster.write({"version": 1})
    wait_until(lambda: first.imex_pid() == 0)
    cluster.publish({0: first, 1: second})
    cluster.wait_ready(first, second)


@pytest.mark.parametrize("damage", ["gone", "not JSON", "no object", "no plain file"])
def test_a_membership_file_that_cannot_be_read_takes_nothing_from_who_is_connected(
    cluster: Cluster, damage: str
) -> None:
    first, second, _ = cluster.members
    cluster.connect(first, second)
    pid = first.imex_pid()
    file = first.host.folder / "imexd" / MEMBERSHIP_FILE
    if damage == "no plain file":
        file.with_name("new").mkdir()
        file.unlink()
        file.with_name("new").rename(file)
    elif damage == "gone":
        file.unlink()
    else:
        file.with_name("new").write_text("{" if damage == "not JSON" else "null")
        file.with_name("new").rename(file)
    wait_until(lambda: "membership_kept" in first.events())
    assert first.get("/readyz") == (200, "connected to 1 of 1 peers")
    assert first.imex_pid() == pid
    if damage == "no plain file":
        file.rmdir()
    cluster.write({"version": 1})
    wait_until(lambda: first.imex_pid() == 0)


def test_a_membership_of_another_clique_or_that_cannot_be_read_is_none(cluster: Cluster) -> None:
    first = cluster.members[0]
    cluster.start(first)
    entry = {"nodeName": first.name, "ipAddress": first.host.address, "cliqueID": CLIQUE, "index": 0}
    cluster.write({"metadata": {"name": f"{DOMAIN}.another.1"}, "daemons": [entry]})
    wait_until(lambda: "no ComputeDomainClique" in first.status()["message"])
    (first.host.folder / "imexd" / MEMBERSHIP_FILE).write_text("{")
    assert first.imex_pid() == 0
    cluster.publish({0: first})
    cluster.wait_ready(first)


def without_membership(member: Member, *, folder: bool) -> Path:
    """What a container sees whose claim a node plugin prepared that knows no membership files.

    `folder`: an earlier container of the domain had it mounted, which leaves an empty folder behind.
    """
    file = member.host.folder / "imexd" / MEMBERSHIP_FILE
    file.unlink()
    if not folder:
        file.parent.rmdir()
    return file


@pytest.mark.parametrize("folder", [False, True])
def test_a_daemon_that_is_newer_than_its_node_plugin_waits_and_says_for_what(cluster: Cluster, folder: bool) -> None:
    first = cluster.members[0]
    file = without_membership(first, folder=folder)
    cluster.start(first)
    wait_until(lambda: "is older than this daemon" in first.status()["message"])
    assert first.get("/livez")[0] == 200
    status, told = first.get("/readyz")
    assert status == 503
    assert f"{file} is not there" in told
    file.parent.mkdir(exist_ok=True)
    cluster.publish({0: first})
    cluster.wait_ready(first)


def test_a_daemon_without_its_membership_file_ends_after_a_while_so_that_its_container_is_made_anew(
    cluster: Cluster,
) -> None:
    first = cluster.members[0]
    without_membership(first, folder=False)
    cluster.start(first, MEMBERSHIP_WAIT_S="0")
    assert first.process is not None
    assert first.process.wait(20) == 1
    assert "Error: " in (first.host.folder / "log").read_text()


def test_fields_and_files_that_only_a_newer_node_plugin_knows_disturb_no_daemon(cluster: Cluster) -> None:
    first, second, _ = cluster.members
    (first.host.folder / "imexd/membership/more.json").write_text("{}")
    daemons = [
        {"nodeName": each.name, "ipAddress": each.host.address, "index": index, "since": 1}
        for index, each in enumerate((first, second))
    ]
    name = {"name": f"{DOMAIN}.{CLIQUE}", "generation": 7}
    cluster.write({"version": 1, "metadata": name, "maxNodes": 4, "policy": {"a": "b"}, "daemons": daemons})
    cluster.start(first, second)
    cluster.wait_ready(first, second)


def test_a_membership_of_a_later_version_is_told_and_takes_nothing_from_who_is_connected(cluster: Cluster) -> None:
    first, second, third = cluster.members
    cluster.connect(first, second)
    pid = first.imex_pid()
    cluster.write({"version": 2, "metadata": {"name": f"{DOMAIN}.{CLIQUE}"}, "daemons": {"by": "name"}})
    wait_until(lambda: "membership_unreadable" in first.events())
    cluster.start(third)
    wait_until(lambda: "writes membership files of version 2" in third.status()["message"])
    assert first.get("/readyz") == (200, "connected to 1 of 1 peers")
    assert first.imex_pid() == pid
