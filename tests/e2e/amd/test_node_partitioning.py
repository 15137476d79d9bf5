"""A node of eight GPUs that is repartitioned as a whole, with pods on it, while things go wrong."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.e2e.amd.helpers import (
    CONFIG_MAP,
    DCM_PROFILE,
    DCM_STATE,
    AmdNode,
    amd_request,
    check_view,
    claiming_pod,
    event_reasons,
    nodes_seen,
    profiles_config,
    start_guarded,
    unguard,
)
from tests.support.cluster import Cluster, wait_until
from tests.support.manifests import claim_template, pod
from tests.support.workload import Workspace


def start_plain_and_claiming(space: Workspace) -> None:
    """Two pods on n2, one of which holds a whole GPU."""
    space.apply(claim_template("whole", space.namespace, amd_request("spx_nps1")))
    space.apply(pod("plain", space.namespace, node="n2"), claiming_pod(space, "claiming", "n2", "whole"))
    space.wait_running("plain", "claiming")


def test_a_node_goes_from_spx_to_cpx_and_back_with_pods_running(
    cluster: Cluster, space: Workspace, n2: AmdNode
) -> None:
    start_plain_and_claiming(space)
    n2.ask("cpx")
    n2.wait_partitioned("cpx")
    for name in ("plain", "claiming"):
        cluster.wait_gone(space.pods(name))  # evicted, and without an owner; the kubelet deletes them when it can
    config = cluster.get(CONFIG_MAP)
    assert '"CPX"' in config["data"]["config.json"]
    gpus = cluster.get(n2.kaiwo)["status"]["resources"]["gpus"]
    assert (gpus["model"], gpus["physicalCount"], gpus["logicalCount"]) == ("AMD_Instinct_MI300X_OAM", 8, 64)
    assert gpus["isPartitioned"]

    space.apply(claim_template("part", space.namespace, amd_request("cpx_nps4", count=2)))
    space.apply(claiming_pod(space, "part", "n2", "part"))
    space.wait_running("part")
    assert len(check_view(n2, nodes_seen(space, "part"), space.devices(space.claim_of("part", "t-part")))) == 2
    n2.ask("spx")
    n2.wait_partitioned("spx")
    reasons = event_reasons(n2)
    for reason in ("PartitioningStarted", "NodeDrained", "PartitionsApplied", "PartitioningCompleted"):
        assert reason in reasons


def test_a_node_that_is_in_its_mode_is_made_to_stay_there_with_its_pods(
    cluster: Cluster, space: Workspace, n2: AmdNode
) -> None:
    start_plain_and_claiming(space)
    before = {name: cluster.get(space.pods(name))["status"]["containerStatuses"] for name in ("plain", "claiming")}
    n2.ask("spx")
    n2.wait_partitioned("spx")
    for name, containers in before.items():
        assert cluster.get(space.pods(name))["status"]["containerStatuses"] == containers
    assert "PartitioningStarted" not in event_reasons(n2), "nothing was drained"


def test_a_disruption_budget_holds_the_node_until_it_allows_the_eviction(
    cluster: Cluster, space: Workspace, n2: AmdNode
) -> None:
    start_guarded(space, n2)
    n2.ask("cpx")
    wait_until("the KaiwoNode names who it waits for", lambda: "guarded" in n2.message())
    assert n2.taints() == {"kaiwo-partitioning:NoSchedule"}, "no taint kills what a budget guards"
    assert space.phase("guarded") == "Running"
    unguard(space)
    n2.wait_partitioned("cpx")


def test_a_spec_is_honoured_until_a_label_says_otherwise(cluster: Cluster, n2: AmdNode) -> None:
    cluster.patch(n2.kaiwo, {"spec": {"partitioning": {"enabled": True, "profile": "cpx"}}})
    n2.wait_partitioned("cpx")
    n2.ask("spx")
    n2.wait_partitioned("spx")
    assert cluster.get(n2.kaiwo)["spec"]["partitioning"] == {"enabled": True, "profile": "spx"}


def test_an_unknown_profile_is_an_error_that_names_the_known_ones(n2: AmdNode) -> None:
    n2.ask("tpx")
    n2.wait_phase("Error")
    assert "'tpx'" in n2.message() and "cpx, spx" in n2.message()
    assert not n2.taints()
    n2.ask("cpx")
    n2.wait_partitioned("cpx")


def test_a_mode_that_the_hardware_lacks_fails_untainted_with_the_reason(cluster: Cluster, n2: AmdNode) -> None:
    cluster.apply(profiles_config(spx=("SPX", "NPS1", 8), cpx=("CPX", "NPS4", 8), tpx=("TPX", "NPS1", None)))
    try:
        n2.ask("tpx")
        n2.wait_phase("Error")
        assert "has no mode tpx_nps1" in n2.message()
        wait_until("no taint is left", lambda: not n2.taints())
        assert "PartitioningFailed" in event_reasons(n2)
    finally:
        cluster.delete(CONFIG_MAP)


def test_a_plugin_killed_at_every_step_brings_the_node_to_its_mode(
    space: Workspace, profiles: None, n2: AmdNode
) -> None:
    n2.simulate("--reload-pause-ms", "2000")
    start_guarded(space, n2)
    n2.ask("cpx")
    wait_until("the node drains", n2.taints)
    n2.kill_plugin()
    unguard(space)
    wait_until("the driver is away", lambda: not n2.has_driver())
    n2.kill_plugin()
    n2.wait_partitioned("cpx")

    n2.simulate("--change-pause-ms", "200")
    n2.ask("qpx_nps4")
    wait_until("some GPUs are changed", lambda: 1 < list(n2.modes().values()).count("qpx_nps4") < 8)
    n2.kill_plugin()
    wait_until("the hardware is changed", lambda: set(n2.modes().values()) == {"qpx_nps4"})
    n2.kill_plugin()
    n2.wait_partitioned("qpx_nps4")
    assert "PartitioningFailed" not in event_reasons(n2)


# With AMD's Device Config Manager on the node: the test says and does what it does.


@dataclass
class Dcm:
    node: AmdNode

    def wait_asked(self, profile: str) -> None:
        def asked(raw: dict[str, dict[str, dict[str, str]]]) -> bool:
            labels = raw["metadata"]["labels"]
            return labels.get(DCM_PROFILE) == profile and DCM_STATE not in labels

        self.node.cluster.wait(self.node.where, f"DCM is asked for {profile}", asked)
        assert self.node.taints() == {"amd-dcm:NoExecute"}, "the taint that DCM tolerates, and no other"

    def answer(self, state: str) -> None:
        self.node.label(**{DCM_STATE: state})


@pytest.fixture
def dcm(space: Workspace, n2: AmdNode) -> Iterator[Dcm]:
    """Its pod, labelled and tolerating as AMD's GPU Operator has it."""
    toleration = {"effect": "NoExecute", "key": "amd-dcm", "operator": "Equal", "value": "up"}
    manager = pod("dcm", space.namespace, node="n2", tolerations=[toleration])
    manager["metadata"]["labels"] = {"app.kubernetes.io/name": "device-config-manager"}
    space.apply(manager)
    space.wait_running("dcm")
    yield Dcm(n2)
    assert space.phase("dcm") == "Running", "it was not driven away"


