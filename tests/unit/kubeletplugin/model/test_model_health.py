"""XIDs and losses become taints and health reports, and go away when the GPU was reset."""

from dataclasses import replace

import pytest

from kubeletplugin.model.health import (
    IGNORED_XIDS,
    GpuHealth,
    HealthStatus,
    NodeHealth,
    build_taints,
    observe_event,
    observe_inventory,
)
from tests.scenarios.hardware import h100, inventory

GPU = h100(0)


@pytest.mark.parametrize("xid", sorted(IGNORED_XIDS))
def test_faults_of_applications_leave_a_gpu_healthy_and_are_said_without_effect(xid: int) -> None:
    gpu = observe_event(NodeHealth(), GPU.uuid, xid).of(GPU.uuid)
    assert (gpu.status, gpu.message) == (HealthStatus.HEALTHY, "")
    assert build_taints(gpu) == ({"key": "gpu.nvidia.com/xid", "value": str(xid), "effect": "None"},)
    assert build_taints(gpu, informing=False) == ()


def test_a_fault_of_an_application_hides_no_critical_one() -> None:
    health = observe_event(observe_event(NodeHealth(), GPU.uuid, 48), GPU.uuid, 13)
    assert build_taints(health.of(GPU.uuid)) == ({"key": "gpu.nvidia.com/xid", "value": "48", "effect": "NoSchedule"},)
    assert observe_event(health, GPU.uuid, 13) is health


def test_a_gpu_that_nobody_can_watch_says_so_without_effect() -> None:
    assert build_taints(GpuHealth(), monitored=False) == ({"key": "gpu.nvidia.com/unmonitored", "effect": "None"},)
    assert build_taints(GpuHealth(), monitored=False, informing=False) == ()


def test_a_critical_xid_taints_its_gpu_and_names_itself() -> None:
    health = observe_event(observe_event(NodeHealth(), GPU.uuid, 48), GPU.uuid, 63)
    gpu = health.of(GPU.uuid)
    assert build_taints(gpu) == ({"key": "gpu.nvidia.com/xid", "value": "63", "effect": "NoSchedule"},)
    assert (gpu.status, gpu.message) == (HealthStatus.UNHEALTHY, "critical XID 48, 63 until the GPU is reset")
    assert health.of("GPU-other").status is HealthStatus.HEALTHY
    assert observe_event(health, GPU.uuid, 48) is health


def test_more_xids_can_be_ignored() -> None:
    gpu = observe_event(NodeHealth(), GPU.uuid, 48, ignored={48}).of(GPU.uuid)
    assert (gpu.status, gpu.xids) == (HealthStatus.HEALTHY, ())


def test_a_gpu_off_the_bus_is_lost_by_event_or_by_inventory() -> None:
    by_event = observe_event(NodeHealth(), GPU.uuid, 79).of(GPU.uuid)
    by_inventory = observe_inventory(NodeHealth(), inventory(replace(GPU, lost=True))).of(GPU.uuid)
    for gpu in (by_event, by_inventory):
        assert gpu.status is HealthStatus.UNHEALTHY
        assert {"key": "gpu.nvidia.com/gpu-lost", "effect": "NoSchedule"} in build_taints(gpu)
        assert "the GPU is lost" in gpu.message


def test_an_xid_outlasts_a_rescan_that_shows_the_gpu_present() -> None:
    health = observe_event(NodeHealth(), GPU.uuid, 48)
    assert observe_inventory(health, inventory(GPU)) == health


def test_a_loss_between_two_inventories_ends_with_the_one_that_shows_the_gpu() -> None:
    health = observe_event(observe_event(NodeHealth(), GPU.uuid, 48), GPU.uuid, 79)
    assert observe_inventory(health, inventory(GPU)) == NodeHealth()


def test_a_gpu_that_was_lost_and_answers_again_was_reset_and_is_healthy() -> None:
    health = observe_event(NodeHealth(), GPU.uuid, 48)
    health = observe_inventory(health, inventory(replace(GPU, lost=True)))
    assert observe_inventory(health, inventory(GPU)) == NodeHealth()
