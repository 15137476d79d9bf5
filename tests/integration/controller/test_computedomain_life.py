"""A ComputeDomain on a real control plane: it forms around scheduled pods, is repaired, drains and leaves nothing."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.cluster import ApiError, Cluster, CommandFailed, Object, path, wait_until
from tests.support.computedomain import (
    DOMAINS,
    FABRIC,
    NAMESPACE,
    Controller,
    Kubelets,
    build_domain,
    build_worker,
    make_node,
    publish,
    write_kubeconfig,
)
from tests.support.domain_controller_world import World, condition, controller, kubelets, world

__all__ = ["controller", "kubelets", "world"]


def test_a_domain_forms_around_its_pods_and_goes_with_them(
    world: World, controller: Controller, kubelets: Kubelets
) -> None:
    world.create(build_domain("train", 2))
    world.start_workers("cd-a", "cd-b")
    domain = world.wait_ready(2)
    assert {node["name"]: (node["cliqueID"], node["index"]) for node in domain["status"]["nodes"]} == {
        "cd-a": (f"{FABRIC}.0", domain["status"]["nodes"][0]["index"]),
        "cd-b": (f"{FABRIC}.0", 1 - domain["status"]["nodes"][0]["index"]),
    }
    daemons = world.daemons()
    assert sorted(pod["spec"]["nodeName"] for pod in daemons) == ["cd-a", "cd-b"]
    assert all(pod["metadata"]["name"].startswith("train-") for pod in daemons)
    assert all(
        condition(domain, kind)["status"] == "True" for kind in ("MembersKnown", "DaemonsReady", "PeersConnected")
    )
    world.end_workers()
    assert "nodes" not in world.wait_reason("Idle")["status"]  # as with NVIDIA's driver
    wait_until("nothing of the formation is left", lambda: not world.leftovers())
    world.cluster.delete(f"{world.domains}/train")
    world.cluster.wait_gone(f"{world.domains}/train")
    templates = world.cluster.list(path("resource.k8s.io/v1", "resourceclaimtemplates", namespace=world.namespace))
    assert not templates


def test_a_domain_that_nvidias_controller_has_left_ends_with_its_template(world: World, controller: Controller) -> None:
    """Which has the domain's finalizer, and nobody but us to take it off."""
    world.create(build_domain("left", 1))
    world.wait_reason("Idle")
    template = path("resource.k8s.io/v1", "resourceclaimtemplates", namespace=world.namespace) + "/left-channel"
    world.cluster.patch(template, {"metadata": {"finalizers": ["resource.nvidia.com/computeDomain"]}})
    world.cluster.delete(f"{world.domains}/left")
    world.cluster.wait_gone(f"{world.domains}/left")
    assert world.cluster.find(template) is None


def test_a_daemon_has_no_credentials_and_its_account_may_read_nothing(
    world: World, controller: Controller, kubelets: Kubelets, tmp_path: Path
) -> None:
    world.form("bare", "cd-a")
    (daemon,) = world.daemons()
    assert not daemon["spec"].get("volumes")
    kubeconfig = tmp_path / "daemon.kubeconfig"
    write_kubeconfig(world.cluster, daemon["spec"]["serviceAccountName"], NAMESPACE, kubeconfig)
    (clique,) = world.mine(DOMAINS, "computedomaincliques")
    ours = f"{path(DOMAINS, 'computedomaincliques', namespace=NAMESPACE)}/{clique['metadata']['name']}"
    secrets = path("v1", "secrets", namespace=NAMESPACE)
    for where in (ours, path(DOMAINS, "computedomaincliques", namespace=NAMESPACE), secrets):
        with pytest.raises(CommandFailed, match="Forbidden"):
            world.cluster.kubectl("get", "--raw", where, f"--kubeconfig={kubeconfig}")


def test_a_domain_over_two_cliques_and_a_node_without_fabric(
    world: World, controller: Controller, kubelets: Kubelets
) -> None:
    world.create(build_domain("wide", 3))
    world.start_workers("cd-a", "cd-c", "cd-plain")
    domain = world.wait_ready(3)
    assert {node["name"]: node["index"] for node in domain["status"]["nodes"]} == {"cd-a": 0, "cd-c": 0, "cd-plain": -1}
    assert len(world.mine(DOMAINS, "computedomaincliques")) == 2
    assert len(world.daemons()) == 2


