"""Making a checkpoint anew when the journal cannot be read: from the CDI files, the API server and the hardware."""

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from api.errors import StateUnreadable
from api.resources import allocated_devices, view_claim
from kubeletplugin.model.cdi import read_record
from kubeletplugin.model.checkpoint import (
    Checkpoint,
    ClaimRecord,
    ClaimState,
    GpuHolding,
    Holding,
    MigHolding,
    PreparedDevice,
)
from kubeletplugin.model.inventory import Inventory
from kubeletplugin.model.mig import find_device, find_instance


def rebuild_checkpoint(
    driver: str,
    pool: str,
    claims: Collection[Mapping[str, Any]],
    cdi_specs: Mapping[str, Mapping[str, Any] | None],
    inventory: Inventory,
    boot_id: str,
    static_uuids: Collection[str] | None = (),
) -> Checkpoint:
    """The records that can be shown to have existed.

    A CDI file carries its claim's record, which is taken as it is. An allocated claim whose file cannot be read was
    complete: its record is made from the claim and the hardware, of no known boot, so that recovery prepares it again
    over what is there. An allocated claim without a file was interrupted before it was complete: what lies at its
    placements is taken for ours, and STARTED, unless it was published as an admin's.

    `claims`: ResourceClaims as read from the API server; those not allocated in this pool are skipped.
    `cdi_specs`: our CDI files by claim UID; None for one that cannot be parsed.
    `static_uuids`: values of attribute `uuid` of the MIG devices in the slices that are published now; None where there
    are no slices to tell. Then whole instances are taken for an admin's: one that stays is better than one that is
    destroyed under its user.
    """
    checkpoint = Checkpoint()
    for uid in sorted(cdi_specs):
        record = _recorded(cdi_specs[uid])
        if record is not None and (record.driver, record.uid) == (driver, uid):
            checkpoint = checkpoint.with_record(record)
    for claim in sorted(claims, key=lambda claim: str(claim["metadata"]["uid"])):
        uid = claim["metadata"]["uid"]
        if uid in checkpoint.records:
            continue
        found = [_find_holding(result, inventory, static_uuids) for result in allocated_devices(claim, driver, pool)]
        devices = tuple(device for device in found if device is not None and (uid in cdi_specs or _is_made(device)))
        if devices:
            view = view_claim(claim)
            state, boot = (ClaimState.COMPLETED, "") if uid in cdi_specs else (ClaimState.STARTED, boot_id)
            record = ClaimRecord(driver, uid, view.namespace, view.name, state, boot, devices)
            checkpoint = checkpoint.with_record(record)
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


def _find_holding(
    result: Mapping[str, Any], inventory: Inventory, static_uuids: Collection[str] | None
) -> PreparedDevice | None:
    """What an allocation result means on the hardware; None for a device that is gone."""
    ref = find_device(inventory, result["device"])
    if ref is None:
        return None
    admin = bool(result.get("adminAccess"))
    holding: Holding = GpuHolding(ref.gpu.uuid)
    if ref.profile is not None and ref.placement is not None:
        instance = find_instance(ref.gpu, ref.profile.profile_id, ref.placement)
        uuid = instance.uuid if instance is not None else None
        owned = not admin and (uuid is None or (static_uuids is not None and uuid not in static_uuids))
        holding = MigHolding(ref.gpu.uuid, ref.profile.profile_id, ref.placement, owned=owned, uuid=uuid)
        if instance is not None:
            holding = replace(
                holding, gpu_instance_id=instance.gpu_instance_id, compute_instance_id=instance.compute_instance_id
            )
    request = result["request"].partition("/")[0]
    return PreparedDevice(request, result["pool"], result["device"], holding, (), admin, result.get("shareID"))


def _is_made(device: PreparedDevice) -> bool:
    """Whether a partition of ours is there, whole or half made."""
    holding = device.holding
    return isinstance(holding, MigHolding) and holding.owned and holding.gpu_instance_id is not None
