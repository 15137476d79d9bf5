"""A claim is read as this driver on this node sees it, and its configs are resolved device by device."""

from typing import Any

import pytest

from api.device_config import GpuConfig, MigDeviceConfig, parse_device_config
from api.errors import ClaimError
from kubeletplugin.model.claims import ClaimRequest, parse_claim

DRIVER, NODE = "gpu.nvidia.com", "node-1"
IDENTITY = {"uid": "u1", "namespace": "ns", "name": "claim"}


def result(request: str, device: str, driver: str = DRIVER, **more: Any) -> dict[str, Any]:
    return {"request": request, "driver": driver, "pool": NODE, "device": device, **more}


def opaque(
    kind: str, *requests: str, source: str = "FromClaim", driver: str = DRIVER, interval: str | None = None
) -> dict[str, Any]:
    parameters: dict[str, Any] = {"apiVersion": "resource.nvidia.com/v1beta1", "kind": kind}
    if interval:
        parameters["sharing"] = {"strategy": "TimeSlicing", "timeSlicingConfig": {"interval": interval}}
    return {"source": source, "requests": list(requests), "opaque": {"driver": driver, "parameters": parameters}}


def raw(results: list[dict[str, Any]], *configs: dict[str, Any]) -> dict[str, Any]:
    return {
        "metadata": IDENTITY,
        "status": {"allocation": {"devices": {"results": results, "config": list(configs)}}},
    }


def parse(results: list[dict[str, Any]], *configs: dict[str, Any]) -> ClaimRequest:
    return parse_claim(raw(results, *configs), DRIVER, NODE, "u1", parse_device_config)


def interval_of(request: ClaimRequest, index: int = 0) -> str | None:
    config = request.configs[index]
    assert isinstance(config, GpuConfig)
    assert config.sharing is not None
    assert config.sharing.timeSlicingConfig is not None
    return config.sharing.timeSlicingConfig.interval


def test_only_our_results_count_and_sub_requests_are_answered_under_the_main_name() -> None:
    request = parse(
        [
            result("gpu/large", "gpu-0"),
            result("nic", "nic-0", "nic.example.com"),
            result("more", "gpu-1", adminAccess=True, shareID="s1"),
        ]
    )
    assert [(d.request, d.device, d.admin_access, d.share_id) for d in request.devices] == [
        ("gpu", "gpu-0", False, None),
        ("more", "gpu-1", True, "s1"),
    ]
    assert request.configs == (None, None)


@pytest.mark.parametrize(
    ("claim", "reason", "message"),
    [
        ({"metadata": {**IDENTITY, "uid": "u2"}}, "ClaimReplaced", "its UID is u2"),
        ({"metadata": IDENTITY}, "NotAllocated", "no status.allocation"),
        (raw([result("r", "nic-0", "nic.example.com")]), "NotAllocated", "has no device of gpu.nvidia.com"),
        (raw([]), "NotAllocated", "has no device of gpu.nvidia.com"),
        (
            raw([result("a", "gpu-0"), result("b/x", "gpu-0", pool="node-2")]),
            "WrongNode",
            "claim ns/claim: request b/x: device gpu-0 was allocated from pool node-2, and the pod is on node node-1",
        ),
    ],
)
def test_what_cannot_be_prepared_is_refused_with_its_reason(claim: dict[str, Any], reason: str, message: str) -> None:
    with pytest.raises(ClaimError, match=message) as caught:
        parse_claim(claim, DRIVER, NODE, "u1", parse_device_config)
    assert caught.value.reason == reason
    assert caught.value.claim == "ns/claim"


def test_the_claims_config_beats_the_classes_and_the_later_beats_the_earlier() -> None:
    devices = [result("r", "gpu-0")]
    of_class = opaque("GpuConfig", source="FromClass", interval="Short")
    first, second = opaque("GpuConfig", interval="Medium"), opaque("GpuConfig", interval="Long")
    assert interval_of(parse(devices, of_class)) == "Short"
    assert interval_of(parse(devices, first, of_class)) == "Medium"
    assert interval_of(parse(devices, of_class, first, second)) == "Long"
    assert interval_of(parse(devices, of_class, second, first)) == "Medium"


def test_a_config_with_requests_covers_those_only_sub_requests_of_a_main_request_included() -> None:
    devices = [result("a", "gpu-0"), result("b/x", "gpu-1"), result("c", "gpu-2")]
    request = parse(devices, opaque("GpuConfig", "a", interval="Short"), opaque("GpuConfig", "b", interval="Long"))
    assert (interval_of(request, 0), interval_of(request, 1), request.configs[2]) == ("Short", "Long", None)
    only = parse(devices, opaque("GpuConfig", "b/x", interval="Medium"))
    assert (only.configs[0], interval_of(only, 1), only.configs[2]) == (None, "Medium", None)
    assert parse(devices, opaque("GpuConfig", "b/y", interval="Medium")).configs == (None, None, None)


def test_a_config_without_requests_covers_the_devices_of_its_kind() -> None:
    request = parse(
        [result("a", "gpu-0"), result("b", "gpu-1-mig-1g10gb-19-0")],
        opaque("GpuConfig", interval="Short"),
        opaque("MigDeviceConfig"),
    )
    assert isinstance(request.configs[0], GpuConfig)
    assert isinstance(request.configs[1], MigDeviceConfig)


def test_configs_of_other_drivers_are_not_even_read() -> None:
    foreign = {"source": "FromClaim", "opaque": {"driver": "nic.example.com", "parameters": {"speed": 9}}}
    assert parse([result("a", "gpu-0")], foreign).configs == (None,)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"source": "FromClaim"}, r"config\[0\]: only opaque parameters are supported by this driver"),
        (
            opaque("MigDeviceConfig", "a"),
            "cannot apply MigDeviceConfig to request a: its device gpu-0 is of another kind",
        ),
        (opaque("Gpu"), r"config\[0\]\.opaque\.parameters: kind: 'Gpu' is not known"),
        ({"opaque": {"driver": DRIVER}}, r"config\[0\]\.opaque\.parameters: apiVersion: None is not known"),
    ],
)
def test_a_wrong_config_is_refused_by_its_place(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ClaimError, match=message) as caught:
        parse([result("a", "gpu-0")], config)
    assert caught.value.reason == "InvalidConfig"