def test_of_two_domains_on_the_same_nodes_one_gets_them_all_keeps_them_and_then_the_other_has_its_turn(
    world: World, controller: Controller, kubelets: Kubelets
) -> None:
    """Each of them has a node first, and neither lets a pod start before it has both."""
    both = [world, World(world.cluster, world.namespace)]
    for number, each in enumerate(both):
        each.create(build_domain(f"rival-{number}", 2, releasePolicy="AllNodes"))
    for nodes in (("cd-a", "cd-b"), ("cd-b", "cd-a")):
        for each, node in zip(both, nodes, strict=True):
            each.start_workers(node)

    def reason(each: World) -> str:
        return str(condition(each.cluster.get(f"{each.domains}/{each.name}"), "Ready")["reason"])

    wait_until("one has both", lambda: sorted(map(reason, both)) == ["Connected", "NodeOccupied"])
    first, second = sorted(both, key=reason)
    told = condition(world.cluster.get(f"{second.domains}/{second.name}"), "Degraded")["message"]
    assert f"used by ComputeDomain {world.namespace}/{first.name}" in told
    before = {pod["metadata"]["uid"] for pod in first.daemons()}
    for pod in first.daemons():
        world.cluster.delete(path("v1", "pods", namespace=NAMESPACE, name=pod["metadata"]["name"]))
    wait_until("it has new daemons", lambda: before.isdisjoint(pod["metadata"]["uid"] for pod in first.daemons()))
    first.wait_ready(2)
    assert not second.daemons() and not second.mine("resource.k8s.io/v1", "resourceclaims"), "nothing competes"
    for node in ("cd-a", "cd-b"):
        world.cluster.delete(f"{world.pods}/{first.name}-{node}")
    second.wait_ready(2)


def test_with_binding_conditions_a_pod_is_bound_when_its_domain_is_formed(
    world: World, controller: Controller, kubelets: Kubelets
) -> None:
    make_node(world.cluster, "cd-bind", f"{FABRIC}.0", binding=True)
    world.create(build_domain("bound", 2))
    kubelets.ready = False
    world.start_workers("cd-a", "cd-bind")
    wait_until("both daemons run", lambda: [pod["status"]["phase"] for pod in world.daemons()] == ["Running"] * 2)
    waiting = f"{world.pods}/bound-cd-bind"
    assert "nodeName" not in world.cluster.get(waiting)["spec"]
    kubelets.ready = True
    world.wait_ready(2)
    world.cluster.wait(waiting, "it is bound", lambda pod: pod["spec"].get("nodeName") == "cd-bind")


def test_with_binding_conditions_a_pod_whose_node_cannot_take_part_is_scheduled_anew(
    world: World, controller: Controller, kubelets: Kubelets
) -> None:
    """A node has one daemon; another domain's is on the one that the scheduler chooses first."""
    for node in ("cd-bind", "cd-other"):
        make_node(world.cluster, node, f"{FABRIC}.0", binding=True)
    world.form("first", "cd-bind")
    second = World(world.cluster, world.namespace)
    second.create(build_domain("second", 1))
    pod = build_worker("second", "second", "")
    del pod["spec"]["nodeSelector"]
    silent = ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable")  # nodes here have no kubelets
    pod["spec"]["tolerations"] = [{"key": key, "operator": "Exists"} for key in silent]
    pod["spec"]["affinity"] = {"nodeAffinity": prefer("cd-bind", "cd-other")}
    world.cluster.create(second.pods, pod)
    claims = path("resource.k8s.io/v1", "resourceclaims", namespace=world.namespace)

    def failed() -> list[str]:
        """Nodes on which the second domain's channel is said to be impossible."""
        found = [claim for claim in world.cluster.list(claims) if claim["metadata"]["name"].startswith("second-")]
        devices = [each for claim in found for each in claim.get("status", {}).get("devices", ())]
        return [each["pool"] for each in devices if is_true(each, "resource.nvidia.com/ComputeDomainFailed")]

    wait_until("it is told that it cannot be", lambda: failed() == ["cd-bind"])
    where = path("v1", "nodes", name="cd-bind")
    world.cluster.patch(where, {"spec": {"unschedulable": True}})
    try:
        world.cluster.wait(f"{second.pods}/second", "it goes", lambda p: p["spec"].get("nodeName") == "cd-other")
        domain = second.wait_ready(1)
        assert [node["name"] for node in domain["status"]["nodes"]] == ["cd-other"]
    finally:
        world.cluster.patch(where, {"spec": {"unschedulable": False}})


