"""The driver comes, goes and is updated under running workloads: rows of upstream's suite "Cluster"."""

import json
import time

import pytest

from tests.e2e.driver.conftest import NODES
from tests.support.chart import Release
from tests.support.cluster import Cluster, Object, path, wait_until
from tests.support.manifests import claim_template, gpu_request, pod
from tests.support.workload import LOOK, START_S, Workspace, sees_exactly

DAEMON_SET = "daemonset/partita-kubelet-plugin"
DRIVERS = ("compute-domain.nvidia.com", "gpu.nvidia.com")
STABLE_S = 20.0
EVERYTHING = [{"operator": "Exists"}]
# A request with the pod's own token, as whoever takes over the plugin could make it; prints the HTTP code.
AS_PLUGIN = """
import os, ssl, sys, urllib.error, urllib.request
secrets = "/var/run/secrets/kubernetes.io/serviceaccount"
trust = ssl.create_default_context(cafile=f"{secrets}/ca.crt")
server = f"https://{os.environ['KUBERNETES_SERVICE_HOST']}:{os.environ['KUBERNETES_SERVICE_PORT']}"
call = urllib.request.Request(server + sys.argv[2], sys.argv[3].encode() or None, method=sys.argv[1])
call.add_header("Authorization", "Bearer " + open(f"{secrets}/token").read())
call.add_header("Content-Type", "application/merge-patch+json" if sys.argv[1] == "PATCH" else "application/json")
try:
    print(urllib.request.urlopen(call, context=trust).status)
except urllib.error.HTTPError as error:
    print(error.code)
"""

Identities = dict[str, tuple[str, str]]


def identities(release: Release) -> Identities:
    """Name -> UID and resourceVersion of every slice."""
    return {
        each["metadata"]["name"]: (each["metadata"]["uid"], each["metadata"]["resourceVersion"])
        for each in release.slices()
    }


@pytest.fixture(scope="module")
def published(release: Release, leaves_nothing: None) -> Identities:
    """The slices at the beginning; claims for whole GPUs, which alone are used here, are no reason to change them."""

    def settled() -> Identities | None:
        before = identities(release)
        time.sleep(2.0)
        return before if before == identities(release) and len(release.pools()) == len(NODES) else None

    return wait_until("the slices no longer change", settled)


def plugin_pods(release: Release) -> dict[str, str]:
    """Node -> name of the plugin's pod there."""
    return {node: each["metadata"]["name"] for node, each in release.pods().items()}


def run_on_every_node(space: Workspace, prefix: str) -> None:
    """A pod with a whole GPU on each node; runs, sees its GPU, and is deleted."""
    space.apply(
        claim_template("gpu", space.namespace, gpu_request()),
        *(
            pod(
                f"{prefix}-{node}", space.namespace, templates=("gpu",), node=node, command=LOOK, tolerations=EVERYTHING
            )
            for node in NODES
        ),
    )
    names = [f"{prefix}-{node}" for node in NODES]
    space.wait_running(*names)
    for name in names:
        sees_exactly(space.view(name), space.devices(space.claim_of(name, "t-gpu")))
    space.delete(*names)


def test_pods_run_during_a_rolling_update_which_changes_no_slice(
    cluster: Cluster, release: Release, space: Workspace, published: Identities
) -> None:
    """Old and new instance serve the kubelet at the same time, so nothing has to wait."""
    before = plugin_pods(release)
    cluster.kubectl("rollout", "restart", DAEMON_SET, "--namespace", release.namespace)
    run_on_every_node(space, "during")
    cluster.kubectl("rollout", "status", DAEMON_SET, "--namespace", release.namespace, "--timeout=180s")
    after = plugin_pods(release)
    assert after.keys() == before.keys() and not set(after.values()) & set(before.values())
    run_on_every_node(space, "after")
    assert identities(release) == published


def test_pods_run_after_a_failed_update_which_changes_no_slice(
    cluster: Cluster, release: Release, space: Workspace, published: Identities
) -> None:
    """The new instance cannot start; the old one goes on."""
    before = plugin_pods(release)
    where = path("apps/v1", "daemonsets", namespace=release.namespace, name="partita-kubelet-plugin")
    broken = {"name": "plugin", "image": "partita:missing", "imagePullPolicy": "Never"}
    body = {"spec": {"template": {"spec": {"containers": [broken]}}}}
    cluster.request("PATCH", where, body, "application/strategic-merge-patch+json")
    selector = "app.kubernetes.io/component=kubelet-plugin"

    def waiting() -> bool:
        pods = cluster.list(path("v1", "pods", namespace=release.namespace), labelSelector=selector)
        return "ErrImageNeverPull" in json.dumps(pods)

    wait_until("the new instance fails", waiting, START_S)
    run_on_every_node(space, "meanwhile")
    assert identities(release) == published
    cluster.kubectl("rollout", "undo", DAEMON_SET, "--namespace", release.namespace)
    cluster.kubectl("rollout", "status", DAEMON_SET, "--namespace", release.namespace, "--timeout=180s")
    assert plugin_pods(release) == before
    assert identities(release) == published


