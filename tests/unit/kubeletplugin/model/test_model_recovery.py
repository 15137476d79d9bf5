"""A plugin that starts finishes, undoes or makes again what it finds, and rebuilds a checkpoint that cannot be read."""

import json
from dataclasses import replace
from typing import Any

import pytest

from api.errors import Retryable
from kubeletplugin.model.checkpoint import (
    Checkpoint,
    ClaimRecord,
    ClaimState,
    GpuHolding,
    MigHolding,
    decode_journal,
    encode_checkpoint,
)
from kubeletplugin.model.claims import parse_claim, parse_config
from kubeletplugin.model.inventory import Inventory, MigInstance, Placement
from kubeletplugin.model.prepare import plan_prepare, plan_recovery, plan_unprepare
from kubeletplugin.model.rebuild import rebuild_checkpoint, unrecorded_claims
from kubeletplugin.model.steps import CreateMigInstance, DeleteMigInstance, DisableMig, EnableMig
from tests.scenarios.hardware import Hardware, a100, h100, inventory
from tests.scenarios.node import DRIVER, POOL, Node, PowerCut, claim

GPU = h100(0).uuid
PLACE = Placement(5, 1)
SLICE = "gpu-0-mig-1g10gb-19-5"


def cut(node: Node, raw: dict[str, Any], effects: int) -> Node:
    node.effects_left = effects
    with pytest.raises(PowerCut):
        node.prepare(raw)
    node.effects_left = None
    return node


def fresh() -> Node:
    return Node(Hardware(inventory(h100(0), h100(1))))


def test_an_interrupted_preparation_is_undone_gpu_instance_without_compute_instance_included() -> None:
    node = cut(fresh(), claim("c", SLICE), 3)
    assert [i.uuid for i in node.hardware.instances().values()] == [None]
    recovery = plan_recovery(node.checkpoint, node.hardware.inventory, node.boot_id)
    (undo,) = recovery.undo
    assert undo.steps == (DeleteMigInstance(GPU, 19, PLACE), DisableMig(GPU))
    node.restart()
    assert (node.hardware.inventory, node.checkpoint) == (fresh().hardware.inventory, Checkpoint())


def test_what_an_earlier_boot_began_is_forgotten_with_its_intent() -> None:
    node = cut(fresh(), claim("c", SLICE), 3)
    node.reboot()
    node.hardware, theirs = node.hardware.with_admin_instance(GPU, 19, PLACE)
    node.restart()
    assert node.hardware.instances() == {(GPU, PLACE): theirs}
    assert node.checkpoint == Checkpoint()


def test_of_what_an_earlier_boot_began_nobody_knows_whether_the_kubelet_was_told_so_it_is_made_again() -> None:
    """The intent is on the disk before the answer, and the record of what was made may be lost with the power."""
    node = fresh()
    node.prepare(claim("c", SLICE))
    node.reboot()
    assert decode_journal(DRIVER, node.journal).checkpoint.records["c"].state is ClaimState.STARTED
    node.restart()
    assert node.checkpoint.records["c"].state is ClaimState.COMPLETED
    assert "c" in node.cdi


def test_what_an_earlier_boot_began_is_not_made_in_an_admins_place() -> None:
    node = fresh()
    node.prepare(claim("c", SLICE))
    node.reboot()
    node.hardware, theirs = node.hardware.with_admin_instance(GPU, 9, Placement(4, 4))
    recovery = plan_recovery(node.checkpoint, node.hardware.inventory, node.boot_id)
    assert recovery.undo == recovery.redo == ()
    node.restart()
    assert node.hardware.instances() == {(GPU, Placement(4, 4)): theirs}


