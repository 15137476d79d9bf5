"""Malformed device configs are refused when they are created, by the same rules that the drivers parse them with."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from api.device_config import parse_device_config
from api.errors import InvalidObject
from tests.support.cluster import ApiError, Cluster, Object, path, wait_until
from tests.support.computedomain import FABRIC, NAMESPACE, build_worker, install, make_node

NVIDIA = "resource.nvidia.com/v1beta1"
AMD = "gpu.resource.amd.com/v1alpha1"
GPU, DOMAIN, AMD_GPU = "gpu.nvidia.com", "compute-domain.nvidia.com", "gpu.amd.com"


def nvidia(kind: str, **fields: Any) -> Object:
    return {"apiVersion": NVIDIA, "kind": kind, **fields}


def gpu(**sharing: Any) -> Object:
    return nvidia("GpuConfig", sharing=sharing)


GOOD: list[tuple[str, Object]] = [
    (GPU, nvidia("GpuConfig")),
    (GPU, gpu(strategy="TimeSlicing")),
    (GPU, gpu(strategy="TimeSlicing", timeSlicingConfig=None)),
    (GPU, gpu(strategy="TimeSlicing", timeSlicingConfig={"interval": "Long"})),
    (GPU, nvidia("MigDeviceConfig", sharing={"strategy": "TimeSlicing"})),
    (DOMAIN, nvidia("ComputeDomainChannelConfig", domainID="u", allocationMode="All", releasePolicy="AllNodes")),
    (DOMAIN, nvidia("ComputeDomainChannelConfig", domainID="u")),
    (AMD_GPU, {"apiVersion": AMD, "kind": "GpuConfig"}),
]
BAD: list[tuple[str, Object, str]] = [
    (GPU, {"kind": "GpuConfig"}, "apiVersion"),
    (GPU, {"apiVersion": AMD, "kind": "GpuConfig", "x": 1}, "apiVersion"),
    (GPU, nvidia("GpuConfiguration"), "kind"),
    (
        GPU,
        nvidia("VfioDeviceConfig", iommu={}),
        "VfioDeviceConfig: passthrough of GPUs to virtual machines is not offered",
    ),
    (GPU, nvidia("GpuConfig", shraing={}), "GpuConfig.shraing"),
    (GPU, nvidia("GpuConfig", sharing="MPS"), "sharing"),
    (GPU, gpu(strategy="Magic"), "strategy"),
    (GPU, gpu(), "strategy"),
    (GPU, gpu(strategy="TimeSlicing", timeslicing={}), "sharing.timeslicing"),
    (GPU, gpu(strategy="TimeSlicing", timeSlicingConfig="Long"), "must be objects"),
    (GPU, gpu(strategy="TimeSlicing", timeSlicingConfig={"interval": "Eternal"}), "interval"),
    (GPU, gpu(strategy="TimeSlicing", timeSlicingConfig={"intervall": "Long"}), "intervall"),
    (GPU, gpu(strategy="TimeSlicing", mpsConfig={}), "sharing.mpsConfig"),
    (GPU, gpu(strategy="MPS"), "strategy: MPS is not offered by this driver; right would be TimeSlicing"),
    (GPU, gpu(strategy="MPS", mpsConfig={"defaultActiveThreadPercentage": 50}), "MPS is not offered"),
    (GPU, nvidia("MigDeviceConfig", sharing={"strategy": "MPS", "mpsConfig": {}}), "MPS is not offered"),
    (GPU, nvidia("MigDeviceConfig", sharing={"strategy": "TimeSlicing", "timeSlicingConfig": {}}), "timeSlicingConfig"),
    (DOMAIN, nvidia("ComputeDomainChannelConfig"), "domainID"),
    (DOMAIN, nvidia("ComputeDomainChannelConfig", domainID=""), "domainID"),
    (DOMAIN, nvidia("ComputeDomainChannelConfig", domainID="u.c,metadata.namespace!=/../../../x"), "domainID must be"),
    (DOMAIN, nvidia("ComputeDomainChannelConfig", domainID="../x"), "domainID must be the uid of a ComputeDomain"),
    (DOMAIN, nvidia("ComputeDomainChannelConfig", domainID="u\n"), "domainID must be"),
    (DOMAIN, nvidia("ComputeDomainChannelConfig", domainID="u" * 65), "domainID must be"),
    (DOMAIN, nvidia("ComputeDomainDaemonConfig", domainID="u/c"), "domainID must be"),
    (DOMAIN, nvidia("ComputeDomainChannelConfig", domainID="u", allocationMode="Some"), "allocationMode"),
    (DOMAIN, nvidia("ComputeDomainChannelConfig", domainID="u", releasePolicy="Soon"), "releasePolicy"),
    (DOMAIN, nvidia("ComputeDomainChannelConfig", domainID="u", domain="d"), "ComputeDomainChannelConfig.domain"),
    (DOMAIN, nvidia("ComputeDomainDaemonConfig"), "domainID"),
    (AMD_GPU, nvidia("GpuConfig"), "apiVersion"),
    (AMD_GPU, {"apiVersion": AMD, "kind": "GpuConfig", "partition": "cpx"}, "GpuConfig.partition"),
]


@pytest.fixture(scope="module")
def cluster(prepared: Cluster) -> Cluster:
    wait_until("the policy bites", partial(_bites, prepared))
    return prepared


def _bites(cluster: Cluster) -> bool:
    try:
        try_claim(cluster, GPU, {"kind": "Nonsense"})
    except ApiError as error:
        return "unknown apiVersion or kind" in str(error)
    return False


def _devices(driver: str, parameters: Object) -> Object:
    request = {"name": "r", "exactly": {"deviceClassName": "gpu.nvidia.com"}}
    return {"devices": {"requests": [request], "config": [{"opaque": {"driver": driver, "parameters": parameters}}]}}


def try_claim(cluster: Cluster, driver: str, parameters: Object, namespace: str = "default") -> Object:
    """A dry run: admission happens, nothing is stored. The config, as it would be."""
    where = path("resource.k8s.io/v1", "resourceclaims", namespace=namespace) + "?dryRun=All"
    return _config(
        cluster.create(where, {"metadata": {"generateName": "c-"}, "spec": _devices(driver, parameters)})["spec"]
    )


def try_template(cluster: Cluster, driver: str, parameters: Object) -> Object:
    """The config, as it would be stored."""
    where = path("resource.k8s.io/v1", "resourceclaimtemplates", namespace="default") + "?dryRun=All"
    body = {"metadata": {"generateName": "t-"}, "spec": {"spec": _devices(driver, parameters)}}
    return _config(cluster.create(where, body)["spec"]["spec"])


def _config(spec: Object) -> Object:
    (entry,) = spec["devices"]["config"]
    found: Object = entry["opaque"]["parameters"]
    return found


def test_what_the_drivers_accept_may_be_created(cluster: Cluster) -> None:
    for driver, parameters in GOOD:
        assert parse_device_config(parameters).kind == parameters["kind"]
        assert try_claim(cluster, driver, parameters) == parameters
        assert try_template(cluster, driver, parameters) == parameters


def test_what_the_drivers_refuse_cannot_be_created_and_the_message_names_the_field(cluster: Cluster) -> None:
    for driver, parameters, word in BAD:
        wrong_driver = driver == AMD_GPU and parameters["apiVersion"] == NVIDIA
        if not wrong_driver:
            with pytest.raises(InvalidObject):
                parse_device_config(parameters)
        for attempt in (try_claim, try_template):
            with pytest.raises(ApiError) as refusal:
                attempt(cluster, driver, parameters)
            assert refusal.value.status == 422, f"{parameters}: {refusal.value}"
            assert word in str(refusal.value), f"{parameters}: {refusal.value}"


def test_a_daemon_config_belongs_into_the_drivers_namespace(cluster: Cluster) -> None:
    config = nvidia("ComputeDomainDaemonConfig", domainID="u")
    parse_device_config(config)
    try_claim(cluster, DOMAIN, config, namespace=NAMESPACE)
    with pytest.raises(ApiError, match="the driver's namespace"):
        try_claim(cluster, DOMAIN, config)


DAEMONS = "compute-domain-daemon.nvidia.com"
CLAIMS = path("resource.k8s.io/v1", "resourceclaims", namespace="default")
REQUESTS: list[Object] = [
    {"name": "r", "exactly": {"deviceClassName": DAEMONS}},
    {
        "name": "r",
        "firstAvailable": [
            {"name": "a", "deviceClassName": "gpu.nvidia.com"},
            {"name": "b", "deviceClassName": DAEMONS},
        ],
    },
]


@pytest.mark.parametrize("request_", REQUESTS, ids=["exactly", "firstAvailable"])
def test_a_daemon_device_can_be_asked_for_in_the_drivers_namespace_only_with_or_without_a_config(
    cluster: Cluster, request_: Object
) -> None:
    spec = {"devices": {"requests": [request_]}}
    claim = {"metadata": {"generateName": "c-"}, "spec": spec}
    template = {"metadata": {"generateName": "t-"}, "spec": {"spec": spec}}
    for plural, body in (("resourceclaims", claim), ("resourceclaimtemplates", template)):
        cluster.create(path("resource.k8s.io/v1", plural, namespace=NAMESPACE) + "?dryRun=All", body)
        with pytest.raises(ApiError, match="the template that its ComputeDomain names") as refusal:
            cluster.create(path("resource.k8s.io/v1", plural, namespace="default") + "?dryRun=All", body)
        assert refusal.value.status == 403


@pytest.mark.parametrize("spec", [{}, {"devices": {}}, {"devices": {"requests": None}}])
def test_claims_and_templates_that_ask_for_nothing_are_none_of_our_business(cluster: Cluster, spec: Object) -> None:
    claim = {"metadata": {"generateName": "c-"}, "spec": spec}
    template = {"metadata": {"generateName": "t-"}, "spec": {"spec": spec}}
    for plural, body in (("resourceclaims", claim), ("resourceclaimtemplates", template)):
        made = cluster.create(path("resource.k8s.io/v1", plural, namespace="default") + "?dryRun=All", body)
        assert made["metadata"]["uid"]


@pytest.fixture
def wide_class(cluster: Cluster) -> Iterator[str]:
    """An administrator's class, through which every device of the driver can be asked for."""
    classes, name = path("resource.k8s.io/v1", "deviceclasses"), "everything.example.com"
    selector = {"cel": {"expression": f"device.driver == '{DOMAIN}'"}}
    cluster.create(classes, {"metadata": {"name": name}, "spec": {"selectors": [selector]}})
    yield name
    cluster.delete(f"{classes}/{name}")


