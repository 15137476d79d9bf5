"""Who gets which channels, and who can share GPU memory over NVLink with whom, as jobs find it in their containers."""

from dataclasses import dataclass

import pytest

from tests.e2e.computedomain.jobs import Job, Space, build_peer
from tests.support.cluster import CommandFailed

CHANNELS_OF_A_NODE = 2048


@dataclass(frozen=True)
class Tenants:
    """`mine` has three pods on two nodes of a clique; `theirs` has all channels, in the other clique."""

    mine: Job
    theirs: Job


@pytest.fixture(scope="module")
def tenants(shared: Space) -> Tenants:
    mine, theirs = shared.job("mine", 2), shared.job("theirs", 2, allocationMode="All")
    mine.start(a="n1", b="n2", c="n1")
    theirs.start(x="n3", y="n4")
    mine.wait_running("a", "b", "c")
    theirs.wait_running("x", "y")
    return Tenants(mine, theirs)


def test_pods_of_one_domain_share_memory_also_when_several_are_on_one_node(tenants: Tenants) -> None:
    tenants.mine.share_all_ways("a", "b")
    tenants.mine.share_all_ways("b", "c")
    tenants.mine.share_all_ways("a", "c")
    tenants.theirs.share_all_ways("x", "y")


def test_a_container_has_channel_0_or_where_it_asks_for_them_all_2048(tenants: Tenants) -> None:
    for name in ("a", "b", "c"):
        assert tenants.mine.channels(name) == ["channel0"]
    for name in ("x", "y"):
        wanted = sorted(f"channel{number}" for number in range(CHANNELS_OF_A_NODE))
        assert tenants.theirs.channels(name) == wanted


def test_two_domains_side_by_side_share_nothing(tenants: Tenants) -> None:
    with pytest.raises(CommandFailed, match=f"a is of ComputeDomain {tenants.mine.uid()}, x of {tenants.theirs.uid()}"):
        tenants.mine.share("a", "x", wait_s=0)
    with pytest.raises(CommandFailed, match="y is of ComputeDomain"):
        tenants.theirs.share("y", "b", wait_s=0)


def test_a_pod_without_a_claim_has_no_channel_on_a_members_node(tenants: Tenants) -> None:
    job = tenants.mine
    outsider = build_peer("outsider", job.template, "n1")
    del outsider["spec"]["resourceClaims"], outsider["spec"]["containers"][0]["resources"]
    job.cluster.create(job.space.where("v1", "pods"), outsider)
    job.wait_running("outsider")
    assert job.channels("outsider") == []
    with pytest.raises(CommandFailed, match="there is no IMEX channel"):
        job.share("outsider", "a", wait_s=0)


def test_a_domain_over_two_cliques_shares_memory_inside_each_and_not_across(shared: Space, tenants: Tenants) -> None:
    shared.end("a", "b", "c", "x", "y", "outsider")
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
