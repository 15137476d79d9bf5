"""Node partitioning on a real control plane: whose taints are whose, who is evicted, what an interruption leaves."""

import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest
import yaml

from api.kaiwo import DCM_ANNOTATION, DCM_PROFILE_LABEL, TAINTED_ANNOTATION, TARGET_ANNOTATION, TOLERATIONS
from tests.support.cluster import Cluster, CommandFailed, Object, path, wait_until
from tests.support.computedomain import NAMESPACE, RELEASE, Controller, playing_kubelets
from tests.support.fixtures import session_cluster
from tests.support.nodepartitioning import CRD, Node, Plugins, install, playing_plugins

FULL = {"kaiwo-partitioning:NoSchedule", "kaiwo-partitioning:NoExecute", "amd-dcm:NoExecute"}
OPTIONS = {"COMPUTE_DOMAINS": "false", "NODE_PARTITIONING": "true", "PARTITIONING_MAX_UNAVAILABLE": "5"}
KUBE_SYSTEM = "kube-system"


@pytest.fixture(scope="module")
def prepared() -> Iterator[Cluster]:
    for cluster in session_cluster("np", "--nodes", "0", "--provider", "local"):
        install(cluster)
        yield cluster


@pytest.fixture
def plugins(prepared: Cluster) -> Iterator[Plugins]:
    with playing_kubelets(prepared), playing_plugins(prepared) as plugins:
        yield plugins


@pytest.fixture
def controller(prepared: Cluster, tmp_path: Path) -> Iterator[Controller]:
    controller = Controller(prepared, tmp_path / "controller.log", options=OPTIONS)
    with controller.leading():
        yield controller


@pytest.fixture
def make(prepared: Cluster, plugins: Plugins) -> Iterator[Callable[..., Node]]:
    """Makes a Node; with GPUs in a mode, unless it is None."""
    made: list[Node] = []

    def build(mode: str | None = "spx_nps1", **spec: object) -> Node:
        node = Node(prepared, f"np-{uuid4().hex[:6]}")
        prepared.create(path("v1", "nodes"), {"metadata": {"name": node.name}, "spec": spec})
        if mode:
            plugins.modes[node.name] = mode
        made.append(node)
        prepared.wait(node.where, "the node is ready", is_ready)
        return node

    yield build
    for node in made:
        plugins.modes.pop(node.name, None)
        prepared.delete(node.where)


def is_ready(node: Object) -> bool:
    return any(each["type"] == "Ready" and each["status"] == "True" for each in node["status"].get("conditions", ()))


def wait_phase(node: Node, phase: str) -> None:
    wait_until(f"{node.name} is {phase}; it says {node.message()}", lambda: node.phase() == phase)


def run_pod(cluster: Cluster, node: Node, name: str, **labels: str) -> str:
    """A pod on the node that runs; where it is."""
    where = path("v1", "pods", namespace="default", name=name)
    container = {"name": "main", "image": "busybox:dev"}
    toleration = {"operator": "Exists", "effect": "NoSchedule"}
    spec = {"nodeName": node.name, "containers": [container], "tolerations": [toleration]}
    cluster.create(
        path("v1", "pods", namespace="default"), {"metadata": {"name": name, "labels": labels}, "spec": spec}
    )
    cluster.wait(where, "the pod runs", lambda pod: pod.get("status", {}).get("phase") == "Running")
    return where


def guard(cluster: Cluster, name: str, app: str) -> str:
    spec = {"maxUnavailable": 0, "selector": {"matchLabels": {"app": app}}}
    cluster.create(
        path("policy/v1", "poddisruptionbudgets", namespace="default"), {"metadata": {"name": name}, "spec": spec}
    )
    return path("policy/v1", "poddisruptionbudgets", namespace="default", name=name)


