"""What the planner reads from objects that others write."""

from typing import Any

import pytest

from api.kaiwo import KAIWO_NODE, TOLERATIONS
from controller.nodepartitioning.parse import (
    find_dcm,
    parse_holding,
    parse_kaiwo_node,
    parse_node,
    parse_pod,
    parse_workload,
)
from controller.nodepartitioning.state import Taint

SEED = [
    {"effect": "NoExecute", "key": "amd-dcm", "operator": "Equal", "value": "up"},
    {"effect": "NoExecute", "key": "kaiwo-partitioning", "operator": "Exists"},
]


def kaiwo_node(**fields: Any) -> dict[str, Any]:
    return {"metadata": {"name": "n", "uid": "u"}, **fields}


@pytest.mark.parametrize("phase", ["WaitingForLabels", "RestartingPods", 7])
def test_a_kaiwonode_that_kaiwo_left_begins_anew(phase: object) -> None:
    """A phase of Kaiwo's that we have not is read as none, and the spec still counts."""
    spec = {"partitioning": {"enabled": True, "profile": "cpx"}}
    stored = parse_kaiwo_node(kaiwo_node(spec=spec, status={"status": "Ready", "partitioning": {"phase": phase}}))
    assert stored.kaiwo.status.partitioning.phase == ""
    assert stored.kaiwo.spec.partitioning.enabled


def test_the_marks_on_a_node_are_read() -> None:
    annotations = {
        "kaiwo.silogen.ai/node.amd.partitioning.tainted": "true",
        "kaiwo.silogen.ai/node.amd.partitioning.dcm": "cpx",
    }
    marked = parse_node({"metadata": {"name": "n", "uid": "u", "annotations": annotations}})
    assert (marked.owns_dcm_taint, marked.asked_dcm, marked.is_touched) == (True, True, True)
    taint = {"key": "amd-dcm", "value": "up", "effect": "NoExecute"}
    foreign = parse_node({"metadata": {"name": "n", "uid": "u"}, "spec": {"taints": [taint]}})
    assert foreign.taints == {Taint("amd-dcm", "up", "NoExecute")}
    assert not foreign.is_touched


def dcm(phase: str = "Running", ready: str = "True", **metadata: Any) -> dict[str, Any]:
    labels = {"app.kubernetes.io/name": "device-config-manager"}
    status = {"phase": phase, "conditions": [{"type": "Ready", "status": ready}]}
    return {"metadata": {"namespace": "amd", "name": "dcm", "labels": labels, **metadata}, "status": status}


@pytest.mark.parametrize(
    ("pods", "found"),
    [
        ([dcm()], (True, "")),
        ([dcm(ready="False")], (False, "amd/dcm")),
        ([dcm("Pending", "False")], (False, "amd/dcm")),
        ([dcm("Failed", "False")], (False, "")),
        ([dcm("Succeeded", "False")], (False, "")),
        ([dcm(deletionTimestamp="2026-01-01T00:00:00Z")], (False, "")),
        ([dcm(ready="False"), dcm()], (True, "")),
        ([], (False, "")),
    ],
)
def test_a_device_config_manager_counts_when_it_is_ready(pods: list[dict[str, Any]], found: tuple[bool, str]) -> None:
    """One that ended or leaves is none; one that is not ready is named."""
    assert find_dcm(pods) == found


def workload(tolerations: object) -> dict[str, Any]:
    return {
        "metadata": {"namespace": "kube-system", "name": "cni"},
        "spec": {"template": {"spec": {"tolerations": tolerations}}},
    }


def test_a_workload_must_tolerate_what_keeps_new_pods_away_too() -> None:
    """With the two tolerations of the seed a pod stays; to come back it has to tolerate NoSchedule."""
    assert not parse_workload(workload(SEED), "DaemonSet").tolerates
    assert parse_workload(workload([*SEED, *TOLERATIONS]), "DaemonSet").tolerates
    assert parse_workload(workload([{"operator": "Exists"}]), "DaemonSet").tolerates
    pod = {"metadata": {"namespace": "a", "name": "p", "uid": "u"}, "spec": {"tolerations": SEED}}
    parsed = parse_pod(pod, ())
    assert parsed is not None
    assert parsed.tolerates


def test_a_pod_holds_the_gpus_of_the_claims_that_are_reserved_for_it() -> None:
    """Whatever it tolerates: the drain asks who holds GPUs, and knows by `reservedFor`."""
    result = {"driver": "gpu.amd.com", "pool": "n", "device": "gpu-0", "request": "gpu"}
    claim = {
        "metadata": {"namespace": "a", "name": "gpu", "uid": "c"},
        "status": {
            "allocation": {"devices": {"results": [result]}},
            "reservedFor": [{"resource": "pods", "name": "p", "uid": "u"}],
        },
    }
    holding = parse_holding(claim)
    assert holding is not None
    assert holding.nodes == ("n",)
    for uid, held in (("u", ("a/gpu",)), ("other", ())):
        raw = {
            "metadata": {"namespace": "a", "name": "p", "uid": uid},
            "spec": {"tolerations": [{"operator": "Exists"}]},
        }
        found = parse_pod(raw, (holding,))
        assert found is not None
        assert (found.tolerates, found.claims) == (True, held)


def test_columns_are_kaiwos_and_more() -> None:
    """`kubectl get kaiwonodes` shows Status, GPU partitioning and Flavor, as Kaiwo's own definition does."""
    shown = {column.name: column.json_path for column in KAIWO_NODE.columns}
    assert list(shown)[:3] == ["Status", "GPU partitioning", "Flavor"]
    assert shown["Flavor"] == ".status.kueueFlavorName"
    assert "kueueFlavorName" in KAIWO_NODE.properties["status"]["properties"]
