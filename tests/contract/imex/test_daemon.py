"""The IMEX daemon on real namespaces, with the simulated nvidia-imex: it connects to its peers and says so."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from api.clique import DAEMON_LOCK_FILE
from kubeletplugin.disk import is_locked
from tests.contract.imex.imex_hosts import ip, wait_until
from tests.contract.imex.imex_members import CLIQUE, DOMAIN, Cluster, cluster

__all__ = ["cluster"]


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
    cluster.connect(first, second)
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


def test_addresses_instead_of_names_stop_nobody_for_a_newcomer_that_has_none_yet(cluster: Cluster) -> None:
    first, second, third = cluster.members
    cluster.connect(first, second, IMEX_NODE_LIST="addresses")
    pid = first.imex_pid()
    cluster.publish({0: first, 1: second, 2: None})
    time.sleep(1)
    assert (first.imex_pid(), first.ready()) == (pid, True)
    cluster.publish({0: first, 1: second, 2: third})
    cluster.start(third, IMEX_NODE_LIST="addresses")
    wait_until(lambda: all(len(each.status().get("connected", ())) == 2 for each in cluster.members))
    assert first.events().count("imex_started") == 2


def test_a_daemon_that_is_killed_is_seen_to_be_dead_whatever_it_said_last(cluster: Cluster) -> None:
    first, second, _ = cluster.members
    cluster.connect(first, second)
    lock = first.host.folder / "imexd" / Path(DAEMON_LOCK_FILE).name
    assert is_locked(lock)
    assert first.process
    first.process.kill()
    first.process.wait()
    assert (first.ready(), is_locked(lock)) == (True, False)
    os.kill(first.imex_pid(), signal.SIGKILL)  # ends with its container
    cluster.start(first)
    wait_until(lambda: is_locked(lock))
    cluster.wait_ready(first, second)


def test_a_killed_nvidia_imex_is_started_again(cluster: Cluster) -> None:
    first, second, _ = cluster.members
    cluster.connect(first, second)
    for kills in (1, 2):
        os.kill(first.imex_pid(), signal.SIGKILL)
        wait_until(lambda kills=kills: first.events().count("readiness") == 2 * kills + 1)
        cluster.wait_ready(first, second)
    assert first.events().count("imex_ended") == 2


def test_only_an_nvidia_imex_that_answers_nothing_itself_is_taken_for_hanging(cluster: Cluster) -> None:
    """About the domain every node is asked, so peers may hold that answer up for as long as they like."""
    first, second, _ = cluster.members
    cluster.connect(first, second, HANG_LIMIT_S="1")
    pid = first.imex_pid()
    first.host.inject(slow_domain=60_000)
    wait_until(lambda: "reports nothing about this node" in first.status()["message"])
    assert first.imex_pid() == pid
    assert "imex_hangs" not in first.events()
    first.host.inject(slow_domain=60_000, hang=0)
    wait_until(lambda: "imex_hangs" in first.events())
    first.host.inject()
    cluster.wait_ready(first)
    assert first.imex_pid() != pid


def test_a_peer_that_is_lost_makes_a_node_unready(cluster: Cluster) -> None:
    first, second, _ = cluster.members
    cluster.connect(first, second)
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