def test_an_administrators_taint_is_there_before_and_after(controller: Controller, make: Callable[..., Node]) -> None:
    taint = {"key": "amd-dcm", "value": "up", "effect": "NoExecute"}
    theirs, ours = make(taints=[taint]), make()
    for node in (theirs, ours):
        node.ask("cpx")
    for node in (theirs, ours):
        wait_phase(node, "Completed")
    wait_until("our taints are gone", lambda: not ours.taints())
    wait_until("theirs stays", lambda: theirs.taints() == {"amd-dcm:NoExecute"})
    for node in (theirs, ours):
        assert TAINTED_ANNOTATION not in node.annotations()


def test_a_kaiwonode_that_kaiwo_left_is_taken_over(
    prepared: Cluster, plugins: Plugins, make: Callable[..., Node], tmp_path: Path
) -> None:
    """Its phase is none of ours; the controller neither ends nor loses the flavor that Kaiwo has noted."""
    node = make()
    loose = yaml.safe_load(CRD)
    schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    loose["spec"]["versions"][0]["schema"] = {"openAPIV3Schema": schema}
    prepared.apply(loose)
    kaiwo = {"apiVersion": "kaiwo.silogen.ai/v1alpha1", "kind": "KaiwoNode", "metadata": {"name": node.name}}
    spec = {"partitioning": {"enabled": True, "profile": "cpx"}}
    status = {"status": "Ready", "kueueFlavorName": "mi300x", "partitioning": {"phase": "WaitingForLabels"}}

    def stored() -> bool:
        prepared.apply(kaiwo | {"spec": spec})
        prepared.patch(node.kaiwo + "/status", {"status": status})
        return node.phase() == "WaitingForLabels"

    wait_until("Kaiwo's status is stored", stored)
    prepared.apply(CRD)
    controller = Controller(prepared, tmp_path / "controller.log", options=OPTIONS).start()
    try:
        wait_phase(node, "Completed")
        assert prepared.get(node.kaiwo)["status"]["kueueFlavorName"] == "mi300x"
        shown = prepared.kubectl("get", "kaiwonodes", node.name, "-o", "wide").splitlines()
        assert shown[0].split("  ")[0] == "NAME"
        for column in ("STATUS", "GPU PARTITIONING", "FLAVOR", "PHASE", "REASON", "AGE"):
            assert column in shown[0]
        for value in ("Ready", "cpx", "mi300x", "Completed", "the node is in profile cpx"):
            assert value in shown[1]
    finally:
        assert controller.stop() == 0


def test_a_pod_that_cannot_be_evicted_does_not_keep_the_others_or_its_reason(
    prepared: Cluster, controller: Controller, make: Callable[..., Node]
) -> None:
    """Of a pod under two budgets the API server says 500; that is told, and the next pod leaves all the same."""
    node = make()
    kept, leaving = run_pod(prepared, node, "a-kept", app="kept"), run_pod(prepared, node, "b-leaving")
    budgets = [guard(prepared, name, "kept") for name in ("one", "two")]
    node.ask("cpx")
    prepared.wait_gone(leaving)
    wait_until("the reason is told", lambda: "more than one PodDisruptionBudget" in node.message())
    assert "default/a-kept" in node.message()
    assert prepared.find(kept)
    for budget in budgets:
        prepared.delete(budget)
    wait_phase(node, "Completed")


@pytest.mark.parametrize("middle", ["DrainingUntoleratedPods", "ApplyingPartitions"])
def test_a_controller_that_is_killed_in_the_middle_goes_on_where_it_was(
    prepared: Cluster, controller: Controller, plugins: Plugins, make: Callable[..., Node], middle: str
) -> None:
    node = make()
    plugins.silent.add(node.name)
    budget = guard(prepared, f"kill-{node.name}", node.name)
    run_pod(prepared, node, f"pod-{node.name}", app=node.name)
    node.ask("cpx")
    if middle == "ApplyingPartitions":
        prepared.delete(budget)
    wait_phase(node, middle)
    controller.stop(signal.SIGKILL)
    plugins.silent.clear()
    if middle == "DrainingUntoleratedPods":
        prepared.delete(budget)
    controller.start()
    wait_phase(node, "Completed")
    wait_until("no taint is left", lambda: not node.taints())
    assert plugins.modes[node.name] == "cpx_nps4"


