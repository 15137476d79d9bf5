"""Who gets nothing, and how they are told."""

import pytest

from tests.e2e.computedomain.jobs import PATIENCE_S, Job, Space, namespace
from tests.support.cluster import Cluster, CommandFailed, Object, wait_until
from tests.support.manifests import claim, config, pod, request


def stolen(job: Job, kind: str = "ComputeDomainChannelConfig", device_class: str = "channel") -> Object:
    """A claim with the domain's ID, as somebody else would write it."""
    parameters = {"apiVersion": "resource.nvidia.com/v1beta1", "kind": kind, "domainID": job.uid()}
    classes = {
        "channel": "compute-domain-default-channel.nvidia.com",
        "daemon": "compute-domain-daemon.nvidia.com",
    }
    wanted = request(device_class, classes[device_class])
    found: Object = claim("stolen", "", wanted, configs=(config("compute-domain.nvidia.com", parameters),))
    return found


@pytest.mark.parametrize(
    ("kind", "device_class", "node", "reason"),
    [
        ("ComputeDomainChannelConfig", "channel", "n1", "in another namespace"),
        ("ComputeDomainChannelConfig", "channel", "n3", "ForeignComputeDomain: .*of another namespace"),
        ("ComputeDomainDaemonConfig", "daemon", "n3", "IMEX daemons are the controller's"),
    ],
    ids=["channel on a member", "channel elsewhere", "daemon"],
)
def test_a_claim_in_another_namespace_with_the_domains_id_gets_nothing_and_is_told_why(
    here: Space, kind: str, device_class: str, node: str, reason: str
) -> None:
    job = here.job("train", 1)
    job.run(a="n1")
    before = cdi_files(here.cluster)
    evil = Space(here.driver, f"{here.name}-evil")
    with namespace(here.cluster, evil.name):
        theft = stolen(job, kind, device_class)
        theft["metadata"]["namespace"] = evil.name
        here.cluster.create(evil.where("resource.k8s.io/v1", "resourceclaims"), theft)
        thief = pod("thief", evil.name, claims=("stolen",), node=node)
        here.cluster.create(evil.where("v1", "pods"), thief)
        evil.wait_told("thief", reason)
        assert evil.phase("thief") == "Pending"
        assert cdi_files(here.cluster) == before
        assert set(job.indexes()) == {"n1"}
        assert set(job.daemons()) == {"n1"}
    assert "OK" in job.check("a")


def cdi_files(cluster: Cluster) -> list[str]:
    script = "ls /var/run/cdi | grep compute-domain; true"
    return [f"{node} {cluster.in_node(node, 'sh', '-c', script)}" for node in ("n1", "n3")]


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"kind": "ComputeDomainChannelConfig", "domainID": ""}, "domainID"),
        ({"kind": "ComputeDomainChannelConfig", "domainID": "x", "allocationMode": "Some"}, "allocationMode"),
        ({"kind": "ComputeDomainChannelConfig", "domainID": "x", "domain": "y"}, "domain"),
        ({"kind": "ComputeDomainConfig", "domainID": "x"}, "kind"),
        ({"kind": "ComputeDomainDaemonConfig"}, "domainID"),
    ],
    ids=["empty domain", "unknown mode", "unknown field", "unknown kind", "daemon without domain"],
)
def test_a_malformed_config_is_refused_when_it_is_created(here: Space, parameters: Object, words: str) -> None:
    entry = config("compute-domain.nvidia.com", {"apiVersion": "resource.nvidia.com/v1beta1", **parameters})
    wanted = request("channel", "compute-domain-default-channel.nvidia.com")
    with pytest.raises(CommandFailed, match=rf"denied the request.*{words}"):
        here.cluster.apply(claim("malformed", here.name, wanted, configs=(entry,)))


def test_a_second_domain_on_a_node_is_told_who_is_there_and_gets_its_turn(here: Space) -> None:
    first, second = here.job("first", 1), here.job("second", 1)
    first.run(a="n1")
    second.start(b="n1")
    here.wait_told("b", f"WaitingForComputeDomain: .*n1 is used by ComputeDomain {here.name}/first")
    assert f"{here.name}/first" in second.wait_condition("Degraded", "True", "NodeOccupied")
    assert "OK" in first.check("a")
    here.end("a")
    second.wait_running("b")
    second.wait_ready(1)
    wait_until("the first has no daemon", lambda: not first.daemons(), PATIENCE_S)
