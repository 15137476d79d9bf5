"""Several nodes at once, control-plane nodes, the workloads of kube-system, and what comes to nothing at first."""

import json
from collections.abc import Iterator

import pytest

from tests.e2e.amd.conftest import SETTINGS
from tests.e2e.amd.helpers import (
    AMD_NODES,
    STATIC_PODS,
    AmdNode,
    end_partitioning,
    event_reasons,
    profiles_config,
    start_guarded,
    unguard,
)
from tests.support.chart import Release
from tests.support.cluster import Cluster, Object, path, wait_until
from tests.support.manifests import pod
from tests.support.watching import History, watching
from tests.support.workload import Workspace

MAX_UNAVAILABLE = int(SETTINGS["controller.nodePartitioning.maxUnavailable"])
CONTROL_PLANE = "node-role.kubernetes.io/control-plane"
TAINTS = ("amd-dcm", "kaiwo-partitioning")
KUBE_SYSTEM = "kube-system"


@pytest.fixture
def control_plane(cluster: Cluster, profiles: None) -> Iterator[AmdNode]:
    """n2, with a program of the control plane: a static pod."""
    node = AmdNode(cluster, "n2")
    file, fresh = f"{STATIC_PODS}/server.json", "/etc/kubernetes/server.json"
    cluster.in_node(node.name, "mkdir", "-p", STATIC_PODS)
    cluster.write_in_node(node.name, fresh, json.dumps(pod("server", KUBE_SYSTEM)))
    cluster.in_node(node.name, "mv", fresh, file)  # the kubelet reads a file as soon as it sees it
    node.label(**{CONTROL_PLANE: ""})
    yield node
    cluster.in_node(node.name, "rm", file)
    node.label(**{CONTROL_PLANE: None})


def tainted_sets(history: History) -> list[set[str]]:
    """The nodes that were tainted together, each time that this changed."""
    tainted: set[str] = set()
    found = []
    for node in history.states():
        name = node["metadata"]["name"]
        is_tainted = any(taint["key"] in TAINTS for taint in node["spec"].get("taints", ()))
        if is_tainted != (name in tainted):
            tainted = tainted ^ {name}
            found.append(tainted)
    return found


def test_a_rollout_keeps_to_its_limit_and_ends_with_the_control_plane(cluster: Cluster, control_plane: AmdNode) -> None:
    nodes = [AmdNode(cluster, name) for name in AMD_NODES]
    server = path("v1", "pods", namespace=KUBE_SYSTEM, name=f"server-{control_plane.name}")
    before = cluster.wait(server, "the static pod runs", lambda each: each["status"].get("phase") == "Running")
    try:
        for node in nodes:
            node.simulate("--reload-pause-ms", "1000")
            node.ask("cpx_nps4")
        for node in nodes:
            node.wait_phase("Error")
        with watching(cluster, path("v1", "nodes")) as history:
            cluster.apply(profiles_config(cpx_nps4=("CPX", "NPS4", None)))
            for node in nodes:
                node.wait_partitioned("cpx_nps4")
            wait_until("the watch has told of the end", lambda: not tainted_sets(history)[-1])
            together = tainted_sets(history)
    finally:
        for node in nodes:
            end_partitioning(node)
    assert max(len(each) for each in together) == MAX_UNAVAILABLE
    first = [next(number for number, each in enumerate(together) if name in each) for name in AMD_NODES]
    assert first.index(max(first)) == AMD_NODES.index(control_plane.name)
    after = cluster.get(server)
    assert after["status"]["containerStatuses"] == before["status"]["containerStatuses"], "it ran all the time"


# Workloads of kube-system


def workload(kind: str, name: str) -> Object:
    """One without pods."""
    labels = {"app": name}
    spec: Object = {
        "selector": {"matchLabels": labels},
        "template": {
            "metadata": {"labels": labels},
            "spec": {
                **pod(name, KUBE_SYSTEM, restartPolicy="Always")["spec"],
                "nodeSelector": {"none": "such"},
                "tolerations": [{"key": "own", "operator": "Exists"}],
            },
        },
    }
    return {
        "apiVersion": "apps/v1",
        "kind": kind,
        "metadata": {"name": name, "namespace": KUBE_SYSTEM},
        "spec": spec | ({"replicas": 0} if kind == "Deployment" else {}),
    }