def test_a_kaiwonode_that_is_deleted_in_the_middle_leaves_nothing(
    prepared: Cluster, controller: Controller, plugins: Plugins, make: Callable[..., Node]
) -> None:
    """Asked for by its spec alone, on a node that meanwhile shows no GPUs."""
    node = make()
    plugins.silent.add(node.name)
    wait_until("the KaiwoNode is there", lambda: prepared.find(node.kaiwo))
    prepared.patch(node.kaiwo, {"spec": {"partitioning": {"enabled": True, "profile": "cpx"}}})
    wait_until("the node is tainted", lambda: node.taints() == FULL)
    assert TAINTED_ANNOTATION in node.annotations()
    del plugins.modes[node.name]
    prepared.delete(path("resource.k8s.io/v1", "resourceslices", name=f"{node.name}-amd"))
    prepared.delete(node.kaiwo)
    wait_until("no taint is left", lambda: not node.taints())
    wait_until("no target is left", lambda: TARGET_ANNOTATION not in node.annotations())
    assert TAINTED_ANNOTATION not in node.annotations()


def test_a_manager_is_asked_when_it_is_ready_and_what_it_was_asked_goes_with_the_kaiwonode(
    prepared: Cluster, controller: Controller, make: Callable[..., Node]
) -> None:
    node = make()
    labels = {"app.kubernetes.io/name": "device-config-manager"}
    manager = run_pod(prepared, node, f"dcm-{node.name}", **labels)
    wait_until("the KaiwoNode is there", lambda: prepared.find(node.kaiwo))
    prepared.patch(node.kaiwo, {"spec": {"partitioning": {"enabled": True, "profile": "cpx"}}})
    wait_phase(node, "ApplyingPartitions")
    wait_until("it is asked", lambda: node.labels().get(DCM_PROFILE_LABEL) == "cpx")
    assert node.annotations()[DCM_ANNOTATION] == "cpx"
    prepared.delete(node.kaiwo)
    wait_until("no taint is left", lambda: not node.taints())
    wait_until("nothing is asked", lambda: DCM_PROFILE_LABEL not in node.labels())
    assert DCM_ANNOTATION not in node.annotations()
    prepared.delete(manager)


def test_a_node_that_is_right_keeps_its_pods_where_claims_choose(
    prepared: Cluster, controller: Controller, plugins: Plugins, make: Callable[..., Node]
) -> None:
    node = make()
    plugins.on_claim.add(node.name)
    pod = run_pod(prepared, node, f"pod-{node.name}")
    slices = path("resource.k8s.io/v1", "resourceslices", name=f"{node.name}-amd")
    prepared.wait(slices, "every mode is offered", lambda piece: len(piece["spec"]["devices"]) == 4)
    node.ask("spx")
    wait_phase(node, "Completed")
    assert len(prepared.get(slices)["spec"]["devices"]) == 2, "claims do not change it any more"
    assert "deletionTimestamp" not in prepared.get(pod)["metadata"]


def test_a_label_that_is_not_understood_is_told(
    prepared: Cluster, controller: Controller, make: Callable[..., Node]
) -> None:
    node = make(mode=None)
    node.label(enabled="True", profile="cpx")
    wait_until("the condition says so", lambda: "is 'True'; right would be true or false" in node.message())
    uid = prepared.get(node.kaiwo)["metadata"]["uid"]

    def told() -> bool:
        events = prepared.list(path("events.k8s.io/v1", "events"))
        return any(
            each["reason"] == "LabelNotUnderstood" for each in events if each.get("regarding", {}).get("uid") == uid
        )

    wait_until("an Event says so", told)