def test_a_daemon_device_is_allocated_to_no_tenant_under_the_name_of_another_class_either(
    cluster: Cluster, wide_class: str
) -> None:
    make_node(cluster, "cd-coveted", f"{FABRIC}.7")
    only_daemons = {"cel": {"expression": f"device.attributes['{DOMAIN}'].type == 'daemon'"}}
    exactly = {"deviceClassName": wide_class, "selectors": [only_daemons]}
    spec = {"devices": {"requests": [{"name": "r", "exactly": exactly}]}}
    pods = path("v1", "pods", namespace="default")
    cluster.create(CLAIMS, {"metadata": {"name": "coveting"}, "spec": spec})
    pod = build_worker("coveting", "", "cd-coveted")
    pod["spec"]["resourceClaims"] = [{"name": "channel", "resourceClaimName": "coveting"}]
    cluster.create(pods, pod)
    try:
        events = path("v1", "events", namespace="default")
        wait_until(
            "the scheduler is refused",
            lambda: [each for each in cluster.list(events) if "the daemon device of a node" in each["message"]],
        )
        assert "allocation" not in cluster.get(f"{CLAIMS}/coveting").get("status", {})
        assert "nodeName" not in cluster.get(f"{pods}/coveting")["spec"]
    finally:
        cluster.delete(f"{pods}/coveting", gracePeriodSeconds=0)
        cluster.delete(f"{CLAIMS}/coveting")