@pytest.fixture
def workloads(cluster: Cluster) -> Iterator[list[str]]:
    """A Deployment and a DaemonSet of kube-system."""
    cluster.apply([workload("Deployment", "dns"), workload("DaemonSet", "cni")])
    found = [
        path("apps/v1", plural, namespace=KUBE_SYSTEM, name=name)
        for plural, name in (("deployments", "dns"), ("daemonsets", "cni"))
    ]
    yield found
    for each in found:
        cluster.delete(each)


def tolerated(cluster: Cluster, where: str) -> set[str]:
    """Keys."""
    return {each["key"] for each in cluster.get(where)["spec"]["template"]["spec"]["tolerations"]}


def test_workloads_of_kube_system_are_made_to_tolerate_the_taints(
    cluster: Cluster, workloads: list[str], profiles: None, n4: AmdNode
) -> None:
    n4.ask("cpx")
    n4.wait_partitioned("cpx")
    for each in workloads:
        assert tolerated(cluster, each) == {"own", *TAINTS}


@pytest.fixture
def network(cluster: Cluster) -> Iterator[None]:
    """A DaemonSet of kube-system whose pod the node cannot do without."""
    body = workload("DaemonSet", "network")
    del body["spec"]["template"]["spec"]["nodeSelector"]
    cluster.apply(body)
    yield
    cluster.delete(path("apps/v1", "daemonsets", namespace=KUBE_SYSTEM, name="network"))


def test_what_must_not_stop_runs_all_the_time(
    cluster: Cluster, network: None, space: Workspace, profiles: None, n4: AmdNode
) -> None:
    """kube-system's pod is replaced before the first taint; one with the documented tolerations is left alone."""
    documented = [
        {"effect": "NoExecute", "key": "amd-dcm", "operator": "Equal", "value": "up"},
        {"effect": "NoExecute", "key": "kaiwo-partitioning", "operator": "Exists"},
    ]
    space.apply(pod("critical", space.namespace, node="n4", tolerations=documented))
    space.wait_running("critical")

    def running() -> dict[str, Object]:
        """Containers by pod."""
        pods = [
            *cluster.list(path("v1", "pods", namespace=KUBE_SYSTEM), labelSelector="app=network"),
            cluster.get(space.pods("critical")),
        ]
        return {
            f"{each['metadata']['name']} {each['metadata']['uid']}": each["status"]["containerStatuses"]
            for each in pods
            if each["spec"].get("nodeName") == "n4" and each["status"]["phase"] == "Running"
        }

    wait_until("both run", lambda: len(running()) == 2)
    first = running()
    start_guarded(space, n4)
    n4.ask("cpx")
    # The pods of all nodes are replaced one after the other.
    wait_until("the node is tainted", n4.taints, 180.0)
    assert len(running().keys() & first.keys()) == 1, "kube-system's is being replaced, the other is not"
    wait_until("the new one runs, on a node that is tainted", lambda: len(running()) == 2)
    before = running()
    unguard(space)
    n4.wait_partitioned("cpx")
    assert running() == before


def test_a_reload_that_leaves_the_node_without_its_driver_is_mended(profiles: None, n4: AmdNode) -> None:
    n4.simulate("--losing-reloads", "1")
    n4.ask("cpx")
    n4.wait_partitioned("cpx")
    assert n4.simulate()["faults"]["losing_reloads"] == 0, "one was lost"


@pytest.fixture
def strict(release: Release) -> Iterator[None]:
    """kube-system is not ours to change, and a drain has 5 s."""
    limits = {"drainTimeout": "5s", "tolerateKubeSystem": "false"}
    release.install(**SETTINGS, **{f"controller.nodePartitioning.{key}": value for key, value in limits.items()})
    yield
    release.install(**SETTINGS)


def test_a_drain_that_a_budget_holds_too_long_is_an_error_until_it_is_asked_for_again(
    cluster: Cluster, strict: None, space: Workspace, workloads: list[str], profiles: None, n4: AmdNode
) -> None:
    start_guarded(space, n4)
    n4.ask("cpx")
    n4.wait_phase("Error")
    assert f"not drained after 5 s: waiting for 1 pods to leave: {space.namespace}/guarded" in n4.message()
    wait_until("no taint is left", lambda: not n4.taints())
    assert space.phase("guarded") == "Running"
    assert set(n4.modes().values()) == {"spx_nps1"}
    assert "PartitioningFailed" in event_reasons(n4)

    n4.label(enabled="false")
    n4.wait_phase("")
    unguard(space)
    n4.label(enabled="true")
    n4.wait_partitioned("cpx")
    for each in workloads:
        assert tolerated(cluster, each) == {"own"}, "the administrator has opted out"
