"""Partitioning of nodes: what users ask for is brought about, within limits, and whatever fails says why."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from api.kaiwo import (
    DCM_PROFILE_LABEL,
    DCM_STATE_LABEL,
    DEFAULT_CONFIG,
    ENABLED_LABEL,
    PROFILE_LABEL,
    KaiwoNodeSpec,
    PartitioningSpec,
)
from controller.nodepartitioning.plan import DCM_TAINTS, NEXT, Signal
from controller.nodepartitioning.state import KaiwoNode, Pod, Workload

sys.path.insert(0, str(Path(__file__).parent))

from nodepartitioning_world import Cluster, Machine, build_cluster

FULL = ["Pending", "DrainingUntoleratedPods", "ApplyingPartitions", "WaitingForResourceUpdate", "Completed"]
WORKER = Pod("default", "train-0", "pod-1", tolerates=False, claims=("default/gpu",))


def ask(cluster: Cluster, profile: str, name: str = "node-0") -> Machine:
    machine = cluster.machines[name]
    machine.label(**{ENABLED_LABEL: "true", PROFILE_LABEL: profile})
    return machine


def message(machine: Machine) -> str:
    assert machine.kaiwo is not None
    return machine.kaiwo.status.conditions[0].message


@pytest.mark.parametrize("has_dcm", [False, True])
def test_a_labelled_node_is_partitioned(has_dcm: bool) -> None:
    """A label is enough: ConfigMap and KaiwoNode are made, pods leave, the mode is applied, verified, untainted."""
    cluster = build_cluster()
    machine = ask(cluster, "cpx")
    machine.has_dcm = has_dcm
    machine.pods = [WORKER, Pod("kube-system", "proxy", "pod-2", tolerates=True)]
    cluster.run(120)
    assert machine.history == FULL
    assert machine.modes == ["cpx_nps4"] * 8
    assert not machine.is_tainted
    assert [pod.name for pod in machine.pods] == ["proxy"]
    assert machine.kaiwo is not None
    assert machine.kaiwo.status.status == "Ready"
    assert machine.kaiwo.status.partitioning.applied_profile == "cpx"
    assert machine.kaiwo.status.conditions[0].reason == "Complete"
    assert json.loads(cluster.config or "") == DEFAULT_CONFIG


def test_there_and_back() -> None:
    """spx -> cpx -> spx by label, with pods running in between; DCM is started anew each time."""
    cluster = build_cluster()
    machine = ask(cluster, "cpx")
    machine.has_dcm = True
    cluster.run(120)
    machine.pods = [WORKER]
    ask(cluster, "spx")
    cluster.run(120)
    assert machine.modes == ["spx_nps1"] * 8
    ask(cluster, "cpx")
    cluster.run(120)
    assert machine.modes == ["cpx_nps4"] * 8


def test_a_node_that_is_right_is_left_alone() -> None:
    """Asking for the mode that the node is in completes at once, without a taint or an eviction."""
    cluster = build_cluster()
    machine = ask(cluster, "spx")
    machine.pods = [WORKER]
    cluster.run(30)
    assert machine.history == ["Completed"]
    assert machine.pods == [WORKER]


def test_a_spec_alone_is_honoured_and_a_label_beats_it() -> None:
    """The spec counts where there is no label; a label overwrites it."""
    cluster = build_cluster()
    machine = cluster.machines["node-0"]
    machine.kaiwo = KaiwoNode(spec=KaiwoNodeSpec(partitioning=PartitioningSpec(enabled=True, profile="cpx")))
    cluster.run(120)
    assert machine.modes == ["cpx_nps4"] * 8
    machine.label(**{PROFILE_LABEL: "spx"})
    cluster.run(120)
    assert machine.modes == ["spx_nps1"] * 8
    assert machine.kaiwo.spec.partitioning.profile == "spx"
    machine.label(**{PROFILE_LABEL: None})
    cluster.run(120)
    assert machine.modes == ["spx_nps1"] * 8, "the label's value stays in the spec"


def test_an_unknown_profile_fails_with_a_reason_and_recovers_when_it_appears() -> None:
    """A ConfigMap without the profile is an Error that names both, until the profile is there."""
    cluster = build_cluster()
    cluster.config = json.dumps({"gpu-config-profiles": {"spx": DEFAULT_CONFIG["gpu-config-profiles"]["spx"]}})
    machine = ask(cluster, "cpx")
    cluster.run(30)
    assert machine.phase == "Error"
    assert "'cpx' is not in ConfigMap kube-amd-gpu/config-manager-config; there are: spx" in message(machine)
    assert not machine.is_tainted
    cluster.config = json.dumps(DEFAULT_CONFIG)
    cluster.run(120)
    assert machine.phase == "Completed"


@pytest.mark.parametrize(
    ("profile", "reason"),
    [
        ({"profiles": [{"computePartition": "CPX", "memoryPartition": "NPS4", "numGPUsAssigned": 4}]}, "add up to 4"),
        ({"profiles": [{"computePartition": "CPX", "memoryPartition": "NPS4", "numGPUsAssigned": 9}]}, "more than"),
        ({"skippedGPUs": {"ids": [8]}, "profiles": [{"computePartition": "CPX", "memoryPartition": "NPS1"}]}, "no GPU"),
        (
            {
                "profiles": [
                    {"computePartition": "CPX", "memoryPartition": "NPS4", "numGPUsAssigned": 4},
                    {"computePartition": "SPX", "memoryPartition": "NPS1", "numGPUsAssigned": 4},
                ]
            },
            "memoryPartition must be the same",
        ),
    ],
)
def test_a_profile_that_does_not_add_up_is_refused(profile: dict[str, object], reason: str) -> None:
    """A profile that does not fit the node is an Error with the reason, and the node is not touched."""
    cluster = build_cluster()
    cluster.config = json.dumps({"gpu-config-profiles": {"own": profile}})
    machine = ask(cluster, "own")
    machine.pods = [WORKER]
    cluster.run(30)
    assert machine.phase == "Error"
    assert reason in message(machine)
    assert machine.pods == [WORKER]


def test_own_profiles_and_skipped_gpus() -> None:
    """A profile of the user's own, that leaves one GPU alone and mixes compute modes, is brought about."""
    cluster = build_cluster()
    choices = [
        {"computePartition": "DPX", "memoryPartition": "NPS1", "numGPUsAssigned": 3},
        {"computePartition": "QPX", "memoryPartition": "NPS1"},
    ]
    cluster.config = json.dumps({"gpu-config-profiles": {"own": {"skippedGPUs": {"ids": [0]}, "profiles": choices}}})
    machine = ask(cluster, "own")
    cluster.run(120)
    assert machine.modes == ["spx_nps1"] + ["dpx_nps1"] * 3 + ["qpx_nps1"] * 4