def test_a_sequential_update_changes_no_slice(
    cluster: Cluster, release: Release, space: Workspace, published: Identities
) -> None:
    """Each instance is replaced only after it has ended."""
    before = plugin_pods(release)
    for name in before.values():
        cluster.delete(path("v1", "pods", namespace=release.namespace, name=name))

    def replaced() -> bool:
        after = plugin_pods(release)
        return after.keys() == before.keys() and not set(after.values()) & set(before.values())

    wait_until("there are new instances", replaced, START_S)
    cluster.kubectl("rollout", "status", DAEMON_SET, "--namespace", release.namespace, "--timeout=180s")
    assert identities(release) == published
    run_on_every_node(space, "after")
    assert identities(release) == published


def test_a_plugin_may_write_nothing_but_the_slices_of_its_own_node(
    cluster: Cluster, release: Release, space: Workspace
) -> None:
    """With the token that its pod really has: not those of others, and the status of no claim."""
    space.apply(
        claim_template("gpu", space.namespace, gpu_request()),
        pod("user", space.namespace, templates=("gpu",), node="n2"),
    )
    space.wait_running("user")
    plugin = plugin_pods(release)["n1"]

    def ask(method: str, where: str, body: Object | None = None) -> int:
        text = json.dumps(body) if body else ""
        script = ("python3", "-c", AS_PLUGIN, method, f"{where}?dryRun=All", text)
        return int(cluster.in_pod(plugin, *script, namespace=release.namespace, container="plugin"))

    slices = path("resource.k8s.io/v1", "resourceslices")
    for node, code in (("n1", 200), ("n2", 403)):
        piece = next(each for each in release.slices() if each["spec"]["nodeName"] == node)
        where = f"{slices}/{piece['metadata']['name']}"
        assert (ask("PUT", where, piece), ask("DELETE", where)) == (code, code), f"a slice of {node}"
    status = f"{space.claims(space.claim_of('user', 't-gpu'))}/status"
    assert ask("PATCH", status, {"status": {"devices": []}}) == 403


def test_the_programs_of_the_image_start_without_compiling_a_module(cluster: Cluster, release: Release) -> None:
    """What is compiled is compiled anew at every start, and the interpreter's own library by all of them."""
    programs = ("kubeletplugin.__main__", "kubeletplugin.imexdaemon.program", "controller.__main__")
    script = " && ".join(f"python3 -v -c 'import {program}' 2>&1" for program in programs)
    plugin = plugin_pods(release)["n1"]
    told = cluster.in_pod(plugin, "sh", "-c", script, namespace=release.namespace, container="plugin").splitlines()
    assert any(line.endswith("matches /app/kubeletplugin/imexdaemon/daemon.py") for line in told)
    assert [line for line in told if "bytecode is stale" in line] == []
    assert [line for line in told if line.startswith("# code object from ") and not line.endswith(".pyc'")] == []


def test_resource_slices_are_managed(cluster: Cluster, release: Release, published: Identities) -> None:
    """Each node has complete pools of one generation, owned by its Node; and nothing writes them without a reason.

    They come after the updates, so that a kubelet that removes slices 30 s after an instance left would show here.
    """
    uids = {each["metadata"]["name"]: each["metadata"]["uid"] for each in cluster.list(path("v1", "nodes"))}
    pools: dict[tuple[str, str], list[Object]] = {}
    for each in release.slices():
        node = each["spec"]["nodeName"]
        owner = {"apiVersion": "v1", "kind": "Node", "name": node, "uid": uids[node], "controller": True}
        assert each["metadata"]["ownerReferences"] == [owner]
        assert each["spec"]["pool"]["name"] == node
        pools.setdefault((each["spec"]["driver"], node), []).append(each["spec"]["pool"])
    assert {key for key in pools if key[0] == "gpu.nvidia.com"} == {("gpu.nvidia.com", node) for node in NODES}
    for pool in pools.values():
        assert all(each == pool[0] for each in pool)
        assert pool[0]["resourceSliceCount"] == len(pool)
    until = time.monotonic() + STABLE_S
    while time.monotonic() < until:
        assert identities(release) == published
        time.sleep(1.0)
