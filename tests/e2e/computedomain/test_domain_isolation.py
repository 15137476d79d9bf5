"""Who gets which channels, and who can share GPU memory over NVLink with whom, as jobs find it in their containers."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import permutations

import pytest

from tests.e2e.computedomain.jobs import Job, Space, build_peer, namespace
from tests.support.cluster import CommandFailed, Object, path

CHANNELS_OF_A_NODE = 2048
LISTENING = """
import json
ports = set()
for table in ("/proc/net/tcp", "/proc/net/tcp6"):
    for line in open(table).readlines()[1:]:
        address, port = line.split()[1].split(":")
        loopback = address.endswith("7F") or address == "0" * 24 + "01000000"
        if line.split()[3] == "0A" and not loopback:
            ports.add(int(port, 16))
print(json.dumps(sorted(ports)))
"""


@dataclass(frozen=True)
class Tenants:
    """`mine` has three pods on two nodes of a clique; `theirs`, in another namespace, has all channels of the other."""

    mine: Job
    theirs: Job


@pytest.fixture(scope="module")
def tenants(shared: Space) -> Iterator[Tenants]:
    elsewhere = Space(shared.driver, f"{shared.name}-theirs")
    with namespace(shared.cluster, elsewhere.name):
        # Names are their owners' own business: both domains have the same one.
        mine, theirs = shared.job("train", 2), elsewhere.job("train", 2, allocationMode="All")
        mine.start(a="n1", b="n2", c="n1")
        theirs.start(x="n3", y="n4")
        mine.wait_running("a", "b", "c")
        theirs.wait_running("x", "y")
        yield Tenants(mine, theirs)


def test_pods_of_one_domain_share_memory_also_when_several_are_on_one_node(tenants: Tenants) -> None:
    pairs = [(tenants.mine, *pair) for pair in permutations("abc", 2)]
    pairs += [(tenants.theirs, *pair) for pair in permutations("xy", 2)]
    for domain, one, other in pairs:
        assert "share memory" in domain.share(one, other)


def test_a_container_has_channel_0_or_where_it_asks_for_them_all_2048(tenants: Tenants) -> None:
    for name in ("a", "b", "c"):
        assert tenants.mine.channels(name) == ["channel0"]
    for name in ("x", "y"):
        wanted = sorted(f"channel{number}" for number in range(CHANNELS_OF_A_NODE))
        assert tenants.theirs.channels(name) == wanted


def test_two_domains_side_by_side_in_two_namespaces_share_nothing(tenants: Tenants) -> None:
    mine, theirs = tenants.mine, tenants.theirs
    with pytest.raises(CommandFailed, match=f"a is of ComputeDomain {mine.uid()}, x of {theirs.uid()}"):
        mine.share("a", "x", wait_s=0, among=theirs)
    with pytest.raises(CommandFailed, match="y is of ComputeDomain"):
        theirs.share("y", "b", wait_s=0, among=mine)
    for job, nodes in ((mine, {"n1", "n2"}), (theirs, {"n3", "n4"})):
        assert set(job.daemons()) == nodes
        job.wait_ready(2)


def test_a_pod_without_a_claim_has_no_channel_on_a_members_node(tenants: Tenants) -> None:
    job = tenants.mine
    outsider = build_peer("outsider", job.template, "n1")
    del outsider["spec"]["resourceClaims"], outsider["spec"]["containers"][0]["resources"]
    job.cluster.create(job.space.where("v1", "pods"), outsider)
    job.wait_running("outsider")
    assert job.channels("outsider") == []
    with pytest.raises(CommandFailed, match="there is no IMEX channel"):
        job.share("outsider", "a", wait_s=0)


def selects(selector: Object, labels: Object) -> bool:
    """What a selector of pods (a LabelSelector with `Exists`, as the chart has it) says of these labels."""
    assert set(selector) == {"matchExpressions"}
    return all(each["operator"] == "Exists" and each["key"] in labels for each in selector["matchExpressions"])


def test_the_charts_network_policy_opens_imex_ports_to_daemons_alone_and_forgets_none(tenants: Tenants) -> None:
    """By the ports on which a daemon and its nvidia-imex listen; enforcing it is the network plugin's part."""
    job, driver = tenants.mine, tenants.mine.space.driver
    policies = job.cluster.list(path("networking.k8s.io/v1", "networkpolicies", namespace=driver.namespace))
    daemon = job.daemons()["n1"]
    (policy,) = [
        each["spec"]
        for each in policies
        if "matchExpressions" in each["spec"]["podSelector"]
        and selects(each["spec"]["podSelector"], daemon["metadata"]["labels"])
    ]
    assert policy["policyTypes"] == ["Ingress"]
    for other in driver.controllers():
        assert not selects(policy["podSelector"], other["metadata"]["labels"])
    to_daemons, to_all = set(), set()
    for rule in policy["ingress"]:
        ports = {each["port"] for each in rule["ports"]}
        (to_daemons if rule.get("from") else to_all).update(ports)
        for peer in rule.get("from", ()):
            assert set(peer) == {"podSelector"}, "of this namespace alone"
            assert selects(peer["podSelector"], daemon["metadata"]["labels"])
    script = ("python3", "-c", LISTENING)
    listening = json.loads(job.cluster.in_pod(daemon["metadata"]["name"], *script, namespace=driver.namespace))
    (probed,) = {each["containerPort"] for each in daemon["spec"]["containers"][0]["ports"] if each["name"] == "http"}
    assert to_all == {probed}
    assert to_daemons == set(listening) - {probed}
    assert len(to_daemons) == 2


def test_a_domain_over_two_cliques_shares_memory_inside_each_and_not_across(shared: Space, tenants: Tenants) -> None:
    shared.end("a", "b", "c", "outsider")
    tenants.theirs.space.end("x", "y")
    wide = shared.job("wide", 4)
    wide.run(a="n1", b="n2", c="n3", d="n4")
    domain = wide.wait_ready(4)
    nodes = {each["name"]: each for each in domain["status"]["nodes"]}
    assert nodes["n1"]["cliqueID"] == nodes["n2"]["cliqueID"] != nodes["n3"]["cliqueID"] == nodes["n4"]["cliqueID"]
    assert [sorted(nodes[each]["index"] for each in pair) for pair in (("n1", "n2"), ("n3", "n4"))] == [[0, 1], [0, 1]]
    wide.share_all_ways("a", "b")
    wide.share_all_ways("c", "d")
    with pytest.raises(CommandFailed, match="is in clique"):
        wide.share("a", "c", wait_s=0)
