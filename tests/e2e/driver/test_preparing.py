"""When claims are prepared, and when not: rows of upstream's suite "Cluster".

The pods that have to wait, be it for the kubelet's next attempt, are started first.
"""

from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from tests.e2e.driver.conftest import NODES
from tests.e2e.driver.helpers import NVIDIA_SMI, cdi_files, cdi_spec
from tests.support.cluster import Cluster, Object, path, wait_until
from tests.support.hardware import Simulator
from tests.support.manifests import claim, claim_template, gpu_request, mig_request, pod, request
from tests.support.workload import LOOK, START_S, Workspace, sees_exactly, workspace

CREATE = "nvmlDeviceCreateGpuInstanceWithPlacement"
NODE = "n1"
TERMINATION_S = 10
PENDING_S = 20.0
RETRY_S = 180.0


@pytest.fixture(scope="module")
def failing(leaves_nothing: None, cluster: Cluster, simulators: dict[str, Simulator]) -> Iterator[Workspace]:
    """A pod whose slice cannot be made at first."""
    with workspace(cluster) as space:
        simulators[NODE].fail(CREATE, times=1)
        space.apply(
            claim("mig", space.namespace, mig_request()),
            pod("user", space.namespace, claims=("mig",), node=NODE, command=LOOK),
        )
        space.wait_event("user", "Unknown Error")
        yield space


@pytest.fixture(scope="module")
def unallocated(leaves_nothing: None, cluster: Cluster) -> Iterator[Workspace]:
    """A pod that passed by the scheduler, so that nothing is allocated to its claim."""
    with workspace(cluster) as space:
        body = pod("user", space.namespace, claims=("gpu",))
        body["spec"]["nodeName"] = NODE
        space.apply(claim("gpu", space.namespace, gpu_request()), body)
        yield space


@pytest.fixture(scope="module")
def replaced(failing: Workspace, cluster: Cluster) -> Iterator[tuple[Workspace, str]]:
    """A pod that is deleted by force and takes its time, and one with a new claim of the same name. UID of the old."""
    with workspace(cluster) as space:
        space.apply(
            claim("same", space.namespace, mig_request()),
            pod(
                "old",
                space.namespace,
                claims=("same",),
                node=NODE,
                grace_s=TERMINATION_S,
                command="trap '' TERM; sleep 86400 & wait",
            ),
        )
        space.wait_running("old")
        uid = str(cluster.get(space.claims("same"))["metadata"]["uid"])
        cluster.delete(space.pods("old"), gracePeriodSeconds=0)
        cluster.delete(space.claims("same"))
        cluster.wait_gone(space.claims("same"))
        space.apply(
            claim("same", space.namespace, mig_request()),
            pod("new", space.namespace, claims=("same",), node=NODE, command=LOOK),
        )
        yield space, uid


@pytest.mark.usefixtures("failing", "unallocated", "replaced")
def test_claims_unused_by_containers_are_still_prepared(cluster: Cluster, space: Workspace) -> None:
    """A claim of the pod that no container names is prepared and released like any other."""
    space.apply(
        claim("gpu", space.namespace, gpu_request()),
        pod("user", space.namespace, claims=("gpu",), used=False, command=LOOK),
    )
    space.wait_running("user")
    (device,) = space.devices("gpu")
    uid = cluster.get(space.claims("gpu"))["metadata"]["uid"]
    assert [each["name"] for each in cdi_spec(cluster, device.node, uid)["devices"]] == [f"{uid}-{device.name}"]
    sees_exactly(space.view("user"), [])
    space.delete("user")
    assert not any(uid in name for name in cdi_files(cluster, device.node))


@pytest.fixture
def fixed_slices(cluster: Cluster) -> Iterator[Object]:
    """A MIG device on each node that an admin made; a request for such devices only.

    Not for whole GPUs: until kubernetes/kubernetes#140729 is mended, kube-scheduler lets admin access wait for the
    counters of what it may share, and devices that nobody partitions on demand are those without counters.
    """
    for node in NODES:
        cluster.in_node(node, "sh", "-c", f"{NVIDIA_SMI} -i 1 -mig 1 && {NVIDIA_SMI} mig -i 1 -cgi 9 -C")
    yield {"cel": "'uuid' in device.attributes['gpu.nvidia.com']"}
    for node in NODES:
        undo = " && ".join(f"{NVIDIA_SMI} {words}" for words in ("mig -i 1 -dci", "mig -i 1 -dgi", "-i 1 -mig 0"))
        cluster.in_node(node, "sh", "-c", undo)


