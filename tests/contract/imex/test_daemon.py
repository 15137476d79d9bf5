"""The IMEX daemon on real namespaces, with the simulated nvidia-imex; the test brings it what the node plugin would."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from api.clique import MEMBERSHIP_FILE
from controller.computedomain.tls import make_certificates
from tests.contract.imex.certificates import write_authority
from tests.contract.imex.imex_hosts import Host, ip, wait_until

ROOT = Path(__file__).resolve().parents[3]
DOMAIN = "5b8e2a0c-0000-4000-8000-000000000001"
CLIQUE = "7a1d9c3e-0000-4000-8000-000000000002.1"
NAMES = [f"compute-domain-daemon-{index:04d}" for index in range(4)]


@dataclass
class Member:
    """A host with the daemon on it."""

    host: Host
    process: subprocess.Popen[bytes] | None = None

    @property
    def name(self) -> str:
        return f"node-{self.host.address.rpartition('.')[2]}"

    def status(self) -> dict[str, Any]:
        path = self.host.folder / "imexd" / "status" / "status.json"
        result: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"ready": False, "message": ""}
        return result

    def ready(self) -> bool:
        return bool(self.status()["ready"])

    def events(self) -> list[str]:
        lines = (self.host.folder / "log").read_text().splitlines()
        return [json.loads(line)["msg"] for line in lines if line.startswith("{")]

    def imex_pid(self) -> int:
        """Of the nvidia-imex that runs; 0 for none."""
        listed = subprocess.run(["ip", "netns", "pids", self.host.name], capture_output=True, text=True, check=True)
        for pid in listed.stdout.split():
            try:
                if Path(f"/proc/{pid}/comm").read_text().strip() == "nvidia-imex":
                    return int(pid)
            except FileNotFoundError:
                continue
        return 0

    def get(self, path: str, agent: str = "curl") -> tuple[int, str]:
        code = (
            "import urllib.request, urllib.error, sys\n"
            "request = urllib.request.Request(sys.argv[1], headers={'User-Agent': sys.argv[2]})\n"
            "try:\n    answer = urllib.request.urlopen(request)\n"
            "except urllib.error.HTTPError as error:\n    answer = error\n"
            "print(answer.status, answer.read().decode().strip())"
        )
        url = f"http://{self.host.address}:8097{path}"
        command = ["ip", "netns", "exec", self.host.name, sys.executable, "-S", "-c", code, url, agent]
        status, _, text = subprocess.run(command, capture_output=True, text=True, check=True).stdout.partition(" ")
        return int(status), text.strip()


@dataclass
class Cluster:
    """The members and what the controller says of them."""

    folder: Path
    members: list[Member]

    def publish(self, addresses: dict[int, Member | None]) -> None:
        """Make the object: index to member; None in place of a member leaves its address out."""
        daemons = []
        for index, member in addresses.items():
            entry = {"nodeName": member.name, "ipAddress": member.host.address} if member else {"nodeName": "node-9"}
            daemons.append({"cliqueID": CLIQUE, "index": index, "status": "NotReady", **entry})
        self.write({"metadata": {"name": f"{DOMAIN}.{CLIQUE}"}, "maxNodes": 4, "daemons": daemons})

    def write(self, obj: dict[str, Any]) -> None:
        for member in self.members:
            path = member.host.folder / "imexd" / MEMBERSHIP_FILE
            temporary = path.with_name("new")
            temporary.write_text(json.dumps(obj))
            temporary.replace(path)

    def start(self, *members: Member, **environment: str) -> None:
        for member in members:
            folder = member.host.folder
            base = {
                **member.host.environment(),
                "PATH": f"{member.host.programs}:{os.environ['PATH']}",
                "PYTHONPATH": str(ROOT),
                "COMPUTE_DOMAIN_UUID": DOMAIN,
                "CLIQUE_ID": CLIQUE,
                "NODE_NAME": member.name,
                "POD_IP": member.host.address,
                "POD_NAMESPACE": "partita-system",
                "IMEX_DIRECTORY": str(folder / "imexd"),
                "HOSTS_PATH": str(folder / "hosts"),
                "TLS_DIRECTORY": str(self.folder / "imex-tls"),
                **environment,
            }
            command = ["ip", "netns", "exec", member.host.name, sys.executable, "-m", "kubeletplugin.imexdaemon"]
            with (folder / "log").open("ab") as log:
                member.process = subprocess.Popen(command, env=base, stderr=log)

    def wait_ready(self, *members: Member) -> None:
        for member in members:
            wait_until(member.ready)


@pytest.fixture
def cluster(hosts: list[Host], tmp_path: Path) -> Iterator[Cluster]:
    made = Cluster(tmp_path, [Member(host) for host in hosts])
    for host in hosts:
        (host.folder / "imexd" / MEMBERSHIP_FILE).parent.mkdir(parents=True)
    made.write({"version": 1})
    try:
        yield made
    finally:
        for member in made.members:
            if member.process is not None and member.process.poll() is None:
                member.process.terminate()
        for member in made.members:
            if member.process is not None:
                member.process.wait(30)


def test_members_connect_and_say_so_over_http_and_in_the_status_file(cluster: Cluster) -> None:
    first, second, third = cluster.members
    cluster.start(*cluster.members)
    wait_until(lambda: "no ComputeDomainClique" in first.status()["message"])
    cluster.publish({0: first, 1: second, 3: third})
    cluster.wait_ready(*cluster.members)
    assert first.get("/readyz") == (200, "connected to 2 of 2 peers")
    assert first.get("/livez")[0] == 200
    assert first.get("/metrics")[0] == 404
    assert third.status() == {
        "computeDomain": DOMAIN,
        "cliqueID": CLIQUE,
        "node": third.name,
        "address": third.host.address,
        "index": 3,
        "ready": True,
        "message": "connected to 2 of 2 peers",
        "peers": [0, 1],
        "connected": [0, 1],
    }


def test_a_member_without_address_is_not_waited_for_and_joins_later(cluster: Cluster) -> None:
    first, second, _ = cluster.members
    cluster.publish({0: first, 1: None})
    cluster.start(first)
    cluster.wait_ready(first)
    pid = first.imex_pid()
    cluster.publish({0: first, 1: second})
    wait_until(lambda: not first.ready())
    assert "not connected to node 1" in first.get("/readyz")[1]
    cluster.start(second)
    cluster.wait_ready(first, second)
    assert first.imex_pid() == pid


def test_a_member_that_moves_is_followed_without_a_restart(cluster: Cluster) -> None:
    first, second, third = cluster.members
    cluster.publish({0: first, 1: second})
    cluster.start(first, second)
    cluster.wait_ready(first, second)
    pid = first.imex_pid()
    cluster.publish({0: first, 1: third})
    cluster.start(third)
    cluster.wait_ready(third, first)
    wait_until(lambda: second.imex_pid() == 0)
    assert first.imex_pid() == pid
    assert "imex_reloaded" in first.events()
    assert "is not among the members" in second.status()["message"]


def test_indexes_that_swap_on_the_same_addresses_restart_both(cluster: Cluster) -> None:
    first, second, third = cluster.members
    cluster.publish({0: first, 1: second, 2: third})
    cluster.start(*cluster.members)
    cluster.wait_ready(*cluster.members)
    pids = [member.imex_pid() for member in cluster.members]
    cluster.publish({0: second, 1: first, 2: third})
    wait_until(lambda: [each.status()["index"] for each in cluster.members] == [1, 0, 2])
    cluster.wait_ready(*cluster.members)
    wait_until(lambda: cluster.members[0].ready() and cluster.members[1].ready())
    now = [member.imex_pid() for member in cluster.members]
    assert now[0] != pids[0]
    assert now[1] != pids[1]
    assert now[2] == pids[2]


def test_addresses_instead_of_names_restart_at_every_change(cluster: Cluster) -> None:
    first, second, third = cluster.members
    cluster.publish({0: first, 1: second})
    cluster.start(*cluster.members, IMEX_NODE_LIST="addresses")
    cluster.wait_ready(first, second)
    assert (first.host.folder / "imexd" / "nodes.cfg").read_text() == "10.99.0.1\n10.99.0.2\n"
    cluster.publish({0: first, 1: second, 2: third})
    cluster.wait_ready(third)
    wait_until(lambda: all(each.status()["connected"] != [] and each.ready() for each in cluster.members))
    assert "imex_restarting" in first.events()


def test_a_killed_nvidia_imex_is_started_again(cluster: Cluster) -> None:
    first, second, _ = cluster.members
    cluster.publish({0: first, 1: second})
    cluster.start(first, second)
    cluster.wait_ready(first, second)
    for kills in (1, 2):
        os.kill(first.imex_pid(), signal.SIGKILL)
        wait_until(lambda kills=kills: first.events().count("readiness") == 2 * kills + 1)
        cluster.wait_ready(first, second)
    assert first.events().count("imex_ended") == 2


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """The folder as a file system of its own, of a few pages."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "small", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk: Path) -> Path:
    """The file that takes all there is."""
    filler = disk / "filler"
    with suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(b"x" * 4096)
    return filler