def test_workloads_of_kube_system_may_come_back_to_the_node(
    prepared: Cluster, controller: Controller, make: Callable[..., Node]
) -> None:
    """One with exactly the seed's two tolerations gets what it lacks against NoSchedule."""
    seed = [
        {"effect": "NoExecute", "key": "amd-dcm", "operator": "Equal", "value": "up"},
        {"effect": "NoExecute", "key": "kaiwo-partitioning", "operator": "Exists"},
    ]
    labels = {"app": "cni"}
    template = {
        "metadata": {"labels": labels},
        "spec": {
            "containers": [{"name": "c", "image": "busybox:dev"}],
            "tolerations": seed,
            "nodeSelector": {"no": "such"},
        },
    }
    spec = {"selector": {"matchLabels": labels}, "template": template}
    where = path("apps/v1", "daemonsets", namespace=KUBE_SYSTEM, name="cni")
    prepared.create(path("apps/v1", "daemonsets", namespace=KUBE_SYSTEM), {"metadata": {"name": "cni"}, "spec": spec})
    node = make()
    node.ask("cpx")
    wait_phase(node, "Completed")
    found = prepared.get(where)["spec"]["template"]["spec"]["tolerations"]
    assert found == [*seed, TOLERATIONS[1]]
    prepared.delete(where)


def in_template(**fields: object) -> Object:
    """A change of the template's pod spec."""
    return {"spec": {"template": {"spec": fields}}}


SEED: Object = {"key": "theirs", "operator": "Exists"}
NOT_THE_CONTROLLERS: list[Object] = [
    in_template(containers=[{"name": "c", "image": "other:dev"}]),
    in_template(hostPID=True),
    in_template(nodeSelector=None),
    in_template(tolerations=[SEED, {"operator": "Exists"}]),
    in_template(tolerations=[*TOLERATIONS]),
    {"spec": {"template": {"metadata": {"annotations": {"a": "b"}}}}},
    {"spec": {"revisionHistoryLimit": 1}},
    {"metadata": {"labels": {"a": "b"}}},
    {"metadata": {"annotations": {"a": "b"}}},
    {"metadata": {"finalizers": ["example.com/f"]}},
]


@pytest.mark.parametrize("plural", ["daemonsets", "deployments"])
def test_who_has_the_controllers_token_may_add_its_tolerations_to_workloads_of_kube_system_and_change_nothing_else(
    prepared: Cluster, plural: str
) -> None:
    pod = {
        "containers": [{"name": "c", "image": "busybox:dev"}],
        "nodeSelector": {"no": "such"},
        "tolerations": [SEED],
    }
    template = {"metadata": {"labels": {"app": "held"}}, "spec": pod}
    body = {"metadata": {"name": "held"}, "spec": {"selector": {"matchLabels": {"app": "held"}}, "template": template}}
    where = path("apps/v1", plural, namespace=KUBE_SYSTEM)
    prepared.create(where, body)

    def change(patch: Object, *options: str) -> str:
        """What the API server says."""
        account = f"--as=system:serviceaccount:{NAMESPACE}:{RELEASE}-partita-controller"
        merge = ("--type=merge", f"--patch={json.dumps(patch)}", *options)
        try:
            return prepared.kubectl(account, "patch", plural, "held", f"--namespace={KUBE_SYSTEM}", *merge)
        except CommandFailed as error:
            return str(error)

    def bites() -> bool:
        return "change nothing else" in change(in_template(hostPID=True), "--dry-run=server")

    try:
        wait_until("the policy bites", bites)
        before = prepared.get(f"{where}/held")["spec"]
        for patch in NOT_THE_CONTROLLERS:
            assert "partita-workloads" in change(patch), patch
        assert prepared.get(f"{where}/held")["spec"] == before
        change(in_template(tolerations=[SEED, *TOLERATIONS]))
        assert prepared.get(f"{where}/held")["spec"]["template"]["spec"]["tolerations"] == [SEED, *TOLERATIONS]
    finally:
        prepared.delete(f"{where}/held")
