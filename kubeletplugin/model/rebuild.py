"""Making a checkpoint anew when the journal cannot be read: from the CDI files, the API server and the hardware."""

from collections.abc import Collection, Mapping
from typing import Any

from api.errors import StateUnreadable
from api.resources import allocated_devices, view_claim
from kubeletplugin.model.cdi import read_record
from kubeletplugin.model.checkpoint import Checkpoint, ClaimRecord, ClaimState, MigHolding, PreparedDevice
from kubeletplugin.model.inventory import Inventory
from kubeletplugin.model.mig import find_device, find_instance


def rebuild_checkpoint(
    driver: str,
    pool: str,
    claims: Collection[Mapping[str, Any]],
    cdi_specs: Mapping[str, Mapping[str, Any] | None],
    inventory: Inventory,
    boot_id: str,
    static_uuids: Collection[str] = (),
) -> Checkpoint:
    """The records that can be shown to have existed.

    A CDI file carries its claim's record, which is taken as it is. A claim that is allocated here without such a file
    was interrupted before it was complete: what lies at its placements is taken for ours, and STARTED, unless it was
    published as an admin's.

    `claims`: ResourceClaims as read from the API server; those not allocated in this pool are skipped.
    `cdi_specs`: our CDI files by claim UID; None for one that cannot be parsed.
    `static_uuids`: values of attribute `uuid` of the MIG devices in the slices that are published now.
    """
    checkpoint = Checkpoint()
    for uid in sorted(cdi_specs):
        record = _recorded(cdi_specs[uid])
        if record is not None and (record.driver, record.uid) == (driver, uid):
            checkpoint = checkpoint.with_record(record)
    for claim in sorted(claims, key=lambda claim: str(claim["metadata"]["uid"])):
        if claim["metadata"]["uid"] not in checkpoint.records:
            found = _interrupted(claim, driver, pool, inventory, boot_id, static_uuids)
            checkpoint = checkpoint.with_record(found) if found.devices else checkpoint
    return checkpoint


def unrecorded_claims(checkpoint: Checkpoint, cdi_claim_uids: Collection[str]) -> tuple[str, ...]:
    """UIDs with a CDI file but no record. The record is written first, so any shows that the journal lost lines."""
    return tuple(sorted(uid for uid in cdi_claim_uids if uid not in checkpoint.records))


def _recorded(spec: Mapping[str, Any] | None) -> ClaimRecord | None:
    if spec is None:
        return None
    try:
        return read_record(spec)
    except StateUnreadable:
        return None  # the claim itself and the hardware are asked next


def _interrupted(
    claim: Mapping[str, Any],
    driver: str,
    pool: str,
    inventory: Inventory,
    boot_id: str,
    static_uuids: Collection[str],
) -> ClaimRecord:
    view = view_claim(claim)
    devices = []
    for result in allocated_devices(claim, driver, pool):
        ref = find_device(inventory, result["device"])
        if ref is None or ref.profile is None or ref.placement is None or result.get("adminAccess"):
            continue
        instance = find_instance(ref.gpu, ref.profile.profile_id, ref.placement)
        if instance is None or instance.uuid in static_uuids:
            continue
        holding = MigHolding(ref.gpu.uuid, ref.profile.profile_id, ref.placement, owned=True)
        request = result["request"].partition("/")[0]
        devices.append(PreparedDevice(request, result["pool"], result["device"], holding))
    return ClaimRecord(driver, view.uid, view.namespace, view.name, ClaimState.STARTED, boot_id, tuple(devices))