def test_a_full_disk_ends_nothing_and_leaves_no_word_that_is_not_true(cluster: Cluster) -> None:
    first, second, _ = cluster.members
    with small_disk(first.host.folder / "imexd/status") as disk:
        cluster.publish({0: first, 1: second})
        cluster.start(first, second)
        cluster.wait_ready(first, second)
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


def test_only_an_nvidia_imex_that_answers_nothing_itself_is_taken_for_hanging(cluster: Cluster) -> None:
    """About the domain every node is asked, so peers may hold that answer up for as long as they like."""
    first, second, _ = cluster.members
    cluster.publish({0: first, 1: second})
    cluster.start(first, second, HANG_LIMIT_S="1")
    cluster.wait_ready(first, second)
    pid = first.imex_pid()
    first.host.inject(slow_domain=60_000)
    wait_until(lambda: "reports nothing about this node" in first.status()["message"], 60)
    assert first.imex_pid() == pid
    assert "imex_hangs" not in first.events()
    first.host.inject(slow_domain=60_000, hang=0)
    wait_until(lambda: "imex_hangs" in first.events(), 60)
    first.host.inject()
    cluster.wait_ready(first)
    assert first.imex_pid() != pid


def test_a_peer_that_is_lost_makes_a_node_unready(cluster: Cluster) -> None:
    first, second, _ = cluster.members
    cluster.publish({0: first, 1: second})
    cluster.start(first, second)
    cluster.wait_ready(first, second)
    ip("-n", second.host.name, "link", "set", "eth0", "down")
    wait_until(lambda: not first.ready())
    assert "not connected to node 1 (10.99.0.2)" in first.status()["message"]
    ip("-n", second.host.name, "link", "set", "eth0", "up")
    cluster.wait_ready(first)


