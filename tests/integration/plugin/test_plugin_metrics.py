"""What the plugin tells monitors: what it counts, and whether it is alive and ready."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import uuid4

import pytest
from bench.kubelet import PrepareFailed
from bench.objects import published_devices, wait_for_devices

from api.client import Invalid, Json, path
from tests.support.plugin_world import SLICE, World, in_world, until
from tests.support.scrape import Metrics, get, scrape

DRIVER = "gpu.nvidia.com"
REQUEST = frozenset({"driver", "operation"})
ERROR = frozenset({"driver", "error_type"})
LABELS = {
    "nvidia_dra_requests_total": REQUEST,
    "nvidia_dra_request_duration_seconds": REQUEST,
    "nvidia_dra_requests_inflight": REQUEST,
    "nvidia_dra_prepared_devices": frozenset({"node", "driver", "device_type"}),
    "nvidia_dra_node_prepare_errors_total": ERROR,
    "nvidia_dra_node_unprepare_errors_total": ERROR,
    "partita_publish_duration_seconds": frozenset({"driver"}),
    "partita_publish_errors_total": ERROR,
    "partita_resource_slices": frozenset({"driver"}),
    "partita_published_devices": frozenset({"driver"}),
}


async def measured(it: World) -> Metrics:
    return await asyncio.to_thread(scrape, it.node.http_port, "nvidia_dra_", "partita_")


async def asked(it: World, target: str, method: str = "GET") -> tuple[int, str]:
    return await asyncio.to_thread(get, it.node.http_port, target, method)


async def until_prepared(it: World, gpus: int, slices: int) -> Metrics:
    """Devices are counted when what the node offers is looked at again, a moment after the claim."""

    async def counted() -> Metrics | None:
        now = await measured(it)
        found = now.by("device_type", "nvidia_dra_prepared_devices", node=it.node.name, driver=DRIVER)
        return now if found == {"gpu": gpus, "mig": slices} else None

    found: Metrics = await until(f"{gpus} GPUs and {slices} slices prepared", counted)
    return found


@in_world()
async def test_what_becomes_of_claims_is_counted_by_operation_device_type_and_reason(it: World) -> None:
    kubelet = await it.start()
    whole, cut = await it.claim("whole", "gpu-1"), await it.claim("slice", SLICE)
    await kubelet.prepare(whole, cut)
    await until_prepared(it, gpus=1, slices=1)
    for missing in ("gone", "gone-too"):
        with pytest.raises(PrepareFailed):
            await kubelet.prepare(type(whole)(it.namespace, missing, str(uuid4())))
    it.fail("nvmlGpuInstanceDestroy", "unknown")
    with pytest.raises(PrepareFailed):
        await kubelet.unprepare(cut)
    await kubelet.unprepare(whole)
    now = await until_prepared(it, gpus=0, slices=1)
    counts = {"prepare": 2.0, "unprepare": 1.0}
    assert now.by("operation", "nvidia_dra_requests_total", driver=DRIVER) == counts
    durations = now.by("operation", "nvidia_dra_request_duration_seconds_count", driver=DRIVER)
    assert durations == {"prepare": 4.0, "unprepare": 2.0}, "failures take time, too"
    assert now.by("operation", "nvidia_dra_requests_inflight", driver=DRIVER) == {"prepare": 0.0, "unprepare": 0.0}
    assert now.by("error_type", "nvidia_dra_node_prepare_errors_total", driver=DRIVER) == {"ClaimGone": 2.0}
    assert now.by("error_type", "nvidia_dra_node_unprepare_errors_total", driver=DRIVER) == {"HardwareError": 1.0}
    used = {name: labels for name, labels in now.labels.items() if labels}
    assert used == {name: labels for name, labels in LABELS.items() if name != "partita_publish_errors_total"}
    assert set(now.labels) == set(LABELS)


@in_world()
async def test_a_claim_is_in_flight_while_it_is_worked_on(it: World) -> None:
    kubelet = await it.start()
    claim = await it.claim("slow", SLICE)
    it.inject("slow", "nvmlDeviceCreateGpuInstanceWithPlacement", "--ms", "1500")
    work = asyncio.ensure_future(kubelet.prepare(claim))

    async def in_flight() -> bool:
        return (await measured(it)).value("nvidia_dra_requests_inflight", driver=DRIVER, operation="prepare") == 1.0

    await until("a claim in flight", in_flight)
    await work
    now = await measured(it)
    assert now.value("nvidia_dra_requests_inflight", driver=DRIVER, operation="prepare") == 0.0
    took_s = now.value("nvidia_dra_request_duration_seconds_sum", driver=DRIVER, operation="prepare")
    assert took_s is not None and took_s >= 1.5


@in_world()
async def test_slices_and_devices_are_counted_as_they_are_published_and_how_long_it_took(it: World) -> None:
    await it.start()
    devices = await wait_for_devices(it.client, it.node.name)

    async def told() -> Metrics | None:
        now = await measured(it)
        return now if now.value("partita_resource_slices", driver=DRIVER) else None

    now = await until("the count of slices", told)
    assert now.value("partita_resource_slices", driver=DRIVER) == len(await it.slices())
    assert now.value("partita_published_devices", driver=DRIVER) == len(devices)
    assert (now.value("partita_publish_duration_seconds_count", driver=DRIVER) or 0) >= 1
    assert 0 < now.value("partita_publish_duration_seconds_sum", driver=DRIVER) < 30
    it.inject("absent", "--gpu", "1")

    async def fewer() -> bool:
        now = await measured(it)
        left = len(await published_devices(it.client, it.node.name))
        return now.value("partita_published_devices", driver=DRIVER) == left < len(devices)

    await until("the count without the GPU that was taken out", fewer)


@in_world()
async def test_a_plugin_is_alive_at_once_and_ready_when_its_slices_are_published(it: World) -> None:
    async with _slices_refused(it):
        await it.start()
        assert await asked(it, "/healthz") == (200, "ok\n")
        assert (await asked(it, "/readyz"))[0] == 503

        async def counted() -> dict[str, float]:
            return (await measured(it)).by("error_type", "partita_publish_errors_total", driver=DRIVER)

        assert set(await until("an error counted", counted)) == {"Invalid"}
        assert (await measured(it)).labels["partita_publish_errors_total"] == LABELS["partita_publish_errors_total"]
        assert (await measured(it)).value("partita_resource_slices", driver=DRIVER) is None

    async def ready() -> bool:
        return await asked(it, "/readyz") == (200, "ok\n")

    await until("readiness", ready, patience_s=60.0)
    assert await it.slices()
    assert (await asked(it, "/elsewhere"))[0] == 404
    assert (await asked(it, "/metrics", "POST"))[0] == 405


@asynccontextmanager
async def _slices_refused(it: World) -> AsyncIterator[None]:
    """By admission; only this node's."""
    name, api = f"no-slices-{it.node.name}", "admissionregistration.k8s.io/v1"
    rule = {
        "apiGroups": ["resource.k8s.io"],
        "apiVersions": ["*"],
        "operations": ["CREATE"],
        "resources": ["resourceslices"],
    }
    elsewhere = f"!has(object.spec.nodeName) || object.spec.nodeName != '{it.node.name}'"
    policy = {"matchConstraints": {"resourceRules": [rule]}, "validations": [{"expression": elsewhere}]}
    binding = {"policyName": name, "validationActions": ["Deny"]}
    kinds = (("ValidatingAdmissionPolicy", "validatingadmissionpolicies", policy),)
    kinds += (("ValidatingAdmissionPolicyBinding", "validatingadmissionpolicybindings", binding),)
    for kind, plural, spec in kinds:
        body = {"apiVersion": api, "kind": kind, "metadata": {"name": name}, "spec": spec}
        await it.client.create(path(api, plural), body)
    try:
        await until("the refusal", lambda: _is_refused(it))
        yield
    finally:
        for _, plural, _ in reversed(kinds):
            await it.client.delete(path(api, plural, name=name))


async def _is_refused(it: World) -> bool:
    """A policy takes a moment to be known to the API server."""
    slices = path("resource.k8s.io/v1", "resourceslices")
    pool = {"name": it.node.name, "generation": 1, "resourceSliceCount": 1}
    spec = {"driver": "probe.example.com", "nodeName": it.node.name, "pool": pool, "devices": [{"name": "d"}]}
    body: Json = {"kind": "ResourceSlice", "metadata": {"name": f"probe-{it.node.name}"}, "spec": spec}
    try:
        await it.client.create(slices, {"apiVersion": "resource.k8s.io/v1", **body})
    except Invalid:
        return True
    await it.client.delete(f"{slices}/probe-{it.node.name}")
    return False
