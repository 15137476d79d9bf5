"""What the controller reads from other people's objects, and what `partita explain` makes of them."""

from typing import Any

from api.ref import Ref
from controller.computedomain.parse import parse_claim, parse_domain, parse_fabric, parse_pod
from controller.computedomain.state import ChannelClaim, DaemonClaim, NodeFabric, Phase
from controller.explain import PodFacts, explain_pod, list_domains

DRIVER = "compute-domain.nvidia.com"
LABEL = "resource.nvidia.com/computeDomain"


def channel_config(uid: str, source: str = "FromClaim", **changes: Any) -> dict[str, Any]:
    parameters = {
        "apiVersion": "resource.nvidia.com/v1beta1",
        "kind": "ComputeDomainChannelConfig",
        "domainID": uid,
        **changes,
    }
    return {"source": source, "requests": ["channel"], "opaque": {"driver": DRIVER, "parameters": parameters}}


def claim(*configs: dict[str, Any], reserved: bool = True, device: str = "channel-0") -> dict[str, Any]:
    result = {"request": "channel", "driver": DRIVER, "pool": "node-1", "device": device}
    consumers = [{"resource": "pods", "name": "worker-0", "uid": "p"}] if reserved else []
    allocation = {
        "devices": {"results": [result], "config": list(configs)},
        "allocationTimestamp": "2026-01-01T00:00:10Z",
    }
    metadata = {"name": "c", "namespace": "team", "uid": "u", "creationTimestamp": "2026-01-01T00:00:00Z"}
    return {"metadata": metadata, "status": {"allocation": allocation, "reservedFor": consumers}}


def test_an_allocated_and_reserved_channel_is_a_member_of_its_domain() -> None:
    parsed = parse_claim(claim(channel_config("d1")))
    assert isinstance(parsed, ChannelClaim)
    assert (parsed.domain_uid, parsed.node, parsed.allocated.at) == ("d1", "node-1", 1767225610.0)
    assert [pod.name for pod in parsed.pods] == ["worker-0"]


def test_a_channel_that_is_reserved_for_a_group_of_pods_is_a_member_too() -> None:
    """With DRAWorkloadResourceClaims `reservedFor` names the PodGroup, and none of its pods."""
    raw = claim(channel_config("d1"))
    group = {"apiGroup": "scheduling.k8s.io", "resource": "podgroups", "name": "workers", "uid": "g"}
    raw["status"]["reservedFor"] = [group]
    parsed = parse_claim(raw)
    assert isinstance(parsed, ChannelClaim) and (parsed.domain_uid, parsed.pods) == ("d1", ())


def test_the_claims_own_config_beats_that_of_its_class_and_a_later_one_an_earlier_one() -> None:
    parsed = parse_claim(claim(channel_config("d2"), channel_config("d3"), channel_config("d1", "FromClass")))
    assert parsed is not None and parsed.domain_uid == "d3"


def test_a_config_for_a_request_is_for_each_of_its_alternatives() -> None:
    """As the node plugin reads it (`kubeletplugin.model.claims`)."""
    raw = claim(channel_config("d1"))
    (result,) = raw["status"]["allocation"]["devices"]["results"]
    result["request"] = "channel/first"
    parsed = parse_claim(raw)
    assert parsed is not None and parsed.domain_uid == "d1"
    result["request"] = "other/first"
    assert parse_claim(raw) is None


def test_a_claim_that_nobody_uses_or_that_holds_no_channel_or_is_malformed_concerns_nobody() -> None:
    assert parse_claim(claim(channel_config("d1"), reserved=False)) is None
    assert parse_claim(claim(channel_config("d1"), device="daemon-0")) is None
    assert parse_claim(claim(channel_config("d1", allocationMode="Some"))) is None
    assert parse_claim(claim()) is None
    assert parse_claim({"metadata": {"name": "c", "namespace": "n", "uid": "u"}}) is None


def test_a_users_claim_with_our_label_is_no_daemons_claim() -> None:
    theirs = claim(channel_config("d1"))
    theirs["metadata"]["labels"] = {LABEL: "d9"}
    parsed = parse_claim(theirs)
    assert isinstance(parsed, ChannelClaim) and parsed.domain_uid == "d1"
    ours = {
        "metadata": {
            "name": "c",
            "namespace": "driver",
            "uid": "u",
            "labels": {LABEL: "d1"},
            "annotations": {"resource.nvidia.com/node": "node-1"},
            "ownerReferences": [{"uid": "clique"}],
        }
    }
    assert parse_claim(ours) == DaemonClaim(Ref("ResourceClaim", "driver", "c", "u"), "d1", "node-1", "clique")


def pod(**status: Any) -> dict[str, Any]:
    metadata = {
        "name": "p",
        "namespace": "driver",
        "uid": "u",
        "labels": {LABEL: "d1", f"{LABEL}.cliqueID": "f.0"},
        "annotations": {"resource.nvidia.com/node": "node-1"},
    }
    return {"metadata": metadata, "status": status}