def test_a_budget_that_forbids_eviction_ends_in_error_and_the_node_is_free_again() -> None:
    """Pods that may not be evicted are not killed: the drain ends after its limit, untainted, naming them."""
    cluster = build_cluster()
    machine = ask(cluster, "cpx")
    machine.pods, machine.budget = [WORKER], False
    cluster.run(330)
    assert machine.phase == "Error"
    assert not machine.is_tainted
    assert machine.pods == [WORKER]
    assert "default/train-0" in message(machine)
    machine.budget = True
    cluster.run(300)
    assert machine.phase == "Completed", "it is tried again by itself"


def test_a_pod_that_tolerates_everything_but_holds_gpus_has_to_go() -> None:
    """Tolerations keep a pod on the node, but never a GPU from being freed."""
    cluster = build_cluster()
    machine = ask(cluster, "cpx")
    machine.pods = [replace(WORKER, tolerates=True)]
    cluster.run(120)
    assert machine.pods == []
    assert machine.phase == "Completed"


def test_a_plugin_that_fails_is_tried_again_later_and_later() -> None:
    """A failure ends in Error with the plugin's words, is tried again after a delay, and gives up in the end."""
    cluster = build_cluster()
    machine = ask(cluster, "cpx")
    machine.fails = 2
    cluster.run(60)
    assert machine.phase == "Error"
    assert "the GPU is busy" in message(machine)
    cluster.run(900)
    assert machine.phase == "Completed"
    assert machine.history.count("Error") == 2
    ask(cluster, "spx")
    machine.fails = 1000
    cluster.run(3 * 3600)
    assert machine.history.count("Error") == 2 + 6
    assert not machine.is_tainted
    machine.fails = 0
    cluster.run(3600)
    assert machine.phase == "Error", "after the last attempt only a change of the request starts anew"
    ask(cluster, "cpx")
    cluster.run(30)
    assert machine.phase == "Completed", "it is in that mode"


