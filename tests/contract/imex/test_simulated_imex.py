"""The simulated IMEX programs behave as NVIDIA's do, as far as our daemon relies on it."""

import signal
import subprocess
from pathlib import Path

import pytest

from tests.contract.imex.certificates import write_authority
from tests.contract.imex.imex_hosts import Host, ip, wait_until

NAMES = [f"compute-domain-daemon-{index:04d}" for index in range(4)]


def write_hosts(host: Host, addresses: dict[str, str]) -> None:
    host.write("hosts", "".join(f"{address}\t{name}\n" for name, address in addresses.items()))


def start_all(hosts: list[Host], **settings: str) -> None:
    for host in hosts:
        host.configure([each.address for each in hosts], **settings)
        host.start()


def test_connects_all_to_all_and_says_so(hosts: list[Host]) -> None:
    start_all(hosts)
    wait_until(lambda: hosts[0].ctl("-q").stdout == "READY\n")
    wait_until(lambda: hosts[0].domain()["status"] == "UP")
    node = hosts[2].domain()["nodes"]["1"]
    assert node["status"] == "READY"
    assert node["host"] == hosts[1].address
    assert {link["status"] for link in node["connections"].values()} == {"CONNECTED"}
    assert "Domain State: UP" in hosts[0].ctl("-N").stdout


def test_a_stopped_peer_leaves_its_neighbours_ready_and_the_domain_degraded(hosts: list[Host]) -> None:
    start_all(hosts)
    wait_until(lambda: hosts[0].domain()["status"] == "UP")
    hosts[1].signal(signal.SIGTERM)
    assert hosts[1].daemon is not None
    assert hosts[1].daemon.wait(10) == 0
    wait_until(lambda: hosts[0].links() == ["CONNECTED", "RECOVERING", "CONNECTED"])
    seen = hosts[0].domain()
    assert seen["status"] == "DEGRADED"
    assert seen["nodes"]["0"]["status"] == "READY"
    assert seen["nodes"]["1"]["status"] == "UNAVAILABLE"
    assert {link["status"] for link in seen["nodes"]["1"]["connections"].values()} == {"INVALID"}
    assert hosts[1].ctl("-q").returncode != 0


def test_a_cut_network_is_noticed_and_its_healing_too(hosts: list[Host]) -> None:
    start_all(hosts[:2], IMEX_NODE_DISCONNECTED_GRACE_TIME="0")
    wait_until(lambda: hosts[0].domain()["status"] == "UP")
    ip("-n", hosts[1].name, "link", "set", "eth0", "down")
    wait_until(lambda: hosts[0].links() == ["CONNECTED", "DISCONNECTED"])
    ip("-n", hosts[1].name, "link", "set", "eth0", "up")
    wait_until(lambda: hosts[0].domain()["status"] == "UP")


def test_names_are_followed_through_the_hosts_file(hosts: list[Host]) -> None:
    """Unused names stay NEVER_CONNECTED; one that appears later is connected; one that moves, after SIGUSR1."""
    first, second, third = hosts
    for host in hosts:
        host.configure(NAMES)
    write_hosts(first, {NAMES[0]: first.address})
    first.start()
    wait_until(lambda: first.ctl("-q").stdout == "READY\n")
    wait_until(lambda: first.links()[1:] == ["NEVER_CONNECTED"] * 3)
    for host in hosts:
        write_hosts(host, {NAMES[0]: first.address, NAMES[1]: second.address})
    second.start()
    wait_until(lambda: first.links()[:2] == ["CONNECTED", "CONNECTED"])
    assert first.domain()["status"] == "DEGRADED"
    second.stop()
    for host in hosts:
        write_hosts(host, {NAMES[0]: first.address, NAMES[1]: third.address})
    third.start()
    first.signal(signal.SIGUSR1)
    wait_until(lambda: first.domain()["nodes"]["0"]["connections"]["1"]["host"] == third.address)
    wait_until(lambda: first.links()[:2] == ["CONNECTED", "CONNECTED"])


def test_the_node_list_is_read_at_start_only(hosts: list[Host]) -> None:
    """Daemons with different node lists refuse each other, whatever the files say by now."""
    start_all(hosts[:2])
    wait_until(lambda: hosts[0].domain()["status"] == "UP")
    for host in hosts[:2]:
        host.configure([each.address for each in reversed(hosts[:2])])
    hosts[0].signal(signal.SIGUSR1)
    hosts[1].stop()
    hosts[1].start()

    def mismatched() -> bool:
        rows = hosts[0].domain()["nodes"].values()
        return "NODE_MAP_MISMATCH" in {link["status"] for row in rows for link in row["connections"].values()}

    wait_until(mismatched)


