"""What a node's hardware and its admin do, and what the driver refuses: driver-facing facts on one node."""

from tests.support.bench import RESOURCE_API, Bench
from tests.support.cluster import Cluster, Object, path
from tests.support.hardware import Simulator
from tests.support.manifests import claim, config, mig_request, pod, request
from tests.support.plugin import BARE_NODE

API = "resource.nvidia.com/v1beta1"
DRIVER = "gpu.nvidia.com"


def test_mig_mode_follows_the_claims(bench: Bench, simulator: Simulator) -> None:
    """A GPU enters MIG mode for its first slice and leaves it with the last; then it is claimed whole again."""
    assert set(simulator.mig_modes().values()) == {"off"}
    bench.start_mig_pod("first", "second")
    bench.wait_running("first", "second")
    (gpu,) = {instance.gpu for instance in simulator.layout()}
    assert simulator.mig_modes()[gpu] == "on"
    bench.delete_pod("first")
    assert simulator.mig_modes()[gpu] == "on"
    bench.delete_pod("second")
    assert set(simulator.mig_modes().values()) == {"off"}
    bench.start_gpu_pod("third", "fourth")
    bench.wait_running("third", "fourth")
    bench.delete_pod("third", "fourth")


def test_overlap_is_refused_with_the_names_of_both_claims(cluster: Cluster, bench: Bench) -> None:
    """Somebody allocates a device twice: the second claim is refused by name, the first is not disturbed."""
    cluster.apply(
        [claim("first", bench.namespace, mig_request()), pod("one", bench.namespace, claims=("first",), node=BARE_NODE)]
    )
    bench.wait_running("one")
    before = bench.see("one")
    allocation = cluster.get(bench.claims("first"))["status"]["allocation"]
    bind_by_hand(cluster, bench, "second", "two", allocation)
    bench.wait_event("second", f"{bench.namespace}/first", f"{bench.namespace}/second", "overlaps")
    assert bench.see("one") == before
    assert len(bench.records()) == 1
    bench.delete_pod("one")
    bench.wait_running("two")
    bench.delete_pod("two")


def bind_by_hand(cluster: Cluster, bench: Bench, claim_name: str, pod_name: str, allocation: Object) -> None:
    """Allocate a claim and bind its pod past the scheduler."""
    cluster.apply(
        [
            claim(claim_name, bench.namespace, mig_request()),
            pod(pod_name, bench.namespace, claims=(claim_name,), schedulerName="by-hand"),
        ]
    )
    uid = cluster.get(bench.pods(pod_name))["metadata"]["uid"]
    reserved = [{"resource": "pods", "name": pod_name, "uid": uid}]
    body = {"status": {"allocation": allocation, "reservedFor": reserved}}
    finalizer = {"metadata": {"finalizers": ["resource.kubernetes.io/delete-protection"]}}
    cluster.patch(bench.claims(claim_name), finalizer)
    cluster.patch(f"{bench.claims(claim_name)}/status", body)
    binding = {"apiVersion": "v1", "kind": "Binding", "metadata": {"name": pod_name}}
    target = {"target": {"apiVersion": "v1", "kind": "Node", "name": BARE_NODE}}
    cluster.create(f"{bench.pods(pod_name)}/binding", {**binding, **target})


MALFORMED: dict[str, tuple[Object, tuple[str, ...]]] = {
    "unknown-field": ({"kind": "MigDeviceConfig", "sharingg": {}}, ("sharingg",)),
    "wrong-kind": ({"kind": "MigConfiguration"}, ("MigConfiguration",)),
    "wrong-value": ({"kind": "MigDeviceConfig", "sharing": {"strategy": "Luck"}}, ("strategy", "Luck")),
    "wrong-version": ({"apiVersion": "resource.nvidia.com/v9", "kind": "MigDeviceConfig"}, ("resource.nvidia.com/v9",)),
}


def test_malformed_configs_are_refused_with_field_and_claim_in_an_event(cluster: Cluster, bench: Bench) -> None:
    """What no retry mends says so on the claim: which claim, which field. Nothing is made for it."""
    for name, (parameters, _) in MALFORMED.items():
        wrong = config(DRIVER, {"apiVersion": API, **parameters})
        cluster.apply(
            [
                claim(name, bench.namespace, mig_request(), configs=(wrong,)),
                pod(f"of-{name}", bench.namespace, claims=(name,), node=BARE_NODE),
            ]
        )
    for name, (_, texts) in MALFORMED.items():
        bench.wait_event(name, f"{bench.namespace}/{name}", *texts)
    assert bench.holdings() == {}
    bench.delete_pod(*(f"of-{name}" for name in MALFORMED))


def time_slicing(interval: str) -> Object:
    sharing = {"strategy": "TimeSlicing", "timeSlicingConfig": {"interval": interval}}
    return config(DRIVER, {"apiVersion": API, "kind": "GpuConfig", "sharing": sharing})


def test_config_of_the_claim_wins_over_its_class_and_ends_with_it(
    cluster: Cluster, bench: Bench, simulator: Simulator
) -> None:
    """Pods of one class run with the class's time-slice or their claim's own; afterwards the default is back."""
    default = simulator.smi("compute-policy", "--list")
    expression = "device.driver == 'gpu.nvidia.com' && device.attributes['gpu.nvidia.com'].type == 'gpu'"
    spec = {"selectors": [{"cel": {"expression": expression}}], "config": [time_slicing("Long")]}
    cluster.apply({"apiVersion": RESOURCE_API, "kind": "DeviceClass", "metadata": {"name": "patient"}, "spec": spec})
    cluster.apply(
        [
            claim("plain", bench.namespace, request("gpu", "patient")),
            claim("own", bench.namespace, request("gpu", "patient"), configs=(time_slicing("Short"),)),
            pod("plain", bench.namespace, claims=("plain",), node=BARE_NODE),
            pod("own", bench.namespace, claims=("own",), node=BARE_NODE),
        ]
    )
    bench.wait_running("plain", "own")
    policy = simulator.smi("compute-policy", "--list").splitlines()
    found = {name: policy[int(bench.allocated(name)[0]["device"].removeprefix("gpu-"))] for name in ("plain", "own")}
    assert "Long" in found["plain"]
    assert "Short" in found["own"]
    bench.delete_pod("plain", "own")
    assert simulator.smi("compute-policy", "--list") == default
    cluster.delete(path(RESOURCE_API, "deviceclasses", name="patient"))
