"""When claims are prepared, and when not: rows of upstream's suite "Cluster".

The kubelet repeats what has failed only after 60 to 90 s, so the pods that have to wait for that are started first.
"""

from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from tests.e2e.driver.conftest import NODES
from tests.e2e.driver.helpers import cdi_files, cdi_spec
from tests.support.cluster import Cluster, Object, path, wait_until
from tests.support.hardware import Simulator
from tests.support.manifests import claim, claim_template, gpu_request, mig_request, pod
from tests.support.workload import LOOK, Workspace, sees_exactly, workspace

CREATE = "nvmlDeviceCreateGpuInstanceWithPlacement"
NODE = "n1"
TERMINATION_S = 20
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


def test_a_daemon_set_with_admin_access_gets_devices_that_are_in_use(cluster: Cluster, space: Workspace) -> None:
    """On every node it sees all GPUs, those of other pods too, and takes nothing from anybody."""
    everything: Object = {"allocationMode": "All", "adminAccess": True}
    monitor = pod("", space.namespace, templates=("all",), command=LOOK)["spec"]
    monitor["restartPolicy"] = "Always"
    labels = {"app": "monitor"}
    space.apply(
        claim("gpu", space.namespace, gpu_request()),
        pod("user", space.namespace, claims=("gpu",), command=LOOK),
    )
    space.wait_running("user")
    (used,) = space.devices("gpu")
    space.apply(
        claim_template("all", space.namespace, gpu_request(**everything)),
        {
            "apiVersion": "apps/v1",
            "kind": "DaemonSet",
            "metadata": {"name": "monitor", "namespace": space.namespace},
            "spec": {
                "selector": {"matchLabels": labels},
                "template": {"metadata": {"labels": labels}, "spec": monitor},
            },
        },
    )

    def running() -> list[Object] | None:
        pods = cluster.list(space.pods(), labelSelector="app=monitor")
        up = [each for each in pods if each["status"].get("phase") == "Running"]
        return up if len(up) == len(NODES) else None

    for each in wait_until("the daemon runs on every node", running, 120.0):
        name, node = each["metadata"]["name"], each["spec"]["nodeName"]
        devices = space.devices(space.claim_of(name, "t-all"))
        assert {device.name for device in devices} == {"gpu-0", "gpu-1"}
        assert (used in [device for device in devices if device.node == node]) or node != used.node
        sees_exactly(space.view(name), devices)
    cluster.delete(path("apps/v1", "daemonsets", namespace=space.namespace, name="monitor"))
    wait_until("the daemon is gone", lambda: not cluster.list(space.pods(), labelSelector="app=monitor"), 120.0)
    assert space.phase("user") == "Running"
    uid = cluster.get(space.claims("gpu"))["metadata"]["uid"]
    assert any(uid in name for name in cdi_files(cluster, used.node))


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
