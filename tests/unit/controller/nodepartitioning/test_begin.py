"""What comes before the first taint: who asks for what, whose turn it is, and what the node must have by then."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from api.kaiwo import DCM_PROFILE_LABEL, DEFAULT_CONFIG, ENABLED_LABEL, PROFILE_LABEL, KaiwoNodeSpec, PartitioningSpec
from controller.nodepartitioning.plan import DCM_TAINTS, DRAIN_TAINTS
from controller.nodepartitioning.state import KaiwoNode, Pod, Workload

sys.path.insert(0, str(Path(__file__).parent))

from nodepartitioning_world import Cluster, Machine, build_cluster

WORKER = Pod("default", "train-0", "pod-1", tolerates=False, claims=("default/gpu",))
CNI = Workload("DaemonSet", "kube-system", "cni", tolerates=False)
CNI_POD = Pod("kube-system", "cni-x", "pod-cni", tolerates=False, is_replaceable=True)


def ask(cluster: Cluster, profile: str, name: str = "node-0") -> Machine:
    machine = cluster.machines[name]
    machine.label(**{ENABLED_LABEL: "true", PROFILE_LABEL: profile})
    return machine


# Whose taint it is


@pytest.mark.parametrize("asked", [False, True])
def test_an_administrators_taint_stays(asked: bool) -> None:
    """`amd-dcm` that somebody else has set is there before, during and after, asked for or not."""
    cluster = build_cluster()
    machine = cluster.machines["node-0"]
    machine.node = replace(machine.node, taints=DCM_TAINTS)
    if asked:
        ask(cluster, "cpx")
    cluster.run(120)
    assert machine.phase == ("Completed" if asked else "")
    assert machine.node.taints == DCM_TAINTS
    assert not machine.is_tainted


def test_a_taint_of_ours_that_somebody_removed_is_set_again_as_long_as_it_is_needed() -> None:
    """DCM asks for it. Afterwards neither the taint nor the mark that it is ours is left."""
    cluster = build_cluster()
    machine = ask(cluster, "cpx")
    machine.applies_after_s = None
    cluster.run(60)
    machine.node = replace(machine.node, taints=machine.node.taints - DCM_TAINTS)
    cluster.run(10)
    assert machine.node.taints >= DCM_TAINTS
    machine.node = replace(machine.node, taints=frozenset())
    machine.applies_after_s = 0.0
    for _ in range(10):
        cluster.tick()
    assert (machine.phase, machine.node.owns_dcm_taint) == ("Completed", False)
    machine.node = replace(machine.node, taints=DCM_TAINTS)
    cluster.run(60)
    assert machine.node.taints == DCM_TAINTS, "this one is an administrator's"


@pytest.mark.parametrize("has_dcm", [False, True])
def test_a_kaiwonode_that_is_deleted_in_the_middle_leaves_nothing_on_the_node(has_dcm: bool) -> None:
    """One that a spec made, deleted while the GPUs change: taints, target and DCM's labels go."""
    cluster = build_cluster()
    machine = cluster.machines["node-0"]
    machine.has_dcm, machine.applies_after_s = has_dcm, None
    machine.kaiwo = KaiwoNode(spec=KaiwoNodeSpec(partitioning=PartitioningSpec(enabled=True, profile="cpx")))
    cluster.run(60)
    assert machine.phase == "ApplyingPartitions"
    assert machine.node.is_touched
    machine.kaiwo = None
    for _ in range(4):
        cluster.tick()
    assert machine.phase == ""
    assert not machine.node.is_touched
    assert not machine.node.taints
    assert DCM_PROFILE_LABEL not in machine.node.labels


# kube-system


