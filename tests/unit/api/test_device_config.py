"""Opaque configs are read strictly: what is wrong is named with its field, and with what would be right."""

from typing import Any

import pytest

from api.device_config import (
    AmdGpuConfig,
    ComputeDomainChannelConfig,
    ComputeDomainDaemonConfig,
    GpuConfig,
    MigDeviceConfig,
    parse_device_config,
)
from api.errors import InvalidObject

NVIDIA = "resource.nvidia.com/v1beta1"


def config(kind: str, version: str = NVIDIA, **fields: Any) -> dict[str, Any]:
    return {"apiVersion": version, "kind": kind, **fields}


@pytest.mark.parametrize("settings", [{}, {"timeSlicingConfig": None}, {"timeSlicingConfig": {}}])
def test_a_strategy_without_settings_gets_their_defaults(settings: dict[str, Any]) -> None:
    parsed = parse_device_config(config("GpuConfig", sharing={"strategy": "TimeSlicing", **settings}))
    assert isinstance(parsed, GpuConfig)
    assert parsed.sharing is not None
    assert parsed.sharing.time_slice == 0


@pytest.mark.parametrize(("interval", "value"), [("Default", 0), ("Short", 1), ("Medium", 2), ("Long", 3)])
def test_intervals_are_those_of_the_driver(interval: str, value: int) -> None:
    sharing = {"strategy": "TimeSlicing", "timeSlicingConfig": {"interval": interval}}
    parsed = parse_device_config(config("GpuConfig", sharing=sharing))
    assert isinstance(parsed, GpuConfig)
    assert parsed.sharing is not None
    assert parsed.sharing.time_slice == value


def test_every_kind_of_the_reference_drivers_is_read() -> None:
    assert isinstance(parse_device_config(config("GpuConfig")), GpuConfig)
    assert isinstance(
        parse_device_config(config("MigDeviceConfig", sharing={"strategy": "TimeSlicing"})), MigDeviceConfig
    )
    channel = parse_device_config(config("ComputeDomainChannelConfig", domainID="d1"))
    assert isinstance(channel, ComputeDomainChannelConfig)
    assert (channel.allocationMode, channel.releasePolicy) == ("Single", None)
    assert isinstance(
        parse_device_config(config("ComputeDomainDaemonConfig", domainID="d1")), ComputeDomainDaemonConfig
    )
    amd = parse_device_config(config("GpuConfig", "gpu.resource.amd.com/v1alpha1"))
    assert isinstance(amd, AmdGpuConfig)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({}, r"apiVersion: None is not known; right would be one of resource.nvidia.com/v1beta1"),
        (config("GpuConfig", "resource.nvidia.com/v1"), "apiVersion: 'resource.nvidia.com/v1' is not known"),
        (config("Gpu"), "kind: 'Gpu' is not known in .*; right would be one of GpuConfig, MigDeviceConfig"),
        (config("MigDeviceConfig", "gpu.resource.amd.com/v1alpha1"), "kind: 'MigDeviceConfig' is not known"),
        (config("GpuConfig", shareing={}), "GpuConfig.shareing: unknown field"),
        (config("GpuConfig", sharing={}), "GpuConfig.sharing.strategy: required, but missing"),
        (config("GpuConfig", sharing={"strategy": "Turns"}), "GpuConfig.sharing.strategy: .*'TimeSlicing'"),
        (config("GpuConfig", sharing="MPS"), "GpuConfig.sharing: "),
        (
            config("GpuConfig", sharing={"strategy": "TimeSlicing", "timeSlicingConfig": {"interval": "Huge"}}),
            "GpuConfig.sharing.timeSlicingConfig.interval: .*'Default', 'Short', 'Medium' or 'Long'.*'Huge'",
        ),
        (config("GpuConfig", sharing={"strategy": "TimeSlicing", "mpsConfig": {}}), "sharing.mpsConfig: unknown field"),
        (
            config("GpuConfig", sharing={"strategy": "MPS", "mpsConfig": {"defaultActiveThreadPercentage": 50}}),
            "^GpuConfig.sharing: strategy MPS is not offered by this driver; right would be TimeSlicing$",
        ),
        (
            config("MigDeviceConfig", sharing={"strategy": "MPS"}),
            "^MigDeviceConfig.sharing: strategy MPS is not offered",
        ),
        (
            config("MigDeviceConfig", sharing={"strategy": "TimeSlicing", "timeSlicingConfig": {}}),
            "MigDeviceConfig.sharing.timeSlicingConfig: unknown field",
        ),
        (config("VfioDeviceConfig", iommu={}), "passthrough of GPUs to virtual machines is not offered by this driver"),
        (config("ComputeDomainChannelConfig"), "ComputeDomainChannelConfig.domainID: required, but missing"),
        (config("ComputeDomainChannelConfig", domainID=""), "domainID: right would be the uid of a ComputeDomain"),
        (config("ComputeDomainChannelConfig", domainID="u.c,metadata.namespace!=/../../x"), "ChannelConfig.domainID: "),
        (config("ComputeDomainChannelConfig", domainID="../x"), "ChannelConfig.domainID: right would be .*'../x'"),
        (config("ComputeDomainChannelConfig", domainID="u\n"), "ChannelConfig.domainID: "),
        (config("ComputeDomainChannelConfig", domainID="u" * 65), "ChannelConfig.domainID: "),
        (config("ComputeDomainDaemonConfig", domainID="a/b"), "ComputeDomainDaemonConfig.domainID: right would be"),
        (
            config("ComputeDomainChannelConfig", domainID="d", allocationMode="Some"),
            "allocationMode: .*'Single' or 'All'",
        ),
        (config("ComputeDomainDaemonConfig", domainID="d", numNodes=3), "numNodes: unknown field"),
        (config("GpuConfig", "gpu.resource.amd.com/v1alpha1", sharing={}), "GpuConfig.sharing: unknown field"),
    ],
)
def test_what_is_wrong_is_named(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidObject, match=message):
        parse_device_config(parameters)


@pytest.mark.parametrize(
    ("kind", "fits", "does_not"),
    [
        ("GpuConfig", "gpu-0", "gpu-0-mig-1g10gb-19-0"),
        ("MigDeviceConfig", "gpu-0-mig-1g10gb-19-0", "gpu-0"),
    ],
)
def test_a_kind_applies_to_its_own_devices_only(kind: str, fits: str, does_not: str) -> None:
    parsed = parse_device_config(config(kind))
    assert parsed.applies_to(fits)
    assert not parsed.applies_to(does_not)


def test_configs_that_differ_in_the_order_of_keys_are_one() -> None:
    one = config("GpuConfig", sharing={"strategy": "TimeSlicing"})
    assert parse_device_config(one) is parse_device_config(dict(reversed(one.items())))


@pytest.mark.parametrize("wrong", [[], {}, [["deep"]], 1, None])
def test_a_version_or_kind_that_is_no_text_is_refused_like_any_other(wrong: Any) -> None:
    with pytest.raises(InvalidObject, match=r"apiVersion: .* is not known"):
        parse_device_config({"apiVersion": wrong, "kind": "GpuConfig"})
    with pytest.raises(InvalidObject, match=r"kind: .* is not known"):
        parse_device_config({"apiVersion": "resource.nvidia.com/v1beta1", "kind": wrong})