def test_after_a_reboot_partitions_are_made_again_and_records_and_cdi_files_say_so() -> None:
    node = fresh()
    node.prepare(claim("c", SLICE))
    before = node.checkpoint.records["c"].devices[0].holding
    node.reboot()
    node.restart()
    record = node.checkpoint.records["c"]
    (instance,) = node.hardware.instances().values()
    holding = record.devices[0].holding
    assert isinstance(holding, MigHolding)
    assert isinstance(before, MigHolding)
    assert (record.boot_id, holding.uuid) == ("boot-2", instance.uuid)
    assert holding.uuid != before.uuid
    assert instance.uuid is not None
    assert instance.uuid in node.cdi["c"]


def test_the_plan_after_a_reboot_is_intent_first() -> None:
    node = fresh()
    node.prepare(claim("c", SLICE))
    node.reboot()
    (redo,) = plan_recovery(node.checkpoint, node.hardware.inventory, "boot-2").redo
    assert (redo.record.state, redo.record.boot_id) == (ClaimState.STARTED, "boot-2")
    assert redo.steps == (EnableMig(GPU), CreateMigInstance(GPU, 19, PLACE))


def test_an_instance_that_an_admin_made_at_boot_serves_the_claim_that_was_there() -> None:
    node = fresh()
    node.prepare(claim("c", SLICE))
    node.reboot()
    node.hardware, theirs = node.hardware.with_admin_instance(GPU, 19, PLACE)
    node.restart()
    holding = node.checkpoint.records["c"].devices[0].holding
    assert isinstance(holding, MigHolding)
    assert (holding.owned, holding.uuid) == (False, theirs.uuid)
    node.unprepare("c")
    assert node.hardware.instances() == {(GPU, PLACE): theirs}


def test_what_cannot_be_made_again_stays_recorded_and_is_told() -> None:
    node = Node(Hardware(inventory(a100(0, enabled=True))))
    node.prepare(claim("c", "gpu-0-mig-1g5gb-19-0"))
    recovery = plan_recovery(node.checkpoint, inventory(a100(0)), "boot-2")
    assert recovery.redo == ()
    ((record, why),) = recovery.failed
    assert record == node.checkpoint.records["c"]
    assert "only an admin can change" in str(why)


def test_completed_claims_of_this_boot_are_kept_and_lost_cdi_files_written_again() -> None:
    node = fresh()
    node.prepare(claim("c", SLICE))
    spec = node.cdi.pop("c")
    node.restart()
    assert node.cdi == {"c": spec}


def rebuild(node: Node, claims: list[dict[str, Any]], static: tuple[str, ...] | None = ()) -> Checkpoint:
    specs = {uid: json.loads(text) if text else None for uid, text in node.cdi.items()}
    return rebuild_checkpoint(DRIVER, POOL, claims, specs, node.hardware.inventory, node.boot_id, static)


def test_an_unreadable_checkpoint_is_rebuilt_from_cdi_files_to_the_letter() -> None:
    node, claims = fresh(), [claim("a", SLICE, "gpu-1"), claim("b", "gpu-0-mig-3g40gb-9-0")]
    for raw in claims:
        node.prepare(raw)
    assert rebuild(node, claims) == node.checkpoint
    assert rebuild(node, []) == node.checkpoint, "claims that are gone are kept too, until they are swept"


@pytest.mark.parametrize("effects", [3, 4])
def test_a_half_made_partition_of_an_allocated_claim_is_found_on_the_hardware(effects: int) -> None:
    raw = claim("c", SLICE)
    node = cut(fresh(), raw, effects)
    checkpoint = rebuild(node, [raw, claim("other", "gpu-0-mig-1g10gb-19-0")])
    (record,) = checkpoint.records.values()
    assert (record.uid, record.state) == ("c", ClaimState.STARTED)
    (undo,) = plan_recovery(checkpoint, node.hardware.inventory, node.boot_id).undo
    assert DeleteMigInstance(GPU, 19, PLACE) in undo.steps


def test_an_admins_instance_that_a_claim_was_given_is_not_taken_for_ours() -> None:
    node, raw = fresh(), claim("c", SLICE)
    node.hardware, theirs = node.hardware.with_admin_instance(GPU, 19, PLACE)
    assert rebuild(node, [raw], static=(theirs.uuid or "",)) == Checkpoint()
    assert rebuild(node, [claim("c", SLICE, admin=True)]) == Checkpoint()


