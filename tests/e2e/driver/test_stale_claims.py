"""A claim that is gone while a process of its pod goes on: its device is nobody else's yet."""

from tests.support.chart import Release
from tests.support.cluster import Cluster, path, wait_until
from tests.support.hardware import Simulator
from tests.support.manifests import claim_template, mig_request, pod
from tests.support.workload import START_S, Workspace

SLEEP = "sleep 7919"  # nobody else sleeps so long
NODES_OWN = "1"


def find_process(cluster: Cluster, node: str, command: str) -> str:
    """Its id, as the node numbers it."""
    words = "$(tr '\\0' ' ' <$p/cmdline 2>/dev/null)"
    script = f"for p in /proc/[0-9]*; do [ \"{words}\" = '{command} ' ] && echo ${{p#/proc/}}; done; true"
    (pid,) = cluster.in_node(node, "sh", "-c", script).split()
    return pid


def test_a_slice_whose_claim_is_gone_is_kept_while_a_process_of_its_pod_uses_it(
    cluster: Cluster, release: Release, space: Workspace, simulators: dict[str, Simulator]
) -> None:
    """The pod was deleted by force, and its grace period is longer than ours; the node's own processes do not count."""
    command = f"trap '' TERM; exec {SLEEP}"
    space.apply(
        claim_template("mig", space.namespace, mig_request()),
        pod("stubborn", space.namespace, templates=("mig",), node="n1", command=command, grace_s=120),
    )
    space.wait_running("stubborn")
    name = space.claim_of("stubborn", "t-mig")
    (instance,) = simulators["n1"].layout()
    place = ("--gpu", str(instance.gpu), "--gi", str(instance.gi), "--ci", str(instance.ci))
    pid = find_process(cluster, "n1", SLEEP)
    for each in (pid, NODES_OWN):
        simulators["n1"].inject("in-use", *place, "--pid", each)
    try:
        cluster.delete(space.pods("stubborn"), gracePeriodSeconds=0)
        cluster.wait_gone(space.claims(name), START_S)
        plugin = release.pods()["n1"]["metadata"]  # at its start it looks for claims that are gone
        cluster.delete(path("v1", "pods", namespace=release.namespace, name=plugin["name"]))

        def told() -> str | None:
            events = cluster.list(path("events.k8s.io/v1", "events", namespace="default"))
            notes = [each["note"] for each in events if each["reason"] == "StaleClaimInUse"]
            return next((note for note in notes if f"{space.namespace}/{name} is gone" in note), None)

        note = wait_until("an Event tells who uses it", told, START_S)
        assert f"({instance.uuid}) by {pid}; it is kept until they end" in note
        assert simulators["n1"].layout() == [instance]
    finally:
        for each in (pid, NODES_OWN):
            simulators["n1"].inject("in-use", *place, "--pid", each, "--off")
        cluster.in_node("n1", "kill", "-KILL", pid)
    wait_until("its slice is given back", lambda: not simulators["n1"].instances(), START_S)
