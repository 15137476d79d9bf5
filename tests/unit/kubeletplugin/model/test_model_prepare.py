"""Preparing and giving back: which steps, which record, and who is told what when it cannot be."""

from dataclasses import replace
from typing import Any

import pytest

from api.device_config import parse_device_config
from api.errors import Busy, ClaimError, HardwareError
from kubeletplugin.model.checkpoint import (
    Checkpoint,
    ClaimState,
    GpuHolding,
    Holding,
    MigHolding,
    PreparedDevice,
)
from kubeletplugin.model.claims import parse_claim
from kubeletplugin.model.inventory import Gpu, Inventory, MigInstance, Placement
from kubeletplugin.model.prepare import PreparePlan, complete, plan_prepare, plan_unprepare
from kubeletplugin.model.steps import (
    CreateMigInstance,
    DeleteMigInstance,
    DisableMig,
    EnableMig,
    SetTimeSlice,
)
from tests.scenarios.hardware import Hardware, a100, h100, inventory, l40s
from tests.scenarios.node import DRIVER, POOL, Node, claim

GPU = h100(0).uuid
SLICE = "gpu-0-mig-1g10gb-19-5"


def plan(
    raw: dict[str, Any], hardware: Inventory, checkpoint: Checkpoint | None = None, boot: str = "b"
) -> PreparePlan:
    request = parse_claim(raw, DRIVER, POOL, raw["metadata"]["uid"], parse_device_config)
    return plan_prepare(request, hardware, checkpoint or Checkpoint(), boot)


def prepared(raw: dict[str, Any], *gpus: Gpu) -> Node:
    node = Node(Hardware(inventory(*gpus)))
    node.prepare(raw)
    return node


def config(kind: str, **sharing: Any) -> tuple[dict[str, Any], ...]:
    parameters = {"apiVersion": "resource.nvidia.com/v1beta1", "kind": kind, "sharing": sharing}
    return ({"source": "FromClaim", "requests": [], "opaque": {"driver": DRIVER, "parameters": parameters}},)


def with_instances(gpu: Gpu, *instances: MigInstance) -> Gpu:
    assert gpu.mig is not None
    return replace(gpu, mig=replace(gpu.mig, enabled=True, instances=instances))


def test_a_partition_is_made_at_its_placement_with_mig_mode_on_first() -> None:
    planned = plan(claim("c", SLICE), inventory(h100(0)))
    assert planned.steps == (EnableMig(GPU), CreateMigInstance(GPU, 19, Placement(5, 1)))
    assert planned.record.state is ClaimState.STARTED
    done = complete(planned, [None, MigInstance(3, 19, Placement(5, 1), 0, "MIG-1")])
    assert done.state is ClaimState.COMPLETED
    assert done.devices == (
        PreparedDevice(
            request="r0",
            pool="node-1",
            device=SLICE,
            holding=MigHolding(GPU, 19, Placement(5, 1), True, 3, 0, "MIG-1"),
            cdi_ids=(f"k8s.gpu.nvidia.com/claim=c-{SLICE}",),
        ),
    )


def test_a_full_gpu_needs_no_step_but_to_leave_mig_mode() -> None:
    assert plan(claim("c", "gpu-0"), inventory(h100(0))).steps == ()
    assert plan(claim("c", "gpu-0"), inventory(h100(0, enabled=True))).steps == (DisableMig(GPU),)
    assert plan(claim("c", "gpu-0"), inventory(l40s(0))).steps == ()
    assert plan(claim("c", "gpu-0"), inventory(a100(0))).steps == ()


def test_on_ampere_the_mode_is_never_changed() -> None:
    enabled = a100(0, enabled=True)
    steps = plan(claim("c", "gpu-0-mig-1g5gb-19-0"), inventory(enabled)).steps
    assert steps == (CreateMigInstance(enabled.uuid, 19, Placement(0, 1)),)
    with pytest.raises(ClaimError, match="the GPU is in MIG mode, which only an admin can change"):
        plan(claim("c", "gpu-0"), inventory(enabled))
    with pytest.raises(ClaimError, match="the GPU left MIG mode, which only an admin can change"):
        plan(claim("c", "gpu-0-mig-1g5gb-19-0"), inventory(a100(0)))
    node = prepared(claim("c", "gpu-0-mig-1g5gb-19-0"), enabled)
    node.unprepare("c")
    assert node.hardware.inventory == inventory(enabled)