def test_dcm_may_fail_first_and_succeed_late() -> None:
    """`failure` of the Device Config Manager is not the end: it tries again by itself."""
    cluster = build_cluster()
    machine = ask(cluster, "cpx")
    machine.has_dcm, machine.fails = True, 5
    cluster.run(120)
    assert machine.phase == "ApplyingPartitions"
    assert "says failure" in message(machine)
    cluster.run(400)
    assert machine.phase == "Completed"
    assert "Error" not in machine.history


def test_a_dcm_that_hangs_ends_in_error() -> None:
    """No answer within the limit is an Error; the labels are taken back and the node is untainted."""
    cluster = build_cluster()
    machine = ask(cluster, "cpx")
    machine.has_dcm, machine.applies_after_s = True, None
    cluster.run(2200)
    assert machine.phase == "Error"
    assert "not applied after 2100 s" in message(machine)
    assert not machine.is_tainted
    assert DCM_PROFILE_LABEL not in machine.node.labels
    assert DCM_STATE_LABEL not in machine.node.labels


def test_disabling_in_the_middle_untaints_and_later_keeps_what_is_applied() -> None:
    """A request that is withdrawn while draining leaves no taint; withdrawn afterwards it changes nothing."""
    cluster = build_cluster()
    machine = ask(cluster, "cpx")
    machine.pods, machine.budget = [WORKER], False
    cluster.run(30)
    assert machine.is_tainted
    machine.label(**{ENABLED_LABEL: "false"})
    cluster.run(15)
    assert (machine.phase, machine.is_tainted) == ("", False)
    machine.budget = True
    ask(cluster, "cpx")
    cluster.run(120)
    machine.label(**{ENABLED_LABEL: "false"})
    cluster.run(30)
    assert machine.modes == ["cpx_nps4"] * 8


def test_another_profile_while_draining_replaces_the_first() -> None:
    """What is asked for last is what is applied."""
    cluster = build_cluster()
    machine = ask(cluster, "cpx")
    machine.pods, machine.budget = [WORKER], False
    cluster.run(30)
    ask(cluster, "spx")
    cluster.run(30)
    assert machine.phase == "Completed"
    assert machine.pods == [WORKER]


@pytest.mark.parametrize("opted_in", [True, False])
def test_kube_system_gets_its_tolerations_before_the_first_taint(opted_in: bool) -> None:
    """Deployments and DaemonSets of kube-system are made to tolerate the taints, unless the administrator opts out."""
    cluster = build_cluster(tolerate_kube_system=opted_in)
    cluster.kube_system = [Workload("DaemonSet", "kube-system", "cni", tolerates=False)]
    machine = ask(cluster, "cpx")
    cluster.run(120)
    assert machine.phase == "Completed"
    assert cluster.kube_system[0].tolerates is opted_in


def test_a_rollout_keeps_to_its_limit_and_ends_with_the_control_plane() -> None:
    """Of five nodes never more than two are tainted at a time, and the control-plane node comes last."""
    cluster = build_cluster(5, max_unavailable=2)
    first = cluster.machines["node-0"]
    first.node = replace(first.node, is_control_plane=True)
    for name in cluster.machines:
        ask(cluster, "cpx", name)
    cluster.run(60)
    assert first.phase == "Pending"
    cluster.run(300)
    assert {machine.phase for machine in cluster.machines.values()} == {"Completed"}