def test_a_probe_of_the_kubelet_is_answered_when_the_state_changes(cluster: Cluster) -> None:
    first = cluster.members[0]
    cluster.start(first)
    wait_until(lambda: "no ComputeDomainClique" in first.status()["message"])
    assert first.get("/readyz")[0] == 503
    code = f"import urllib.request as r; q = r.Request('http://{first.host.address}:8097/readyz'); "
    code += "q.add_header('User-Agent', 'kube-probe/1.36'); print(r.urlopen(q).status)"
    command = ["ip", "netns", "exec", first.host.name, sys.executable, "-S", "-c", code]
    probe = subprocess.Popen(command, stdout=subprocess.PIPE)
    cluster.publish({0: first})
    assert probe.communicate(timeout=20)[0].strip() == b"200"


def test_a_membership_that_goes_stops_nvidia_imex_until_it_is_back(cluster: Cluster) -> None:
    first, second, _ = cluster.members
    cluster.publish({0: first, 1: second})
    cluster.start(first, second)
    cluster.wait_ready(first, second)
    cluster.write({"version": 1})
    wait_until(lambda: first.imex_pid() == 0)
    cluster.publish({0: first, 1: second})
    cluster.wait_ready(first, second)


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
    cluster.publish({0: first, 1: second})
    cluster.start(first, second)
    cluster.wait_ready(first, second)
    pid = first.imex_pid()
    cluster.write({"version": 2, "metadata": {"name": f"{DOMAIN}.{CLIQUE}"}, "daemons": {"by": "name"}})
    wait_until(lambda: "membership_unreadable" in first.events())
    cluster.start(third)
    wait_until(lambda: "writes membership files of version 2" in third.status()["message"])
    assert first.get("/readyz") == (200, "connected to 1 of 1 peers")
    assert first.imex_pid() == pid


