"""Claims from allocation to deallocation, shared, reused and exhausted: rows of upstream's suite "Cluster"."""

from tests.e2e.driver.conftest import NODES
from tests.support.cluster import Cluster, wait_until
from tests.support.hardware import Simulator
from tests.support.manifests import claim, claim_template, gpu_request, mig_request, pod
from tests.support.workload import LOOK, Workspace, sees_exactly


def test_one_claim_is_shared_by_pods_containers_and_init_containers_and_then_reused(
    cluster: Cluster, space: Workspace
) -> None:
    """All see the same GPU at the same time; after them a pod reuses the claim, and may get another."""
    first, second = (
        pod(name, space.namespace, claims=("shared",), command=LOOK, containers=2) for name in ("first", "second")
    )
    (container, _) = first["spec"]["containers"]
    first["spec"]["initContainers"] = [
        {**container, "name": "before", "command": ["sh", "-c", "nvidia-smi -L; echo seen"]}
    ]
    space.apply(claim("shared", space.namespace, gpu_request()), first, second)
    space.wait_running("first", "second")
    devices = space.devices("shared")
    for name in ("first", "second"):
        for each in ("c0", "c1"):
            sees_exactly(space.view(name, each), devices)
    assert space.view("first", "before").gpus == {devices[0].gpu}
    reserved = {each["uid"] for each in cluster.get(space.claims("shared"))["status"]["reservedFor"]}
    assert reserved == {cluster.get(space.pods(name))["metadata"]["uid"] for name in ("first", "second")}

    space.delete("first")
    assert space.devices("shared") == devices, "the second pod still uses it"
    space.delete("second")
    space.wait_released("shared")
    space.apply(pod("third", space.namespace, claims=("shared",), command=LOOK))
    space.wait_running("third")
    sees_exactly(space.view("third"), space.devices("shared"))


def test_a_pod_that_ends_gives_everything_back(
    cluster: Cluster, idle: None, space: Workspace, simulators: dict[str, Simulator]
) -> None:
    """Its reservation is removed, its claim deallocated, a claim made for it deleted, and the hardware is free."""
    space.apply(
        claim("mine", space.namespace, mig_request()),
        claim_template("made", space.namespace, mig_request()),
        pod("user", space.namespace, claims=("mine",), templates=("made",), command="nvidia-smi -L; echo seen"),
    )
    cluster.wait(space.pods("user"), "the pod ends", lambda seen: seen["status"].get("phase") == "Succeeded", 120.0)
    assert space.view("user").profiles == (("1g.10gb", 2),)
    space.wait_released("mine")
    wait_until("the claim made for the pod is gone", lambda: len(cluster.list(space.claims())) == 1)
    for node in NODES:
        wait_until("its slices are gone", lambda node=node: not simulators[node].instances())


def test_all_resources_are_used_and_none_twice(
    cluster: Cluster, idle: None, space: Workspace, simulators: dict[str, Simulator]
) -> None:
    """As many pods as there are slices of that size; what they see is all that the hardware holds.

    The counters of the GPUs are then consumed: one pod more must wait, until one of them goes.
    """
    names = [f"user{number}" for number in range(len(NODES) * 2 * 4)]
    space.apply(
        claim_template("mig", space.namespace, mig_request("1g.20gb")),
        *(pod(name, space.namespace, templates=("mig",), command=LOOK) for name in names),
    )
    space.wait_running(*names, patience_s=300.0)
    devices = [device for name in names for device in space.devices(space.claim_of(name, "t-mig"))]
    assert len({(each.node, each.name) for each in devices}) == len(names)
    seen = [uuid for name in names for uuid in space.view(name).slices]
    assert len(set(seen)) == len(seen) == len(names)
    held = "\n".join(line for node in NODES for line in simulators[node].instances())
    assert all(uuid in held for uuid in seen) and held.count("MIG-") == len(seen)

    space.apply(pod("late", space.namespace, templates=("mig",), command=LOOK))
    space.wait_unschedulable("late")
    space.delete("user5")
    space.wait_running("late")
    (device,) = space.devices(space.claim_of("late", "t-mig"))
    assert (device.node, device.name) == (devices[5].node, devices[5].name)
    sees_exactly(space.view("late"), [device])
