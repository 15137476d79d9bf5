"""Claims for AMD GPUs and partitions in a mixed cluster: each container has exactly its own."""

from tests.e2e.amd.helpers import (
    CLASS,
    POLICY,
    PROFILES,
    AmdNode,
    amd_request,
    check_view,
    claiming_pod,
    nodes_seen,
)
from tests.support.cluster import Cluster, Object, path, wait_until
from tests.support.manifests import claim_template, config, gpu_request, request
from tests.support.workload import Workspace


def test_every_node_publishes_the_devices_of_its_own_vendors(cluster: Cluster, n3: AmdNode) -> None:
    slices = cluster.list(path("resource.k8s.io/v1", "resourceslices"))
    drivers = {
        name: {piece["spec"]["driver"] for piece in slices if piece["spec"].get("nodeName") == name}
        for name in PROFILES
    }
    nvidia = {"gpu.nvidia.com", "compute-domain.nvidia.com"}
    assert drivers == {"n1": nvidia, "n2": {CLASS}, "n3": {CLASS, *nvidia}, "n4": {CLASS}}


def test_partitions_are_never_given_twice_and_another_mode_waits_its_turn(
    cluster: Cluster, space: Workspace, n3: AmdNode
) -> None:
    space.apply(
        claim_template("eighth", space.namespace, amd_request("cpx_nps1")),
        claim_template("whole", space.namespace, amd_request("spx_nps1")),
    )
    eighths = [f"e{number}" for number in range(8)]
    space.apply(*(claiming_pod(space, name, "n3", "eighth") for name in eighths))
    space.wait_running(*eighths)
    space.apply(claiming_pod(space, "whole", "n3", "whole"), claiming_pod(space, "ninth", "n3", "eighth"))
    space.wait_unschedulable("whole")
    space.wait_unschedulable("ninth")
    taken: set[int] = set()
    for name in eighths:
        renders = check_view(n3, nodes_seen(space, name), space.devices(space.claim_of(name, "t-eighth")))
        assert not renders & taken
        taken |= renders
    space.delete("ninth")
    space.delete(*eighths)
    space.wait_running("whole")
    assert set(n3.modes().values()) == {"spx_nps1"}
    assert check_view(n3, nodes_seen(space, "whole"), space.devices(space.claim_of("whole", "t-whole")))


def test_selectors_and_capacity_of_the_reference_drivers_partition_on_claim_work(
    cluster: Cluster, space: Workspace, n3: AmdNode
) -> None:
    attributes = f"device.attributes['{CLASS}']"
    cel = f"{attributes}.computePartition == 'cpx' && {attributes}.memoryPartition == 'nps4'"
    wanted = request("gpu", CLASS, cel=cel, capacity={"requests": {"partitions": "1"}})
    space.apply(claim_template("gpu", space.namespace, wanted), claiming_pod(space, "w", "n3", "gpu"))
    space.wait_running("w")
    check_view(n3, nodes_seen(space, "w"), space.devices(space.claim_of("w", "t-gpu")))


def test_a_claim_may_carry_amds_own_config_and_its_container_is_told_by_whom_it_is_served(
    cluster: Cluster, space: Workspace, n3: AmdNode
) -> None:
    plain = config(CLASS, {"apiVersion": "gpu.resource.amd.com/v1alpha1", "kind": "GpuConfig"})
    space.apply(
        claim_template("gpu", space.namespace, amd_request("spx_nps1"), configs=(plain,)),
        claiming_pod(space, "w", "n3", "gpu"),
    )
    space.wait_running("w")
    check_view(n3, nodes_seen(space, "w"), space.devices(space.claim_of("w", "t-gpu")))
    told = cluster.in_pod("w", "env", namespace=space.namespace).splitlines()
    assert {"KUBERNETES_NODE_NAME=n3", f"DRA_RESOURCE_DRIVER_NAME={CLASS}"} <= set(told)


def memory_modes(node: AmdNode) -> set[str]:
    return {mode.partition("_")[2] for mode in node.modes().values()}