def test_a_profile_that_breaks_nodes_stops_at_the_limit() -> None:
    """Failed nodes count as unavailable, so a rollout does not go on to break the rest."""
    cluster = build_cluster(4, max_unavailable=1)
    for name, machine in cluster.machines.items():
        machine.fails = 1000
        ask(cluster, "cpx", name)
    cluster.run(100)
    assert [machine.phase for machine in cluster.machines.values()].count("Error") == 1


def test_a_reboot_that_forgets_the_mode_is_noticed() -> None:
    """A completed node that shows another mode is partitioned again."""
    cluster = build_cluster()
    machine = ask(cluster, "cpx")
    cluster.run(120)
    machine.modes = ["spx_nps1"] * 8
    cluster.run(120)
    assert machine.modes == ["cpx_nps4"] * 8
    assert machine.history == FULL * 2


def test_every_phase_can_be_left() -> None:
    """The table has a way out of every phase that it leads into, and a way back from Error."""
    assert {phase for _, phase in enumerate(NEXT.values())} <= {phase for phase, _ in NEXT}
    assert ("Error", Signal.RETRY) in NEXT


events = st.lists(
    st.tuples(
        st.sampled_from(
            [
                "cpx",
                "spx",
                "off",
                "yes",
                "pod",
                "budget",
                "fail",
                "hang",
                "work",
                "reboot",
                "lose",
                "taint",
                "claims",
                "unready",
                "down",
                "up",
                "cut",
                "nothing",
            ]
        ),
        st.integers(0, 9),
    ),
    max_size=25,
)


@given(events, st.booleans())
@settings(max_examples=60, phases=(Phase.explicit, Phase.reuse, Phase.generate))
def test_whatever_happens_the_request_is_met_in_the_end(script: list[tuple[str, int]], has_dcm: bool) -> None:
    """Never a killed pod, never more tainted nodes than allowed, never one without explanation; in the end all done."""
    cluster = build_cluster(3)
    for machine in cluster.machines.values():
        machine.has_dcm = has_dcm
    for kind, choice in script:
        machine = cluster.machines[f"node-{choice % 3}"]
        match kind:
            case "cpx" | "spx":
                ask(cluster, kind, machine.node.name)
            case "off":
                machine.label(**{ENABLED_LABEL: "false"})
            case "yes":
                machine.label(**{ENABLED_LABEL: "yes"})
            case "lose":
                machine.unreadable = choice
            case "taint" if not machine.node.taints:
                machine.node = replace(machine.node, taints=DCM_TAINTS)
            case "claims" if machine.target is None:
                machine.on_claim = True
            case "unready" if has_dcm:
                machine.dcm_unready = "kube-amd-gpu/dcm" if choice < 7 else ""
            case "pod" if not machine.is_tainted:
                machine.pods.append(replace(WORKER, uid=f"pod-{choice}-{len(machine.pods)}"))
            case "budget":
                machine.budget = choice < 7
            case "fail":
                machine.fails = choice
            case "hang" | "work":
                machine.applies_after_s = None if kind == "hang" else 10.0
            case "reboot" if not machine.is_tainted:
                machine.modes = ["spx_nps1"] * 8
            case "down" | "up":
                cluster.is_down = kind == "down"
            case "cut":
                cluster.cut_after = choice
        cluster.run(5 * (1 + choice))
    cluster.is_down, cluster.cut_after = False, None
    for machine in cluster.machines.values():
        machine.budget, machine.fails, machine.applies_after_s = True, 0, 10.0
        machine.unreadable, machine.dcm_unready = 0, ""
        ask(cluster, "spx", machine.node.name)
    for _ in range(200):
        cluster.tick(60)
        cluster.check()
    for machine in cluster.machines.values():
        assert (machine.phase, machine.is_tainted, machine.modes) == ("Completed", False, ["spx_nps1"] * 8)
        assert machine.node.taints <= DCM_TAINTS
        assert not machine.node.owns_dcm_taint