def test_dcm_applies_where_it_runs(dcm: Dcm, n2: AmdNode) -> None:
    n2.ask("cpx")
    dcm.wait_asked("cpx")
    n2.simulate("--set-modes", "cpx_nps4")
    dcm.answer("success")
    n2.wait_partitioned("cpx")
    assert n2.partitioning()["applier"] == "dcm"


def test_dcm_that_fails_first_may_succeed_late(dcm: Dcm, n2: AmdNode) -> None:
    n2.ask("cpx")
    dcm.wait_asked("cpx")
    dcm.answer("failure")
    wait_until("the failure is told", lambda: "failure" in n2.message())
    n2.simulate("--set-modes", "cpx_nps4")
    dcm.answer("success")
    n2.wait_partitioned("cpx")


def test_dcm_that_hangs_ends_in_an_error_without_taints(dcm: Dcm, n2: AmdNode) -> None:
    n2.ask("cpx")
    dcm.wait_asked("cpx")
    n2.wait_phase("Error")
    assert "Device Config Manager says nothing yet" in n2.message()
    wait_until("no taint is left", lambda: not n2.taints())


def test_success_is_believed_when_the_hardware_shows_it(dcm: Dcm, n2: AmdNode) -> None:
    n2.ask("cpx")
    dcm.wait_asked("cpx")
    dcm.answer("success")
    wait_until("it waits for the ResourceSlices", lambda: "do not show it" in n2.message())
    assert n2.partitioning()["phase"] == "WaitingForResourceUpdate"
    n2.simulate("--set-modes", "cpx_nps4")
    n2.wait_partitioned("cpx")