def test_without_published_slices_a_whole_instance_is_rather_left_than_destroyed() -> None:
    node, raw = fresh(), claim("c", SLICE)
    node.hardware, _ = node.hardware.with_admin_instance(GPU, 19, PLACE)
    assert rebuild(node, [raw], static=None) == Checkpoint()


def test_what_an_unreadable_gpu_may_hold_is_not_forgotten() -> None:
    """Neither by recovery nor by an unprepare; and a claim for it is asked to wait, not to be deleted."""
    node = cut(fresh(), claim("c", SLICE), 3)
    blind = replace(node.hardware.inventory, gpus=(h100(1),), unreadable=("GPU 0: Unknown Error",))
    recovery = plan_recovery(node.checkpoint, blind, node.boot_id)
    ((record, why),) = recovery.failed
    assert (record.uid, recovery.undo) == ("c", ())
    assert "GPU 0: Unknown Error" in str(why)
    with pytest.raises(Retryable):
        plan_unprepare(record, blind, node.checkpoint)
    request = parse_claim(claim("d", "gpu-0"), DRIVER, POOL, "d", parse_config)
    with pytest.raises(Retryable, match="gpu-0 is not there now: GPU 0: Unknown Error"):
        plan_prepare(request, blind, Checkpoint(), node.boot_id)


@pytest.mark.parametrize("text", ["", "{}", '{"annotations":{"partita/record":"{"}}'])
def test_a_claim_whose_cdi_file_is_broken_too_is_prepared_again_over_what_is_there(text: str) -> None:
    node, raw = fresh(), claim("c", SLICE, "gpu-1")
    before = node.prepare(raw)
    intact, hardware = node.cdi["c"], node.hardware
    node.cdi["c"] = text
    checkpoint = rebuild(node, [raw])
    node.journal = encode_checkpoint(DRIVER, checkpoint)
    node.restart()
    assert (node.checkpoint.records["c"], node.cdi["c"]) == (before, intact)
    assert node.hardware == hardware


def test_a_cdi_file_without_a_record_shows_that_the_journal_lost_lines() -> None:
    node = fresh()
    node.prepare(claim("c", SLICE))
    assert unrecorded_claims(node.checkpoint, node.cdi) == ()
    assert unrecorded_claims(Checkpoint(), node.cdi) == ("c",)


def test_recovery_of_an_empty_node_does_nothing() -> None:
    recovery = plan_recovery(Checkpoint(), Inventory("570.1", "12.8"), "boot")
    assert (recovery.undo, recovery.redo, recovery.keep, recovery.failed) == ((), (), (), ())


def test_undoing_two_claims_of_one_gpu_turns_mig_mode_off_once_at_the_end() -> None:
    checkpoint = Checkpoint()
    instances = []
    for uid, start in (("a", 0), ("b", 1)):
        node = cut(fresh(), claim(uid, f"gpu-0-mig-1g10gb-19-{start}"), 3)
        checkpoint = checkpoint.with_record(node.checkpoint.records[uid])
        instances.append(MigInstance(start + 1, 19, Placement(start, 1)))
    hardware = inventory(h100(0, enabled=True, instances=tuple(instances)))
    first, second = plan_recovery(checkpoint, hardware, "boot-1").undo
    assert first.steps == (DeleteMigInstance(GPU, 19, Placement(0, 1)),)
    assert second.steps == (DeleteMigInstance(GPU, 19, Placement(1, 1)), DisableMig(GPU))


def test_a_full_gpus_record_survives_a_reboot_with_nothing_to_do() -> None:
    node = fresh()
    node.prepare(claim("c", "gpu-1"))
    node.reboot()
    node.restart()
    record: ClaimRecord = node.checkpoint.records["c"]
    assert (record.boot_id, record.state) == ("boot-2", ClaimState.COMPLETED)
    assert record.devices[0].holding == GpuHolding(h100(1).uuid)