def test_several_devices_of_a_claim_keep_their_order_and_have_steps_by_gpu_and_start() -> None:
    planned = plan(
        claim("c", "gpu-1-mig-3g40gb-9-4", "gpu-2", "gpu-0-mig-1g10gb-19-3", "gpu-1-mig-1g10gb-19-0"),
        inventory(h100(0), h100(1), h100(2)),
    )
    assert [d.device.partition("-mig")[0] for d in planned.record.devices] == ["gpu-1", "gpu-2", "gpu-0", "gpu-1"]
    one = h100(1).uuid
    assert planned.steps == (
        EnableMig(GPU),
        CreateMigInstance(GPU, 19, Placement(3, 1)),
        EnableMig(one),
        CreateMigInstance(one, 19, Placement(0, 1)),
        CreateMigInstance(one, 9, Placement(4, 4)),
    )


def test_a_claim_that_is_prepared_gets_the_same_answer_and_no_steps() -> None:
    node = prepared(claim("c", SLICE), h100(0))
    again = plan(claim("c", SLICE), node.hardware.inventory, node.checkpoint, node.boot_id)
    assert (again.done, again.steps, again.record) == (True, (), node.checkpoint.get("c"))


def test_a_preparation_that_was_interrupted_is_planned_again_over_what_it_left() -> None:
    planned = plan(claim("c", SLICE), inventory(h100(0)))
    started = Checkpoint().with_record(planned.record)
    left = with_instances(h100(0), MigInstance(1, 19, Placement(5, 1)))
    again = plan(claim("c", SLICE), inventory(left), started)
    assert (again.record, again.steps) == (planned.record, planned.steps)


def test_a_partition_that_vanished_under_a_prepared_claim_is_made_again() -> None:
    node = prepared(claim("c", SLICE), h100(0))
    again = plan(claim("c", SLICE), inventory(h100(0)), node.checkpoint, node.boot_id)
    assert not again.done
    assert again.steps == (EnableMig(GPU), CreateMigInstance(GPU, 19, Placement(5, 1)))


def test_a_prepared_claim_of_an_earlier_boot_is_prepared_again() -> None:
    node = prepared(claim("c", SLICE), h100(0))
    again = plan(claim("c", SLICE), inventory(h100(0)), node.checkpoint, "next boot")
    assert not again.done
    assert again.record.boot_id == "next boot"


def test_another_allocation_of_a_claim_waits_until_the_first_is_given_back() -> None:
    node = prepared(claim("c", SLICE), h100(0))
    with pytest.raises(Busy, match=f"still holds {SLICE} of an earlier allocation; gpu-0-mig-1g10gb-19-4 can be"):
        plan(claim("c", "gpu-0-mig-1g10gb-19-4"), node.hardware.inventory, node.checkpoint)


@pytest.mark.parametrize(
    ("held", "asked"),
    [
        (SLICE, "gpu-0-mig-3g40gb-9-4"),
        (SLICE, SLICE),
        (SLICE, "gpu-0"),
        ("gpu-0", SLICE),
        ("gpu-0", "gpu-0"),
        ("gpu-0-mig-7g80gb-0-0", "gpu-0-mig-1g10gb-me-20-0"),
    ],
)
def test_what_overlaps_another_claim_is_refused_with_both_names(held: str, asked: str) -> None:
    node = prepared(claim("first", held), h100(0))
    with pytest.raises(Busy, match=f"claim default/claim-second: device {asked} overlaps .* claim default/claim-first"):
        plan(claim("second", asked), node.hardware.inventory, node.checkpoint)


def test_neighbours_on_one_gpu_do_not_overlap() -> None:
    node = prepared(claim("first", SLICE), h100(0))
    node.prepare(claim("second", "gpu-0-mig-3g40gb-9-0"))
    assert len(node.hardware.instances()) == 2