def test_a_pod_of_kube_system_is_replaced_before_it_is_drained() -> None:
    """The first taint waits until a pod that tolerates it has come in place of the old one."""
    cluster = build_cluster()
    cluster.kube_system = [CNI]
    machine = ask(cluster, "cpx")
    machine.pods = [CNI_POD]
    cluster.run(60)
    assert cluster.kube_system[0].tolerates
    assert machine.phase == "Pending"
    assert "to replace kube-system/cni-x" in machine.message
    assert machine.pods == [CNI_POD]
    new = replace(CNI_POD, name="cni-y", uid="pod-new", tolerates=True)
    machine.pods = [new]
    cluster.run(120)
    assert machine.phase == "Completed"
    assert machine.pods == [new]


def test_a_rollout_in_kube_system_that_does_not_end_is_an_error_and_nobody_is_evicted() -> None:
    """Waiting for tolerations has a limit, too, and says for whom it was."""
    cluster = build_cluster()
    cluster.kube_system = [CNI]
    machine = ask(cluster, "cpx")
    machine.pods = [CNI_POD]
    cluster.run(330)
    assert machine.phase == "Error"
    assert "not begun after 300 s" in machine.message
    assert "kube-system/cni-x" in machine.message
    assert machine.pods == [CNI_POD]
    cluster.run(60)
    assert machine.history == ["Pending", "Error"], "it is tried again after a while, not at once"


def test_a_workload_that_does_not_keep_its_tolerations_is_an_error_that_names_it() -> None:
    """Somebody, or something, takes them away: the limit ends it."""
    cluster = build_cluster()
    cluster.kube_system, cluster.is_rigid = [CNI], True
    machine = ask(cluster, "cpx")
    cluster.run(330)
    assert machine.phase == "Error"
    assert "DaemonSet cni" in machine.message


def test_a_turn_that_comes_late_has_the_whole_limit() -> None:
    """What counts is the time since the node's turn came, not since it was asked for."""
    cluster = build_cluster(2)
    first, second = ask(cluster, "cpx", "node-0"), ask(cluster, "cpx", "node-1")
    first.pods, first.budget = [WORKER], False
    cluster.run(250)
    cluster.kube_system = [CNI]
    second.pods = [CNI_POD]
    first.budget = True
    cluster.run(200)
    assert (first.phase, second.phase) == ("Completed", "Pending")


# A node that is in its mode already


def test_a_node_that_claims_partition_is_not_drained_for_the_mode_that_it_is_in() -> None:
    """Every mode is offered, one is present: it is made to stay, and pods that hold GPUs of it go on."""
    cluster = build_cluster()
    machine = ask(cluster, "spx")
    machine.on_claim, machine.pods = True, [WORKER]
    cluster.run(60)
    assert machine.history == ["Pending", "WaitingForResourceUpdate", "Completed"]
    assert machine.pods == [WORKER]
    assert {device.profile for device in machine.published() or ()} == {"spx_nps1"}, "claims no longer change it"
    assert machine.kaiwo is not None
    assert machine.kaiwo.status.partitioning.applied_profile == "spx"
    ask(cluster, "cpx")
    cluster.run(120)
    assert machine.modes == ["cpx_nps4"] * 8
    assert machine.pods == []


def test_a_node_that_is_left_as_it_is_takes_nobodys_turn() -> None:
    """It is not tainted, so it does not wait for others, nor others for it."""
    cluster = build_cluster(2)
    first, second = ask(cluster, "cpx", "node-0"), ask(cluster, "spx", "node-1")
    first.pods, first.budget, second.on_claim = [WORKER], False, True
    cluster.run(60)
    assert first.phase == "DrainingUntoleratedPods"
    assert second.phase == "Completed"


def test_a_node_that_claims_partition_is_drained_when_one_gpu_differs() -> None:
    """The mode of each GPU counts, not what could be had."""
    cluster = build_cluster()
    machine = ask(cluster, "spx")
    machine.on_claim = True
    machine.modes[3] = "cpx_nps1"
    cluster.run(120)
    assert "DrainingUntoleratedPods" in machine.history
    assert machine.modes == ["spx_nps1"] * 8