def prefer(first: str, other: str) -> Object:
    """Node affinity: one of the two, rather the first."""

    def on(*nodes: str) -> Object:
        return {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": list(nodes)}]}

    return {
        "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [on(first, other)]},
        "preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100, "preference": on(first)}],
    }


def is_true(device: Object, kind: str) -> bool:
    return any(each["type"] == kind and each["status"] == "True" for each in device.get("conditions", ()))


def test_an_elastic_domain_is_ready_with_whoever_is_there(
    world: World, controller: Controller, kubelets: Kubelets
) -> None:
    elastic = build_domain("elastic", 0)
    del elastic["spec"]["numNodes"]
    world.create(elastic)
    world.wait_ready(0)
    world.start_workers("cd-a")
    world.wait_ready(1)
    world.start_workers("cd-b")
    domain = world.wait_ready(2)
    assert domain["status"]["progress"] == "2/2"
    world.end_workers()
    domain = world.wait_ready(0)
    assert condition(domain, "Ready")["reason"] == "Idle"


def test_a_domain_whose_template_could_not_be_made_is_refused(world: World) -> None:
    wrong = build_domain("wrong", 1, resourceClaimTemplate={"name": "Foo_Bar"})
    with pytest.raises(ApiError, match=r"resourceClaimTemplate\.name"):
        world.cluster.create(world.domains, wrong)


def test_a_lost_daemon_comes_back_with_its_index(world: World, controller: Controller, kubelets: Kubelets) -> None:
    world.create(build_domain("lossy", 2))
    world.start_workers("cd-a", "cd-b")
    before = {node["name"]: node["index"] for node in world.wait_ready(2)["status"]["nodes"]}
    victim = world.daemons()[0]["metadata"]
    world.cluster.delete(path("v1", "pods", namespace=NAMESPACE, name=victim["name"]), gracePeriodSeconds=0)
    where = path("v1", "pods", namespace=NAMESPACE, name=victim["name"])
    world.cluster.wait(where, "a new daemon", lambda pod: pod["metadata"]["uid"] != victim["uid"])
    after = world.wait_ready(2)
    assert {node["name"]: node["index"] for node in after["status"]["nodes"]} == before


def test_nobody_waits_for_a_node_that_died_before_it_was_connected_once_its_pods_are_being_deleted(
    world: World, controller: Controller, kubelets: Kubelets
) -> None:
    """Kubernetes deletes them some minutes after the node has died; there is no kubelet that would end them."""
    kubelets.ready = False
    kubelets.frozen.add("early-cd-b")
    world.create(build_domain("early", 2))
    world.start_workers("cd-a", "cd-b")
    try:
        wait_until("both daemons run", lambda: [pod["status"]["phase"] for pod in world.daemons()] == ["Running"] * 2)
        world.cluster.delete(f"{world.pods}/early-cd-b")

        def absent() -> list[str]:
            members = [each for clique in world.mine(DOMAINS, "computedomaincliques") for each in clique["daemons"]]
            return [each["nodeName"] for each in members if each.get("absent")]

        wait_until("nobody waits for cd-b", lambda: absent() == ["cd-b"])
        assert "node cd-b is not waited for" in condition(world.wait_reason("MemberLost"), "Ready")["message"]
    finally:
        kubelets.frozen.clear()
    kubelets.ready = True
    world.wait("cd-b has left", lambda domain: [node["name"] for node in domain["status"].get("nodes", ())] == ["cd-a"])


def evict(cluster: Cluster, pod: Object) -> None:
    metadata = {"name": pod["metadata"]["name"], "namespace": pod["metadata"]["namespace"]}
    where = path("v1", "pods", **metadata)
    cluster.create(f"{where}/eviction", {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": metadata})


def test_a_drain_leaves_the_daemon_to_the_job_until_that_has_ended_and_then_ends_too(
    world: World, controller: Controller, kubelets: Kubelets
) -> None:
    world.form("drained", "cd-a", "cd-b")
    kubelets.frozen.add("drained-cd-a")  # the job takes its time to end
    (daemon,) = [pod for pod in world.daemons() if pod["spec"]["nodeName"] == "cd-a"]
    where = path("v1", "pods", namespace=NAMESPACE, name=daemon["metadata"]["name"])
    with ThreadPoolExecutor() as pool:
        drain = pool.submit(world.cluster.kubectl, "drain", "cd-a", "--force", "--timeout=120s")
        try:
            world.cluster.wait(
                f"{world.pods}/drained-cd-a", "its pod is ending", lambda pod: "deletionTimestamp" in pod["metadata"]
            )
            with pytest.raises(ApiError, match="disruption budget") as refusal:
                evict(world.cluster, daemon)
            assert refusal.value.status == 429
            kept = world.cluster.get(where)
            assert kept["metadata"]["uid"] == daemon["metadata"]["uid"]
            assert "deletionTimestamp" not in kept["metadata"]
            assert not drain.done()
            kubelets.frozen.clear()
            drain.result()
            assert [pod["spec"]["nodeName"] for pod in world.daemons()] == ["cd-b"]
        finally:
            kubelets.frozen.clear()
            world.cluster.kubectl("uncordon", "cd-a")


def test_a_node_that_moves_to_another_rack_moves_to_its_clique(
    world: World, controller: Controller, kubelets: Kubelets
) -> None:
    world.form("moving", "cd-a", "cd-b")
    publish(world.cluster, "cd-b", f"{FABRIC}.1")
    try:
        moved = {"cd-a": f"{FABRIC}.0", "cd-b": f"{FABRIC}.1"}
        world.wait(
            "cd-b is in the other clique and connected",
            lambda d: (
                {n["name"]: n["cliqueID"] for n in d["status"].get("nodes", ()) if n["status"] == "Ready"} == moved
            ),
        )
    finally:
        publish(world.cluster, "cd-b", f"{FABRIC}.0")


def test_a_deleted_domain_in_use_drains(world: World, controller: Controller, kubelets: Kubelets) -> None:
    world.form("drain", "cd-a", "cd-b")
    world.cluster.delete(f"{world.domains}/drain")
    domain = world.wait_reason("Draining")
    assert "drain-cd-" in condition(domain, "Draining")["message"]
    assert len(world.daemons()) == 2
    assert all(clique["draining"] for clique in world.mine(DOMAINS, "computedomaincliques"))
    world.end_workers()
    world.cluster.wait_gone(f"{world.domains}/drain")
    assert not world.leftovers()


def test_force_ends_a_domain_under_its_pods(world: World, controller: Controller, kubelets: Kubelets) -> None:
    world.form("forced", "cd-a")
    world.cluster.delete(f"{world.domains}/forced")
    world.wait_reason("Draining")
    annotation = {"metadata": {"annotations": {"resource.nvidia.com/force-delete": "true"}}}
    world.cluster.patch(f"{world.domains}/forced", annotation)
    world.cluster.wait_gone(f"{world.domains}/forced")
    assert not world.leftovers()


@pytest.mark.parametrize("force", [True, False])
def test_a_deleted_domain_says_which_dead_node_it_waits_for_and_ends_in_spite_of_it(
    world: World, controller: Controller, kubelets: Kubelets, force: bool
) -> None:
    name = "forced" if force else "patient"
    world.create(build_domain(name, 2))
    world.start_workers("cd-a", "cd-b")
    world.wait_ready(2)
    (dead,) = [pod["metadata"]["name"] for pod in world.daemons() if pod["spec"]["nodeName"] == "cd-a"]
    kubelets.frozen.add(dead)
    if force:
        annotation = {"metadata": {"annotations": {"resource.nvidia.com/force-delete": "true"}}}
        world.cluster.patch(f"{world.domains}/{name}", annotation)
    else:
        world.end_workers()
    world.cluster.delete(f"{world.domains}/{name}")
    domain = world.wait_reason("CleaningUp")
    assert domain["status"]["status"] == "NotReady"
    assert f"{dead} on node cd-a" in condition(domain, "Ready")["message"]
    world.cluster.wait_gone(f"{world.domains}/{name}", 30.0 if force else 60.0)
    assert not world.leftovers()


def test_a_foreign_template_is_a_condition_and_an_event(
    world: World, controller: Controller, kubelets: Kubelets
) -> None:
    templates = path("resource.k8s.io/v1", "resourceclaimtemplates", namespace=world.namespace)
    theirs = {"metadata": {"name": "clash-channel"}, "spec": {"spec": {"devices": {}}}}
    world.cluster.create(templates, theirs)
    world.create(build_domain("clash", 1))
    domain = world.wait_reason("TemplateConflict")
    assert "clash-channel" in condition(domain, "Ready")["message"]
    events = path("v1", "events", namespace=world.namespace)
    wait_until(
        "an Event says so",
        lambda: [e for e in world.cluster.list(events) if e["reason"] == "TemplateConflict" and e["type"] == "Warning"],
    )
    world.cluster.delete(f"{templates}/clash-channel")
    world.wait_reason("Idle")


def test_a_claim_of_another_namespace_gets_no_daemon(world: World, controller: Controller, kubelets: Kubelets) -> None:
    world.create(build_domain("mine", 1))
    intruder = World(world.cluster, "default")
    intruder.name = "mine"
    parameters = {
        "apiVersion": DOMAINS,
        "kind": "ComputeDomainChannelConfig",
        "domainID": world.uid,
        "allocationMode": "Single",
    }
    claim = {
        "devices": {
            "requests": [
                {"name": "channel", "exactly": {"deviceClassName": "compute-domain-default-channel.nvidia.com"}}
            ],
            "config": [{"opaque": {"driver": "compute-domain.nvidia.com", "parameters": parameters}}],
        }
    }
    templates = path("resource.k8s.io/v1", "resourceclaimtemplates", namespace="default")
    world.cluster.create(templates, {"metadata": {"name": "mine-channel"}, "spec": {"spec": claim}})
    try:
        intruder.start_workers("cd-a")
        events = path("v1", "events", namespace="default")
        wait_until(
            "the intruder is told",
            lambda: [e for e in world.cluster.list(events) if e["reason"] == "ForeignComputeDomain"],
        )
        assert not world.daemons()
        assert not world.mine(DOMAINS, "computedomaincliques")
    finally:
        intruder.end_workers()
        world.cluster.delete(f"{templates}/mine-channel")