def test_a_node_that_no_claim_uses_any_more_goes_back_to_the_memory_mode_that_it_had(
    space: Workspace, n4: AmdNode
) -> None:
    """Several GPUs at once could not be had in that mode otherwise."""
    # Some time after the last pod of the tests before the node reloads its driver. What claims have done to the compute
    # mode alone stays, for it is in nobody's way.
    wait_until("n4 has its memory mode", lambda: memory_modes(n4) == {"nps1"}, 120.0)
    n4.simulate("--set-modes", "spx_nps1")
    space.apply(
        claim_template("part", space.namespace, amd_request("cpx_nps4")),
        claim_template("both", space.namespace, amd_request("spx_nps1", count=2)),
        claiming_pod(space, "w", "n4", "part"),
    )
    space.wait_running("w")
    assert set(n4.modes().values()) == {"cpx_nps4"}
    space.apply(claiming_pod(space, "both", "n4", "both"))
    space.wait_unschedulable("both")
    space.delete("w")
    space.wait_running("both")
    assert set(n4.modes().values()) == {"spx_nps1"}
    assert len(check_view(n4, nodes_seen(space, "both"), space.devices(space.claim_of("both", "t-both")))) == 2


def test_a_node_may_be_static_where_others_partition_on_claim(space: Workspace, n4: AmdNode) -> None:
    n4.simulate("--set-modes", "spx_nps1")  # whatever claims have brought it into before
    n4.label(**{POLICY: "static"})
    try:
        wait_until("n4 offers what there is", lambda: n4.published() == ["spx_nps1"] * 2)
        space.apply(
            claim_template("part", space.namespace, amd_request("cpx_nps1")), claiming_pod(space, "w", "n4", "part")
        )
        space.wait_unschedulable("w")
    finally:
        n4.label(**{POLICY: None})
    space.wait_running("w")


def test_a_pod_may_have_gpus_of_both_vendors(cluster: Cluster, space: Workspace, n3: AmdNode) -> None:
    space.apply(
        claim_template("both", space.namespace, amd_request("spx_nps1", name="amd"), gpu_request("nvidia")),
        claiming_pod(space, "w", None, "both"),
    )
    space.wait_running("w")
    assert cluster.get(space.pods("w"))["spec"]["nodeName"] == "n3"
    devices = [each for each in space.devices(space.claim_of("w", "t-both")) if each.request == "amd"]
    check_view(n3, nodes_seen(space, "w"), devices)
    assert cluster.in_pod("w", "ls", "/dev/nvidia0", namespace=space.namespace)


def test_a_plugin_killed_while_the_driver_reloads_finishes_it_for_the_claim(
    cluster: Cluster, space: Workspace, n3: AmdNode
) -> None:
    n3.simulate("--reload-pause-ms", "2000")
    try:
        space.apply(
            claim_template("gpu", space.namespace, amd_request("cpx_nps4")), claiming_pod(space, "w", "n3", "gpu")
        )
        wait_until("the driver is away", lambda: not n3.has_driver())
        n3.kill_plugin()
        space.wait_running("w")
    finally:
        n3.simulate("--reload-pause-ms", "0")
    check_view(n3, nodes_seen(space, "w"), space.devices(space.claim_of("w", "t-gpu")))


def test_a_rebooted_node_gives_a_claim_the_same_partition_under_other_numbers(
    cluster: Cluster, space: Workspace, n4: AmdNode
) -> None:
    space.apply(claim_template("gpu", space.namespace, amd_request("cpx_nps4")))
    space.apply(claiming_pod(space, "w", "n4", "gpu", restartPolicy="Always"))
    space.wait_running("w")
    devices = space.devices(space.claim_of("w", "t-gpu"))
    (render,) = check_view(n4, nodes_seen(space, "w"), devices)
    before = n4.slots()[render]
    cluster.run("poweroff", "n4")
    try:
        n4.simulate("--reboot", "5")
        assert set(n4.modes().values()) == {"spx_nps1"}
    finally:
        cluster.run("poweron", "n4")

    def runs_again(pod: Object) -> bool:
        return any(each["restartCount"] and each["ready"] for each in pod["status"]["containerStatuses"])

    cluster.wait(space.pods("w"), "w runs again", runs_again, 120.0)
    seen = nodes_seen(space, "w")
    (render,) = check_view(n4, seen, devices)
    assert n4.slots()[render] == before
    assert f"/dev/dri/card{5 + before.index}" in seen