def test_gpus_that_claims_from_before_hold_do_not_make_it_fail() -> None:
    """Pinned in its mode, a node does not show what is held under a name of before."""
    cluster = build_cluster()
    machine = ask(cluster, "spx")
    machine.on_claim, machine.pods = True, [WORKER]
    while machine.target is None:
        cluster.tick()
    machine.unreadable = 2
    cluster.run(300)
    assert machine.phase == "Completed"
    assert "shows 6 of its 8 GPUs" in machine.message
    assert machine.pods == [WORKER]


# What is asked for and cannot be


@pytest.mark.parametrize("value", ["True", "yes", ""])
def test_a_label_that_is_not_understood_says_so(value: str) -> None:
    """The condition and an Event name the label and what would be right; nothing else happens."""
    cluster = build_cluster()
    machine = cluster.machines["node-0"]
    machine.label(**{ENABLED_LABEL: value, PROFILE_LABEL: "cpx"})
    cluster.run(30)
    assert machine.phase == ""
    assert machine.kaiwo is not None
    assert machine.kaiwo.status.conditions[0].reason == "Failed"
    assert f"is {value!r}; right would be true or false" in machine.message
    assert {report.reason for report in cluster.events} == {"LabelNotUnderstood"}
    machine.label(**{ENABLED_LABEL: "true"})
    cluster.run(120)
    assert machine.phase == "Completed"


def test_a_node_without_amd_gpus_says_what_it_waits_for_and_fails_in_the_end() -> None:
    """The driver may be late; a node that never shows a GPU has none."""
    cluster = build_cluster()
    machine = ask(cluster, "cpx")
    machine.has_slices = False
    cluster.run(60)
    assert machine.phase == ""
    assert "ResourceSlices" in machine.message
    cluster.run(300)
    assert machine.phase == "Error"
    assert machine.message == "cannot partition a node without AMD GPUs"
    machine.has_slices = True
    cluster.run(120)
    assert machine.phase == "Completed", "the driver came late"


def test_a_gpu_that_cannot_be_read_is_waited_for() -> None:
    """A completed node whose GPU does not answer for a while is not asked to be anything else."""
    cluster = build_cluster()
    machine = ask(cluster, "cpx")
    cluster.run(120)
    machine.unreadable = 1
    cluster.run(600)
    assert machine.phase == "Completed"
    assert "shows 7 of its 8 GPUs" in machine.message
    machine.unreadable = 0
    cluster.run(10)
    assert machine.message == "the node is in profile cpx"


def test_one_bad_profile_does_not_spoil_the_others() -> None:
    """A profile is looked into when it is asked for, and says then what is wrong with it."""
    profiles = {**DEFAULT_CONFIG["gpu-config-profiles"], "own": {"profiles": [{"computePartition": "XPX"}]}}
    profiles["newer"] = {**profiles["cpx"], "fieldOfTomorrow": 1}
    cluster = build_cluster()
    cluster.config = json.dumps({"gpu-config-profiles": profiles})
    machine = ask(cluster, "cpx")
    cluster.run(120)
    assert machine.phase == "Completed"
    for name, reason in (("own", "own.profiles.0.computePartition"), ("newer", "newer.fieldOfTomorrow")):
        ask(cluster, name)
        cluster.run(30)
        assert machine.phase == "Error"
        assert reason in machine.message
    assert machine.modes == ["cpx_nps4"] * 8


def test_a_corrected_profile_is_tried_at_once() -> None:
    """After the last attempt, what the profile means counts, not only its name."""
    cluster = build_cluster()
    machine = ask(cluster, "cpx")
    machine.fails = 1000
    cluster.run(3 * 3600)
    assert machine.phase == "Error"
    machine.fails = 0
    cluster.config = json.dumps(DEFAULT_CONFIG).replace("NPS4", "NPS1")
    cluster.run(60)
    assert machine.phase == "Completed"
    assert machine.modes == ["cpx_nps1"] * 8