def test_a_claim_whose_own_devices_overlap_is_refused() -> None:
    with pytest.raises(ClaimError, match=r"its own devices .* overlap"):
        plan(claim("c", "gpu-0-mig-3g40gb-9-4", SLICE), inventory(h100(0)))
    with pytest.raises(ClaimError, match=r"its own devices gpu-0 and gpu-0-mig-1g10gb-19-5 overlap"):
        plan(claim("c", "gpu-0", SLICE), inventory(h100(0)))


def test_admin_access_sees_what_is_there_and_is_in_nobodys_way() -> None:
    node = prepared(claim("user", SLICE), h100(0))
    watching = plan(
        claim("admin", "gpu-0", SLICE, "gpu-0-mig-1g10gb-19-4", admin=True), node.hardware.inventory, node.checkpoint
    )
    assert watching.steps == ()
    whole, used, unused = watching.record.devices
    assert isinstance(used.holding, MigHolding)
    assert (used.holding.owned, used.holding.uuid) == (False, "MIG-00000001-0000-0000-0000-000000000000")
    assert [len(d.cdi_ids) for d in (whole, used, unused)] == [1, 1, 0], "an unused placement has nothing to show"
    node.prepare(claim("admin", "gpu-0", SLICE, admin=True))
    node.prepare(claim("more", "gpu-0-mig-1g10gb-19-4"))
    node.unprepare("admin")
    assert len(node.hardware.instances()) == 2


def test_an_admins_instance_is_used_as_it_is_and_survives() -> None:
    theirs = MigInstance(1, 19, Placement(5, 1), 0, "MIG-admin")
    gpu = with_instances(h100(0), theirs)
    planned = plan(claim("c", SLICE), inventory(gpu))
    assert planned.steps == ()
    assert planned.record.devices[0].holding == MigHolding(GPU, 19, Placement(5, 1), False, 1, 0, "MIG-admin")
    done = complete(planned, [])
    assert plan_unprepare(done, inventory(gpu), Checkpoint().with_record(done)) == ()


@pytest.mark.parametrize(
    ("theirs", "asked", "message"),
    [
        (MigInstance(1, 9, Placement(4, 4), 0, "MIG-a"), SLICE, "has a MIG instance that an admin made"),
        (MigInstance(1, 19, Placement(5, 1), 0, "MIG-a"), "gpu-0", "carries MIG instances that an admin made"),
        (MigInstance(1, 19, Placement(5, 1)), SLICE, "has a layout that an admin made"),
        (MigInstance(1, 19, Placement(5, 1), 0, "MIG-a", foreign=True), SLICE, "has a layout that an admin made"),
    ],
)
def test_what_an_admin_made_is_in_the_way_and_named(theirs: MigInstance, asked: str, message: str) -> None:
    with pytest.raises(Busy, match=message):
        plan(claim("c", asked), inventory(with_instances(h100(0), theirs)))


@pytest.mark.parametrize("device", ["gpu-7", "gpu-0-mig-1g11gb-19-0", "channel-0"])
def test_a_device_that_vanished_is_named_with_what_to_do(device: str) -> None:
    with pytest.raises(
        ClaimError, match=f"device {device} of pool node-1 does not exist on this node any more"
    ) as caught:
        plan(claim("c", device), inventory(h100(0)))
    assert caught.value.reason == "DeviceGone"


def test_a_lost_gpu_is_refused_and_giving_it_back_needs_no_steps() -> None:
    lost = replace(h100(0), lost=True)
    with pytest.raises(ClaimError, match=r"GPU .* is lost"):
        plan(claim("c", SLICE), inventory(lost))
    node = prepared(claim("c", SLICE), h100(0))
    record = node.checkpoint.records["c"]
    assert plan_unprepare(record, inventory(lost), node.checkpoint) == ()
    assert plan_unprepare(record, inventory(), node.checkpoint) == ()


def test_a_time_slice_is_set_and_taken_back() -> None:
    raw = claim(
        "c", "gpu-0", config=config("GpuConfig", strategy="TimeSlicing", timeSlicingConfig={"interval": "Long"})
    )
    planned = plan(raw, inventory(h100(0)))
    assert planned.steps == (SetTimeSlice(GPU, 3),)
    done = complete(planned, [None])
    assert plan_unprepare(done, inventory(h100(0)), Checkpoint()) == (SetTimeSlice(GPU, 0),)
    default = claim("c", "gpu-0", config=config("GpuConfig", strategy="TimeSlicing"))
    assert plan(default, inventory(h100(0))).steps == (SetTimeSlice(GPU, 0),)