def test_tls_is_used_where_the_pod_has_certificates(cluster: Cluster) -> None:
    first, second, _ = cluster.members
    tls = cluster.folder / "imex-tls"
    tls.mkdir()
    write_authority(tls, *NAMES)
    cluster.publish({0: first, 1: second})
    cluster.start(first, second)
    cluster.wait_ready(first, second)
    assert "IMEX_ENABLE_AUTH_ENCRYPTION=1\n" in (first.host.folder / "imexd" / "imexd.cfg").read_text()
    write_authority(tls, *NAMES)
    os.kill(first.imex_pid(), signal.SIGKILL)
    wait_until(lambda: "not connected" in first.status()["message"])


def test_renewed_certificates_are_taken_up_without_any_other_change(cluster: Cluster) -> None:
    first, second, _ = cluster.members
    tls = cluster.folder / "imex-tls"
    tls.mkdir()
    write_authority(tls, *NAMES)
    cluster.publish({0: first, 1: second})
    cluster.start(first, second, TLS_CHECK_S="1")
    cluster.wait_ready(first, second)
    for _ in range(2):  # after the start, and after a reload
        before = first.events().count("imex_reloaded")
        write_authority(tls, *NAMES)
        wait_until(lambda before=before: first.events().count("imex_reloaded") > before)


def test_a_daemon_of_another_domain_is_a_stranger_even_where_it_is_listed_as_a_member(cluster: Cluster) -> None:
    """By the certificates that the controller makes: each domain has an authority of its own."""
    first, second, stranger = cluster.members
    for domain in ("ours", "theirs"):
        folder = cluster.folder / domain
        folder.mkdir()
        for name, content in make_certificates(domain, NAMES, datetime.now(UTC), None).files.items():
            (folder / name).write_bytes(content)
    cluster.publish(dict(enumerate(cluster.members)))
    cluster.start(first, second, TLS_DIRECTORY=str(cluster.folder / "ours"))
    cluster.start(stranger, TLS_DIRECTORY=str(cluster.folder / "theirs"))
    wait_until(lambda: "not connected to node 2" in first.status()["message"] and first.status()["connected"] == [1])
    wait_until(lambda: stranger.status()["message"].startswith("not connected to node 0"))
    assert stranger.status()["connected"] == []
    assert not first.ready()
    assert not stranger.ready()


@pytest.mark.parametrize("stubborn", [False, True])
def test_sigterm_ends_nvidia_imex_too(cluster: Cluster, stubborn: bool) -> None:
    first = cluster.members[0]
    first.host.inject(**({"ignore_sigterm": 0} if stubborn else {}))
    cluster.publish({0: first})
    cluster.start(first)
    cluster.wait_ready(first)
    assert first.process is not None
    first.process.terminate()
    assert first.process.wait(20) == 0
    assert first.imex_pid() == 0
    assert ("imex_killed" in first.events()) is stubborn
    assert not first.ready()


def test_a_node_without_fabric_is_ready_and_runs_nothing(cluster: Cluster) -> None:
    first = cluster.members[0]
    cluster.start(first, CLIQUE_ID="")
    cluster.wait_ready(first)
    assert first.imex_pid() == 0


def test_a_missing_program_ends_the_daemon_with_its_reason(cluster: Cluster) -> None:
    first = cluster.members[0]
    cluster.publish({0: first})
    cluster.start(first, PATH="/usr/sbin:/usr/bin:/bin")
    assert first.process is not None
    assert first.process.wait(20) == 1
    assert "nvidia-imex is not in this container" in (first.host.folder / "log").read_text()


def test_memory_of_the_whole_daemon_is_at_most_40_mib(cluster: Cluster) -> None:
    cluster.publish(dict(enumerate(cluster.members)))
    cluster.start(*cluster.members)
    cluster.wait_ready(*cluster.members)
    process = cluster.members[0].process
    assert process is not None
    status = Path(f"/proc/{process.pid}/status").read_text()
    assert int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) <= 40 * 1024