def test_what_an_earlier_installation_allocated_in_another_namespace_can_end(cluster: Cluster) -> None:
    """Its claim is still reserved while its pod ends, and every such change passes through admission."""
    metadata = {"name": "earlier", "finalizers": ["resource.kubernetes.io/delete-protection"]}
    spec = {"devices": {"requests": [{"name": "r", "exactly": {"deviceClassName": DAEMONS}}]}}
    result = {"request": "r", "driver": DOMAIN, "pool": "gone", "device": "daemon-0"}
    bindings = "validatingadmissionpolicybindings,validatingadmissionpolicies"
    (policy,) = [
        each["metadata"]["name"]
        for each in cluster.list(path("admissionregistration.k8s.io/v1", "validatingadmissionpolicies"))
        if "daemondevices" in each["metadata"]["name"]
    ]
    cluster.kubectl("delete", bindings, policy)
    wait_until("the policy is gone", lambda: _may_ask(cluster))
    cluster.create(CLAIMS, {"metadata": metadata, "spec": spec})
    # Not a pod, or the controller manager would find that there is none.
    holder = {"apiGroup": "example.com", "resource": "jobs", "name": "p", "uid": "u"}
    status: Object = {"allocation": {"devices": {"results": [result]}}, "reservedFor": [holder]}
    cluster.patch(f"{CLAIMS}/earlier/status", {"status": status})
    install(cluster)
    wait_until("the policy bites again", lambda: not _may_ask(cluster))
    cluster.patch(f"{CLAIMS}/earlier/status", {"status": {"reservedFor": [{**holder, "name": "q", "uid": "v"}]}})
    cluster.patch(f"{CLAIMS}/earlier/status", {"status": {"reservedFor": None, "allocation": None}})
    cluster.delete(f"{CLAIMS}/earlier")
    cluster.wait_gone(f"{CLAIMS}/earlier")


def _may_ask(cluster: Cluster) -> bool:
    body = {"metadata": {"generateName": "c-"}, "spec": {"devices": {"requests": [REQUESTS[0]]}}}
    try:
        cluster.create(CLAIMS + "?dryRun=All", body)
    except ApiError:
        return False
    return True


def test_configs_of_other_drivers_are_none_of_our_business(cluster: Cluster) -> None:
    assert try_claim(cluster, "gpu.example.com", {"anything": ["goes"]}) == {"anything": ["goes"]}


def test_a_class_with_a_malformed_config_is_refused(cluster: Cluster) -> None:
    opaque = {"driver": GPU, "parameters": gpu(strategy="Magic")}
    body = {"metadata": {"generateName": "c-"}, "spec": {"config": [{"opaque": opaque}]}}
    with pytest.raises(ApiError, match=r"sharing\.strategy"):
        cluster.create(path("resource.k8s.io/v1", "deviceclasses") + "?dryRun=All", body)