def test_a_daemon_pod_is_as_far_as_its_status_says() -> None:
    running = {"containerStatuses": [{"state": {"running": {}}}]}
    ready = {**running, "podIP": "10.0.0.1", "conditions": [{"type": "Ready", "status": "True"}]}
    ended = {"terminated": {"message": "Error: the plugin is too old\n"}}
    crash = {"containerStatuses": [{"state": {"waiting": {"reason": "CrashLoopBackOff"}}, "lastState": ended}]}
    unfit = {"conditions": [{"type": "PodScheduled", "status": "False", "message": "0/7 nodes are available"}]}
    seen = [parse_pod(pod(**status)) for status in ({}, running, ready, {"phase": "Failed"}, crash, unfit)]
    parsed = [each for each in seen if each is not None]
    phases = [Phase.PENDING, Phase.RUNNING, Phase.READY, Phase.FINISHED, Phase.PENDING, Phase.PENDING]
    assert [each.phase for each in parsed] == phases
    assert parsed[2].address == "10.0.0.1"
    assert parsed[4].message == "CrashLoopBackOff: Error: the plugin is too old"
    assert "no node fits" in parsed[5].message


def test_a_pod_is_lost_when_it_is_said_to_be_unready_while_its_container_is_ready() -> None:
    """As the node lifecycle controller leaves it; a kubelet that speaks for itself changes both."""

    def seen(container: bool, condition: str) -> float | None:
        told = {"type": "Ready", "status": condition, "lastTransitionTime": "2026-01-01T00:00:10Z"}
        containers = [{"ready": container, "state": {"running": {}}}]
        parsed = parse_pod(pod(containerStatuses=containers, conditions=[told]))
        assert parsed is not None
        return parsed.lost_at

    assert seen(container=True, condition="False") == 1767225610.0
    assert seen(container=False, condition="False") is None
    assert seen(container=True, condition="True") is None


def test_a_nodes_clique_is_an_attribute_of_its_channels() -> None:
    def node_slice(attributes: dict[str, Any]) -> dict[str, Any]:
        return {"spec": {"nodeName": "n", "devices": [{"name": "channel-0", "attributes": attributes}]}}

    assert parse_fabric(node_slice({"cliqueID": {"string": "f.1"}})) == NodeFabric("n", "f.1")
    assert parse_fabric(node_slice({})) == NodeFabric("n", "")
    keyed = node_slice({"cliqueID": {"string": "f.1"}})
    keyed["spec"]["devices"].append({"name": "daemon-0", "attributes": {"imexPublicKey": {"string": "A+/="}}})
    assert parse_fabric(keyed) == NodeFabric("n", "f.1", "A+/=")
    assert parse_fabric({"spec": {"nodeName": "n", "devices": []}}) is None


def domain(reason: str, **status: Any) -> dict[str, Any]:
    conditions = [{"type": "Ready", "status": "False", "reason": reason, "message": "because"}]
    return {
        "metadata": {"name": "train", "namespace": "team", "uid": "d1", "generation": 1},
        "spec": {"numNodes": 2, "channel": {"resourceClaimTemplate": {"name": "t"}}},
        "status": {"conditions": conditions, "progress": "1/2", **status},
    }


def clique(**entry: Any) -> dict[str, Any]:
    daemon = {"nodeName": "node-1", "ipAddress": "10.0.0.1", "cliqueID": "f.0", "index": 0, **entry}
    return {"metadata": {"name": "d1.f.0"}, "domainName": "train", "domainNamespace": "team", "daemons": [daemon]}


WORKER: dict[str, Any] = {
    "metadata": {"name": "worker-0", "namespace": "team", "uid": "p"},
    "spec": {"nodeName": "node-1"},
    "status": {"phase": "Pending"},
}


def test_the_verdict_is_the_nearest_cause() -> None:
    facts = PodFacts(
        WORKER,
        {"channel": claim(channel_config("d1"))},
        {"d1": domain("WaitingForPeers")},
        [clique(message="daemon pod is not connected to all its peers yet")],
    )
    lines = explain_pod(facts)
    assert lines[0].startswith("pod team/worker-0 waits: node node-1 is member 0 of clique f.0: daemon pod is not conn")
    assert any("WaitingForPeers: because" in line for line in lines)


def test_a_released_channel_is_nothing_to_wait_for() -> None:
    facts = PodFacts(
        WORKER, {"channel": claim(channel_config("d1"))}, {"d1": domain("Connected")}, [clique(released=True)]
    )
    assert explain_pod(facts)[0] == "pod team/worker-0 waits for nothing of ours"


def test_a_claim_that_is_missing_or_names_no_domain_of_its_namespace_is_said() -> None:
    assert "does not exist yet" in explain_pod(PodFacts(WORKER, {"channel": None}))[0]
    allocated = {"channel": claim(channel_config("d1"))}
    assert "which does not exist in namespace team" in explain_pod(PodFacts(WORKER, allocated))[0]


def test_domains_are_listed_with_their_reasons() -> None:
    header, row = list_domains([domain("WaitingForPods", status="NotReady")])
    assert header.split() == ["NAMESPACE", "NAME", "STATUS", "NODES", "REASON", "MESSAGE"]
    assert row.split() == ["team", "train", "NotReady", "1/2", "WaitingForPods", "because"]


def test_a_domain_is_read_with_what_it_leaves_out() -> None:
    parsed = parse_domain(domain("Idle"))
    assert (parsed.num_nodes, parsed.template_name) == (2, "t")
    assert (parsed.allocation_mode, parsed.wait_for_all) == ("Single", False)
    assert parsed.deleted_at is None and not parsed.force and not parsed.has_finalizer