def test_on_a_partition_time_slicing_is_accepted_and_changes_nothing() -> None:
    raw = claim("c", SLICE, config=config("MigDeviceConfig", strategy="TimeSlicing"))
    assert plan(raw, inventory(h100(0))).steps == plan(claim("c", SLICE), inventory(h100(0))).steps


@pytest.mark.parametrize(("kind", "device"), [("GpuConfig", "gpu-0"), ("MigDeviceConfig", SLICE)])
def test_mps_is_refused_with_what_is_offered(kind: str, device: str) -> None:
    raw = claim("c", device, config=config(kind, strategy="MPS"))
    with pytest.raises(ClaimError, match=rf"{kind}\.sharing: strategy MPS is not offered .*right would be TimeSlicing"):
        plan(raw, inventory(h100(0)))


def test_the_last_partition_to_go_turns_mig_mode_off() -> None:
    node = prepared(claim("a", SLICE), h100(0))
    node.prepare(claim("b", "gpu-0-mig-1g10gb-19-4"))
    delete = DeleteMigInstance(GPU, 19, Placement(5, 1))
    first = node.checkpoint.records["a"]
    assert plan_unprepare(first, node.hardware.inventory, node.checkpoint) == (delete,)
    node.unprepare("b")
    assert plan_unprepare(first, node.hardware.inventory, node.checkpoint) == (delete, DisableMig(GPU))


def test_mig_mode_stays_where_an_admin_has_an_instance() -> None:
    hardware = Hardware(inventory(h100(0)))
    hardware, _ = hardware.with_admin_instance(GPU, 9, Placement(0, 4))
    node = Node(hardware)
    node.prepare(claim("a", SLICE))
    assert plan_unprepare(node.checkpoint.records["a"], node.hardware.inventory, node.checkpoint) == (
        DeleteMigInstance(GPU, 19, Placement(5, 1)),
    )


def test_an_instance_that_replaced_ours_is_not_deleted() -> None:
    node = prepared(claim("a", SLICE), h100(0))
    theirs = with_instances(h100(0), MigInstance(1, 19, Placement(5, 1), 0, "MIG-admin"))
    assert plan_unprepare(node.checkpoint.records["a"], inventory(theirs), node.checkpoint) == ()


def test_a_layout_that_is_not_ours_is_not_deleted_where_we_meant_to_make_an_instance() -> None:
    started = plan(claim("a", SLICE), inventory(h100(0))).record
    theirs = with_instances(h100(0), MigInstance(1, 19, Placement(5, 1), 0, "MIG-admin", foreign=True))
    assert plan_unprepare(started, inventory(theirs), Checkpoint().with_record(started)) == ()


def test_where_nothing_is_there_is_nothing_to_delete() -> None:
    """What an admin makes there in the next moment is not ours."""
    node = prepared(claim("a", SLICE), h100(0))
    gone = inventory(h100(0, enabled=True))
    assert plan_unprepare(node.checkpoint.records["a"], gone, node.checkpoint) == (DisableMig(GPU),)


def test_a_creation_without_result_is_an_error_and_no_record() -> None:
    planned = plan(claim("c", SLICE), inventory(h100(0)))
    for result in (None, MigInstance(1, 19, Placement(5, 1))):
        with pytest.raises(HardwareError, match="yielded no instance with a UUID"):
            complete(planned, [None, result])


def test_a_device_keeps_its_share_id() -> None:
    raw = claim("c", "gpu-0")
    raw["status"]["allocation"]["devices"]["results"][0]["shareID"] = "share-1"
    assert plan(raw, inventory(h100(0))).record.devices[0].share_id == "share-1"


def test_holdings_of_full_gpus_and_partitions_are_told_apart() -> None:
    record = plan(claim("c", "gpu-1", SLICE), inventory(h100(0), h100(1))).record
    expected: list[Holding] = [GpuHolding(h100(1).uuid), MigHolding(GPU, 19, Placement(5, 1), owned=True)]
    assert [d.holding for d in record.devices] == expected