def test_a_manager_that_is_not_ready_is_waited_for_and_named() -> None:
    """A DCM pod that may become ready is neither asked nor passed over."""
    cluster = build_cluster()
    machine = ask(cluster, "cpx")
    machine.has_dcm, machine.dcm_unready = True, "kube-amd-gpu/dcm-x"
    cluster.run(60)
    assert machine.phase == "Pending"
    assert "pod kube-amd-gpu/dcm-x is not ready" in machine.message
    machine.dcm_unready = ""
    cluster.run(120)
    assert machine.phase == "Completed"
    assert machine.kaiwo is not None
    assert machine.kaiwo.status.partitioning.applier == "dcm"


# Whose turn it is


def test_who_waits_is_told_for_whom() -> None:
    """The message names the nodes that use up the limit, and why each does."""
    cluster = build_cluster(4, max_unavailable=2)
    broken, busy = cluster.machines["node-0"], cluster.machines["node-1"]
    broken.fails = 1000
    busy.pods, busy.budget = [WORKER], False
    for name in ("node-0", "node-1", "node-3"):
        ask(cluster, "cpx", name)
    cluster.run(60)
    message = cluster.machines["node-3"].message
    assert "2 nodes may be unavailable at a time: node-0 has failed, node-1 is being partitioned" in message


def test_a_node_that_is_not_ready_counts_as_unavailable() -> None:
    """Nothing is taken from a cluster that has lost a node already."""
    cluster = build_cluster(2)
    lost, waiting = cluster.machines["node-0"], ask(cluster, "cpx", "node-1")
    lost.node = replace(lost.node, is_ready=False)
    cluster.run(60)
    assert waiting.phase == "Pending"
    assert "node-0 is not ready" in waiting.message
    lost.node = replace(lost.node, is_ready=True)
    cluster.run(120)
    assert waiting.phase == "Completed"


# Limits and verification


def test_a_plugin_that_does_not_answer_ends_in_error() -> None:
    """`ApplyingPartitions` has its limit with the node plugin, too."""
    cluster = build_cluster()
    machine = ask(cluster, "cpx")
    machine.applies_after_s = None
    cluster.run(360)
    assert machine.phase == "Error"
    assert "not applied after 300 s: the node plugin has not answered yet" in machine.message
    assert not machine.is_tainted


@pytest.mark.parametrize(
    ("read", "reason"),
    [
        ((), "has read the modes of 0 GPUs, not of 8"),
        (("cpx_nps4",) * 7, "has read the modes of 7 GPUs, not of 8"),
        (("cpx_nps4",) * 7 + (None,), "GPU 7 is in no mode"),
        (("cpx_nps4",) * 7 + ("spx_nps1",), "GPU 7 is in spx_nps1"),
    ],
)
def test_success_without_the_hardware_to_show_for_it_is_not_believed(read: tuple[str | None, ...], reason: str) -> None:
    """What the plugin read decides, not that it says it succeeded; the wait for it has a limit."""
    cluster = build_cluster()
    machine = ask(cluster, "cpx")
    machine.read_modes = read
    cluster.run(60)
    assert machine.phase == "WaitingForResourceUpdate"
    assert reason in machine.message
    cluster.run(120)
    assert machine.phase == "Error"
    assert "not seen after 120 s" in machine.message
    assert not machine.is_tainted


def test_status_shows_what_the_node_is() -> None:
    """Control plane and unschedulable are the Node's; Kaiwo's flavor is left as it is."""
    cluster = build_cluster()
    machine = cluster.machines["node-0"]
    machine.node = replace(machine.node, is_control_plane=True, is_unschedulable=True)
    machine.kaiwo = replace(KaiwoNode(), status=KaiwoNode().status.model_copy(update={"kueue_flavor_name": "mi300"}))
    cluster.run(10)
    status = machine.kaiwo.status
    assert (status.is_control_plane, status.unschedulable, status.kueue_flavor_name) == (True, True, "mi300")


def test_a_drain_taints_against_new_pods_only() -> None:
    """While pods leave as their budgets allow, nothing but NoSchedule is on the node."""
    cluster = build_cluster()
    machine = ask(cluster, "cpx")
    machine.pods, machine.budget = [WORKER], False
    cluster.run(30)
    assert machine.node.taints == DRAIN_TAINTS