def test_a_daemon_set_with_admin_access_gets_devices_that_are_in_use(
    cluster: Cluster, fixed_slices: Object, space: Workspace
) -> None:
    """On every node it sees those of other pods too, and takes nothing from anybody."""
    space.apply(
        claim("mig", space.namespace, request("mig", "mig.nvidia.com", **fixed_slices)),
        pod("user", space.namespace, claims=("mig",), command=LOOK),
    )
    space.wait_running("user")
    (used,) = space.devices("mig")
    everything = request("all", "mig.nvidia.com", allocationMode="All", adminAccess=True, **fixed_slices)
    template = {
        "metadata": {"labels": {"app": "monitor"}},
        "spec": pod("", space.namespace, templates=("all",), command=LOOK, restartPolicy="Always")["spec"],
    }
    space.apply(
        claim_template("all", space.namespace, everything),
        {
            "apiVersion": "apps/v1",
            "kind": "DaemonSet",
            "metadata": {"name": "monitor", "namespace": space.namespace},
            "spec": {"selector": {"matchLabels": {"app": "monitor"}}, "template": template},
        },
    )

    def running() -> list[Object] | None:
        pods = cluster.list(space.pods(), labelSelector="app=monitor")
        up = [each for each in pods if each["status"].get("phase") == "Running"]
        return up if len(up) == len(NODES) else None

    seen = []
    for each in wait_until("the daemon runs on every node", running, START_S):
        name = each["metadata"]["name"]
        devices = space.devices(space.claim_of(name, "t-all"))
        sees_exactly(space.view(name), devices)
        seen += devices
    assert {each.node for each in seen} == set(NODES) and len(seen) == len(NODES)
    assert used.name in {each.name for each in seen if each.node == used.node}
    cluster.delete(path("apps/v1", "daemonsets", namespace=space.namespace, name="monitor"))
    wait_until("the daemon is gone", lambda: not cluster.list(space.pods(), labelSelector="app=monitor"), START_S)
    assert space.phase("user") == "Running"
    uid = cluster.get(space.claims("mig"))["metadata"]["uid"]
    assert any(uid in name for name in cdi_files(cluster, used.node))
    space.delete("user")


def test_a_pod_that_is_bound_directly_stays_pending(cluster: Cluster, unallocated: Workspace) -> None:
    """Its claim is not allocated, so nothing is prepared for it."""
    unallocated.wait_event("user", "is not allowed to use ResourceClaim gpu")

    def age_s() -> float:
        created = cluster.get(unallocated.pods("user"))["metadata"]["creationTimestamp"]
        return (datetime.now(UTC) - datetime.fromisoformat(created)).total_seconds()

    wait_until("it has had its time", lambda: age_s() > PENDING_S)
    assert unallocated.phase("user") == "Pending"
    seen = cluster.get(unallocated.claims("gpu"))
    assert "allocation" not in seen.get("status", {})
    assert not any(seen["metadata"]["uid"] in name for name in cdi_files(cluster, NODE))


def test_a_claim_of_the_same_name_waits_until_the_old_one_is_unprepared(
    cluster: Cluster, replaced: tuple[Workspace, str]
) -> None:
    """The pod of the old one was deleted by force and still runs."""
    space, old = replaced
    space.wait_event("new", "old ResourceClaim with same name same and different UID")
    space.wait_running("new", patience_s=RETRY_S)
    assert not any(old in name for name in cdi_files(cluster, NODE))
    sees_exactly(space.view("new"), space.devices("same"))


def test_preparing_is_retried(failing: Workspace, simulators: dict[str, Simulator]) -> None:
    """The pod whose slice could not be made at first has it in the end, and only one was made."""
    failing.wait_running("user", patience_s=RETRY_S)
    sees_exactly(failing.view("user"), failing.devices("mig"))
    (uuid,) = failing.view("user").slices
    assert sum(uuid in line for line in simulators[NODE].instances()) == 1
