"""How IMEX daemons encrypt: with what the controller signs for the keys of their nodes, and with nothing else."""

import time
from typing import Any

import pytest

from api.clique import ANY_NODE_NAME, node_name
from kubeletplugin.make_key import make_key
from tests.contract.imex.certificates import Authority
from tests.contract.imex.imex_hosts import wait_until
from tests.contract.imex.imex_members import CLIQUE, DOMAIN, Cluster, Member, cluster

__all__ = ["cluster"]


class Encrypted:
    """What controller and node plugins tell the daemons of an encrypted domain."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self.authorities = [Authority()]
        """The newest signs who comes."""
        self.keys = {member.name: make_key() for member in cluster.members}
        self._signed: dict[tuple[str, int], str] = {}

    def describe(self, *members: Member, awaited: Member | None = None) -> dict[str, Any]:
        """The ComputeDomainClique; `awaited` has no address yet."""
        return {
            "metadata": {"name": f"{DOMAIN}.{CLIQUE}"},
            "maxNodes": 4,
            "tls": True,
            "authorities": [authority.certificate for authority in self.authorities],
            "daemons": [self._entry(index, member, awaited) for index, member in enumerate(members)],
        }

    def _entry(self, index: int, member: Member, awaited: Member | None) -> dict[str, Any]:
        public = self.keys[member.name]["publicKey"]
        signed = public, index
        if signed not in self._signed:
            names = (node_name(index), ANY_NODE_NAME, "localhost")
            self._signed[signed] = self.authorities[-1].sign(public, *names)
        return {
            "nodeName": member.name,
            "ipAddress": "" if member is awaited else member.host.address,
            "cliqueID": CLIQUE,
            "index": index,
            "publicKey": public,
            "certificate": self._signed[signed],
        }

    def publish(self, *members: Member, awaited: Member | None = None) -> None:
        clique = self.describe(*members, awaited=awaited)
        for member in self._cluster.members:
            member.tell(self.add_key(clique, member))

    def add_key(self, clique: dict[str, Any], member: Member) -> dict[str, Any]:
        return {**clique, "key": self.keys[member.name]["privateKey"]}

    def connect(self, *members: Member, **settings: str) -> None:
        self.publish(*members)
        self._cluster.start(*members, **settings)
        self._cluster.wait_ready(*members)


def reloads(*members: Member) -> list[int]:
    return [member.events().count("imex_reloaded") for member in members]


def configuration(member: Member) -> list[str]:
    return (member.host.folder / "imexd/imexd.cfg").read_text().splitlines()


@pytest.mark.parametrize(("node_list", "server_name"), [("names", ""), ("addresses", ANY_NODE_NAME)])
def test_members_connect_by_the_certificates_of_their_own_keys(
    cluster: Cluster, node_list: str, server_name: str
) -> None:
    Encrypted(cluster).connect(*cluster.members, IMEX_NODE_LIST=node_list)
    first = cluster.members[0]
    assert "IMEX_ENABLE_AUTH_ENCRYPTION=1" in configuration(first)
    assert f"IMEX_SECURITY_TARGET_OVERRIDE={server_name}" in configuration(first)
    files = {file.name: file.stat().st_mode & 0o777 for file in (first.host.folder / "imexd/tls").iterdir()}
    assert files == {"ca.crt": 0o600, "tls.crt": 0o600, "tls.key": 0o600}


@pytest.mark.parametrize("is_encrypted", [False, None])
def test_a_domain_without_encryption_uses_no_key_and_no_certificate(
    cluster: Cluster, is_encrypted: bool | None
) -> None:
    first, second, _ = cluster.members
    told = Encrypted(cluster)
    clique = told.describe(first, second)
    clique.pop("tls")
    if is_encrypted is not None:
        clique["tls"] = is_encrypted
    for member in (first, second):
        member.tell(told.add_key(clique, member))
    cluster.start(first, second)
    cluster.wait_ready(first, second)
    assert "IMEX_ENABLE_AUTH_ENCRYPTION=0" in configuration(first)
    assert not (first.host.folder / "imexd/tls").exists()


@pytest.mark.parametrize(
    ("missing", "told"),
    [
        ("publicKey", "has no certificate yet: the controller has found no key of the node"),
        ("certificate", "has no certificate yet: the controller has not signed its key"),
        ("key", "and not that key"),
    ],
)
def test_without_its_key_or_certificate_nothing_is_started_and_the_daemon_says_what_is_missing(
    cluster: Cluster, missing: str, told: str
) -> None:
    first, second, _ = cluster.members
    encrypted = Encrypted(cluster)
    complete = encrypted.describe(first, second)
    lacking = encrypted.describe(first, second)
    lacking["daemons"][0].pop(missing, None)
    first.tell(lacking if missing == "key" else encrypted.add_key(lacking, first))
    second.tell(encrypted.add_key(complete, second))
    cluster.start(first, second)
    wait_until(lambda: f"node {first.name} has" in first.status()["message"] and told in first.status()["message"])
    assert told in first.get("/readyz")[1]
    assert first.imex_pid() == 0
    first.tell(encrypted.add_key(complete, first))
    cluster.wait_ready(first, second)
    assert first.events().count("imex_started") == 1


def test_who_is_connected_goes_on_with_what_it_has_while_a_new_key_is_not_signed(cluster: Cluster) -> None:
    first, second, _ = cluster.members
    encrypted = Encrypted(cluster)
    encrypted.connect(first, second)
    pid, before = first.imex_pid(), reloads(first, second)
    first.tell(encrypted.describe(first, second))  # the node has another key by now
    time.sleep(1.5)
    assert first.get("/readyz") == (200, "connected to 1 of 1 peers")
    assert reloads(first, second) == before
    encrypted.keys[first.name] = make_key()
    encrypted.publish(first, second)
    wait_until(lambda: reloads(first) == [before[0] + 1])
    key = first.host.folder / "imexd/tls/tls.key"
    assert key.read_text() == encrypted.keys[first.name]["privateKey"]
    cluster.wait_ready(first, second)
    assert first.imex_pid() == pid
    assert reloads(second) == before[1:], "it trusts the same authority as before"


@pytest.mark.parametrize("announced", [False, True])
def test_a_new_authority_that_comes_with_a_new_member_takes_one_signal(cluster: Cluster, announced: bool) -> None:
    """As from a controller that has been started anew: nvidia-imex ignores a second signal for 5 s.

    `announced`: the member is told of before it has an address.
    """
    first, second, third = cluster.members
    encrypted = Encrypted(cluster)
    encrypted.connect(first, second)
    pids, before = (first.imex_pid(), second.imex_pid()), reloads(first, second)
    encrypted.authorities.append(Authority())
    if announced:
        encrypted.publish(*cluster.members, awaited=third)
        time.sleep(2)
        assert reloads(first, second) == before
    encrypted.publish(*cluster.members)
    cluster.start(third)
    cluster.wait_ready(third)
    wait_until(lambda: all(len(each.status().get("connected", ())) == 2 for each in cluster.members))
    time.sleep(1.5)
    assert reloads(first, second) == [count + 1 for count in before]
    assert (first.imex_pid(), second.imex_pid()) == pids
    authorities = (first.host.folder / "imexd/tls/ca.crt").read_text()
    assert all(authority.certificate in authorities for authority in encrypted.authorities)


def test_a_daemon_of_another_domain_is_a_stranger_even_where_it_is_listed_as_a_member(cluster: Cluster) -> None:
    first, _, stranger = cluster.members
    ours, theirs = Encrypted(cluster), Encrypted(cluster)
    ours.publish(*cluster.members)
    stranger.tell(theirs.add_key(theirs.describe(*cluster.members), stranger))
    cluster.start(*cluster.members)
    wait_until(lambda: "not connected to node 2" in first.status()["message"] and first.status()["connected"] == [1])
    wait_until(lambda: stranger.status()["message"].startswith("not connected to node 0"))
    assert stranger.status()["connected"] == []
    assert not first.ready()
    assert not stranger.ready()
