"""A claim that went while the driver was away: what it held is given back, when the last process on it has ended."""

from collections.abc import Iterator
from contextlib import contextmanager

from tests.e2e.driver.helpers import cdi_files
from tests.support.chart import Release
from tests.support.cluster import Cluster, path, wait_until
from tests.support.hardware import Simulator
from tests.support.manifests import claim_template, mig_request, pod
from tests.support.workload import LOOK, START_S, Workspace, sees_exactly

EVERYTHING = [{"operator": "Exists"}]
AWAY = {"key": "example.com/away", "effect": "NoExecute"}
SLEEP = "sleep 7919"  # nobody else sleeps so long


@contextmanager
def no_plugin(cluster: Cluster, release: Release, node: str) -> Iterator[None]:
    """The plugin has left this node, until the end of the block."""
    where = path("v1", "nodes", name=node)
    cluster.patch(where, {"spec": {"taints": [AWAY]}})
    try:
        wait_until(f"the plugin has left {node}", lambda: node not in release.pods(), START_S)
        yield
    finally:
        cluster.patch(where, {"spec": {"taints": None}})


def forget_claims(cluster: Cluster, release: Release, node: str) -> None:
    """The kubelet begins anew, without its memory of prepared claims; it removes the slices of its node."""
    cluster.run("kill", node, "kubelet")
    cluster.in_node(node, "rm", "/var/lib/kubelet/dra_manager_state")
    cluster.run("start", node, "kubelet")
    cluster.wait_node(node)
    wait_until(
        f"{node} has no slices", lambda: all(each["spec"]["nodeName"] != node for each in release.slices()), START_S
    )


def find_process(cluster: Cluster, node: str, file: str, content: str) -> str:
    """The id of the one whose file below /proc/<pid> says that, as the node numbers it."""
    said = f"$(tr '\\0\\n' '  ' <$p/{file} 2>/dev/null)"
    script = f"for p in /proc/[0-9]*; do [ \"{said}\" = '{content} ' ] && echo ${{p#/proc/}}; done; true"
    (pid,) = cluster.in_node(node, "sh", "-c", script).split()
    return pid


def told(cluster: Cluster, claim: str) -> str | None:
    """What the Event says about processes on what this claim held."""
    events = cluster.list(path("events.k8s.io/v1", "events", namespace="default"))
    notes = [each["note"] for each in events if each["reason"] == "StaleClaimInUse"]
    return next((note for note in notes if f"claim {claim} is gone" in note), None)


def test_what_a_claim_that_has_gone_held_is_the_next_pods_when_no_process_uses_it_any_more(
    cluster: Cluster, release: Release, space: Workspace, simulators: dict[str, Simulator]
) -> None:
    """Without the driver no pod fits; the kubelet has forgotten the claim meanwhile. The next pod waits as long."""
    space.apply(
        claim_template("mig", space.namespace, mig_request()),
        pod("stale", space.namespace, templates=("mig",), node="n1", tolerations=EVERYTHING),
        pod("worker", space.namespace, node="n1", command=f"exec {SLEEP}", tolerations=EVERYTHING),
    )
    space.wait_running("stale", "worker")
    name = space.claim_of("stale", "t-mig")
    uid = cluster.get(space.claims(name))["metadata"]["uid"]
    (held,) = simulators["n1"].layout()
    place = ("in-use", "--gpu", str(held.gpu), "--gi", str(held.gi), "--ci", str(held.ci), "--pid")
    pid = find_process(cluster, "n1", "cmdline", SLEEP)
    nodes_own = find_process(cluster, "n1", "comm", "containerd")
    with no_plugin(cluster, release, "n1"):
        cluster.delete(space.pods("stale"), gracePeriodSeconds=0)
        cluster.wait_gone(space.claims(name), START_S)
        forget_claims(cluster, release, "n1")
        for each in (pid, nodes_own):
            simulators["n1"].inject(*place, each)
        space.apply(pod("user", space.namespace, templates=("mig",), node="n1", tolerations=EVERYTHING, command=LOOK))
        space.wait_unschedulable("user")
        assert simulators["n1"].layout() == [held], "nobody has given the stale claim's slice back"
    note = wait_until("an Event tells who uses it", lambda: told(cluster, f"{space.namespace}/{name}"), START_S)
    assert f"({held.uuid}) by {pid}; it is kept until they end" in note, "the node's own process is no pod's"
    assert simulators["n1"].layout() == [held]
    assert space.phase("user") == "Pending", "it was given the place that looks free"
    simulators["n1"].inject(*place, pid, "--off")
    simulators["n1"].inject(*place, nodes_own, "--off")
    wait_until("the stale claim is swept", lambda: not any(uid in each for each in cdi_files(cluster, "n1")), START_S)
    space.wait_running("user")
    sees_exactly(space.view("user"), space.devices(space.claim_of("user", "t-mig")))
    assert held not in simulators["n1"].layout()
