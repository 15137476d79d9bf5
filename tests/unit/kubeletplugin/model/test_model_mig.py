"""Names, owners and the order of placements."""

from kubeletplugin.model.checkpoint import Checkpoint, ClaimRecord, ClaimState, MigHolding, PreparedDevice
from kubeletplugin.model.inventory import MigInstance, Placement
from kubeletplugin.model.mig import (
    admin_instances,
    find_device,
    mig_device_name,
    order_placements,
)
from tests.scenarios.hardware import A30, H100, RTX, h100, inventory, rtx


def starts(profiles: tuple, name: str) -> list[int]:
    profile = next(p for p in profiles if p.name == name)
    return [place.start for place in order_placements(profile, profiles)]


def test_on_the_8_unit_grid_placements_come_in_the_searched_order():
    assert starts(H100, "1g.10gb") == [5, 4, 6, 2, 1, 0, 3]
    assert starts(H100, "1g.10gb+me") == [5, 4, 6, 2, 1, 0, 3]
    assert starts(H100, "1g.20gb") == [6, 2, 0, 4]
    assert starts(H100, "2g.20gb") == [4, 2, 0]
    assert starts(H100, "3g.40gb") == [4, 0]
    assert starts(H100, "7g.80gb") == [0]


def test_on_other_grids_placements_come_in_ascending_order_where_all_spoil_the_same():
    assert starts(A30, "1g.6gb") == [0, 1, 2, 3]
    assert starts(RTX, "1g.24gb") == [0, 3, 6, 9]
    assert starts(RTX, "2g.48gb") == [0, 6]


def test_device_names_are_those_of_the_reference_and_lead_back_to_the_placement():
    gpu = rtx(3)
    for profile in gpu.mig.profiles:
        for place in profile.placements:
            ref = find_device(inventory(h100(0), gpu), mig_device_name(gpu, profile, place))
            assert (ref.gpu, ref.profile, ref.placement) == (gpu, profile, place)
    assert mig_device_name(gpu, gpu.mig.profiles[0], Placement(3, 3)) == "gpu-3-mig-1g24gb-14-3"
    assert mig_device_name(gpu, gpu.mig.profiles[2], Placement(0, 3)) == "gpu-3-mig-1g24gb-me-67-0"
    assert mig_device_name(gpu, gpu.mig.profiles[3], Placement(0, 3)) == "gpu-3-mig-1g24gb-meall-65-0"


def test_names_that_mean_nothing_on_this_node_are_not_found():
    node = inventory(h100(0))
    for name in (
        "gpu-1",
        "gpu-0-mig-1g10gb-19-7",
        "gpu-0-mig-1g11gb-19-0",
        "gpu-0-mig-1g10gb-99-0",
        "gpu-0-",
        "channel-0",
        "gpu-vfio-0",
        "",
    ):
        assert find_device(node, name) is None, name


def test_an_instance_is_ours_only_where_a_record_made_that_very_one():
    ours = MigInstance(1, 19, Placement(0, 1), 0, "MIG-ours")
    gpu = h100(0, enabled=True, instances=(ours,))
    holding = MigHolding(gpu.uuid, 19, Placement(0, 1), owned=True, uuid="MIG-ours")

    def admins(holding: MigHolding) -> tuple[MigInstance, ...]:
        device = PreparedDevice("r", "node-1", "gpu-0-mig-1g10gb-19-0", holding)
        record = ClaimRecord("d", "uid", "ns", "name", ClaimState.COMPLETED, "boot", (device,))
        return admin_instances(gpu, Checkpoint().with_record(record))

    assert admins(holding) == ()
    assert admins(MigHolding(gpu.uuid, 19, Placement(0, 1), owned=True)) == ()
    assert admins(MigHolding(gpu.uuid, 19, Placement(0, 1), owned=True, uuid="MIG-other")) == (ours,)
    assert admins(MigHolding(gpu.uuid, 19, Placement(0, 1), owned=False, uuid="MIG-ours")) == (ours,)
    assert admins(MigHolding(gpu.uuid, 20, Placement(0, 1), owned=True)) == (ours,)
    assert admins(MigHolding("GPU-other", 19, Placement(0, 1), owned=True)) == (ours,)