def test_a_second_sigusr1_within_five_seconds_is_ignored(hosts: list[Host]) -> None:
    start_all(hosts[:1])
    wait_until(lambda: hosts[0].ctl("-q").stdout == "READY\n")
    hosts[0].signal(signal.SIGUSR1)
    wait_until(lambda: "Restarting all client connections" in hosts[0].log())
    hosts[0].signal(signal.SIGUSR1)
    wait_until(lambda: "Ignoring SIGUSR1" in hosts[0].log())


def test_a_host_that_is_not_in_the_node_list_does_not_start(hosts: list[Host]) -> None:
    hosts[0].configure([hosts[1].address])
    assert hosts[0].start().wait(10) == 1
    assert "No matching network interface found" in hosts[0].log()


@pytest.mark.parametrize("fault", ["hang", "die", "degraded"])
def test_faults_show_at_the_peer(hosts: list[Host], fault: str) -> None:
    start_all(hosts[:2])
    wait_until(lambda: hosts[0].domain()["status"] == "UP")
    hosts[1].inject(**{fault: 0})
    wait_until(lambda: hosts[0].links() != ["CONNECTED", "CONNECTED"])
    hosts[1].inject()
    if fault == "die":
        assert hosts[1].daemon is not None
        assert hosts[1].daemon.wait(10) == 1
        hosts[1].start()
    wait_until(lambda: hosts[0].domain()["status"] == "UP")


def test_a_slow_start_is_initializing(hosts: list[Host]) -> None:
    hosts[0].inject(slow=3_600_000)
    start_all(hosts[:1])
    wait_until(lambda: hosts[0].ctl("-q").stdout == "INITIALIZING\n")
    hosts[0].inject()
    wait_until(lambda: hosts[0].ctl("-q").stdout == "READY\n")


def test_full_quorum_waits_for_the_last_node(hosts: list[Host]) -> None:
    for host in hosts[:2]:
        host.configure([each.address for each in hosts[:2]], IMEX_WAIT_FOR_QUORUM="FULL")
    hosts[0].start()
    wait_until(lambda: hosts[0].ctl("-q").stdout == "WAITING_FOR_PEERS\n")
    hosts[1].start()
    wait_until(lambda: hosts[0].ctl("-q").stdout == "READY\n")


def tls_settings(folder: Path, name: str) -> dict[str, str]:
    ends = ("SERVER", "CLIENT")
    return {
        "IMEX_ENABLE_AUTH_ENCRYPTION": "1",
        "IMEX_AUTH_ENCRYPTION_MODE": "SSL_TLS",
        "IMEX_AUTH_SOURCE": "FILE",
        **{f"IMEX_{end}_KEY": str(folder / "tls.key") for end in ends},
        **{f"IMEX_{end}_CERT": str(folder / "tls.crt") for end in ends},
        **{f"IMEX_{end}_CERT_AUTH": str(folder / "ca.crt") for end in ends},
        "IMEX_SECURITY_TARGET_OVERRIDE": name,
    }


def test_tls_connects_daemons_of_one_authority_only(hosts: list[Host], tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    for folder in (ours, theirs):
        folder.mkdir()
        write_authority(folder, "domain-1")
    nodes = [host.address for host in hosts]
    for host, folder in zip(hosts, (ours, ours, theirs), strict=True):
        host.configure(nodes, **tls_settings(folder, "domain-1"))
        host.start()
    wait_until(lambda: hosts[0].ctl("-q").stdout == "READY\n")
    wait_until(lambda: hosts[0].links()[:2] == ["CONNECTED", "CONNECTED"])
    wait_until(lambda: hosts[2].links()[2] == "CONNECTED")
    assert hosts[0].links()[2] == "NEVER_CONNECTED"
    assert hosts[2].links()[:2] == ["NEVER_CONNECTED", "NEVER_CONNECTED"]


def test_memory_of_a_daemon_stays_small(hosts: list[Host]) -> None:
    start_all(hosts)
    wait_until(lambda: hosts[0].domain()["status"] == "UP")
    children = subprocess.run(
        ["ip", "netns", "pids", hosts[0].name], capture_output=True, text=True, check=True
    ).stdout.split()
    status = Path(f"/proc/{children[0]}/status").read_text()
    resident_kib = int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1])
    assert resident_kib < 20 * 1024
