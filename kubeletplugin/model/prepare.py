"""Preparing and unpreparing claims of NVIDIA GPUs, decided on values.

The inventory must be current as to our own steps (`after_step`), and a record must stay in the checkpoint until its
instances are deleted: an instance that no record speaks of counts as an admin's, and is never touched.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from api.errors import Busy, ClaimError, HardwareError, PartitaError, Retryable
from api.names import CDI_CLAIM_CLASS, NVIDIA_CDI_VENDOR
from kubeletplugin.model.checkpoint import (
    Checkpoint,
    ClaimRecord,
    ClaimState,
    GpuHolding,
    Holding,
    MigHolding,
    PreparedDevice,
)
from kubeletplugin.model.claims import AnyClaim, AnyDevice, ClaimRequest
from kubeletplugin.model.inventory import Gpu, Inventory, MigInstance, MigProfile, Placement
from kubeletplugin.model.mig import admin_instances, find_device, find_instance, find_owner, is_of
from kubeletplugin.model.steps import (
    CreateMigInstance,
    DeleteMigInstance,
    DisableMig,
    EnableMig,
    HardwareStep,
    SetTimeSlice,
    after_step,
)

if TYPE_CHECKING:
    from api.device_config import DeviceConfig


@dataclass(frozen=True, slots=True)
class PreparePlan:
    """Where there are `steps`: write `record`, do them in order. Then write `complete(plan, results)` and the CDI file.

    Where `done`, there is nothing to do and nothing to write: `record` is the answer.
    """

    record: ClaimRecord
    steps: tuple[HardwareStep, ...] = ()

    @property
    def done(self) -> bool:
        return self.record.state is ClaimState.COMPLETED

    @property
    def is_delicate(self) -> bool:
        """Whether to plan once more on hardware that is read while its GPUs are held: what others do there meanwhile
        would make it wrong. All else is no more than a name for a GPU."""
        return bool(self.steps) or any(isinstance(device.holding, MigHolding) for device in self.record.devices)


@dataclass(frozen=True, slots=True)
class UndoPlan:
    """Give back what the claim holds, remove its CDI file, then remove the record.

    `steps` are by what the hardware was when it was last read; none: there is nothing to give back.
    """

    record: ClaimRecord
    steps: tuple[HardwareStep, ...]


@dataclass(frozen=True, slots=True)
class RecoveryPlan:
    """What a starting plugin does before it serves: `undo`, then `redo`, then `keep`."""

    undo: tuple[UndoPlan, ...] = ()
    """Claims whose preparation was interrupted in this boot; whoever still needs one asks for it again."""
    redo: tuple[PreparePlan, ...] = ()
    """Claims whose hardware a reboot took; carried out like any prepare, CDI file included."""
    keep: tuple[ClaimRecord, ...] = ()
    """Claims in order; their CDI files are written again where they are missing."""
    failed: tuple[tuple[ClaimRecord, PartitaError], ...] = ()
    """Claims that cannot be undone or made again now, each with the reason; their records stay."""


@dataclass(frozen=True, slots=True)
class _Wanted:
    device: AnyDevice
    time_slice: int | None
    """What the config of the device says."""


@dataclass(frozen=True, slots=True)
class _Claim:
    """The claim in hand and what everything else on the node looks like."""

    owner: AnyClaim
    inventory: Inventory
    checkpoint: Checkpoint

    @property
    def label(self) -> str:
        return self.owner.claim

    def others_on(self, gpu: Gpu) -> list[tuple[ClaimRecord, Holding]]:
        return [(record, h) for record, h in self.checkpoint.on_gpu(gpu.uuid) if record.uid != self.owner.uid]


def plan_prepare(request: ClaimRequest, inventory: Inventory, checkpoint: Checkpoint, boot_id: str) -> PreparePlan:
    """Raises ClaimError (a person must act) or Busy (a named claim, or an admin, holds what is asked for)."""
    wanted = [
        _Wanted(device, None if config is None else _read_time_slice(config))
        for device, config in zip(request.devices, request.configs, strict=True)
    ]
    record = checkpoint.get(request.uid)
    if record is not None:
        held, asked = {d.device for d in record.devices}, {d.device for d in request.devices}
        if held != asked:
            raise Busy(
                f"claim {request.claim} still holds {', '.join(sorted(held))} of an earlier allocation; "
                f"{', '.join(sorted(asked))} can be prepared once that is given back",
                (record.uid,),
            )
        if _is_in_place(record, inventory, boot_id):
            return PreparePlan(record)
    return _plan(_Claim(request, inventory, checkpoint), wanted, boot_id)


def complete(plan: PreparePlan, results: Sequence[MigInstance | None]) -> ClaimRecord:
    """The record to write once all steps are done; `results` are what the steps yielded, one each."""
    made: dict[tuple[str, Placement], MigInstance] = {}
    for step, result in zip(plan.steps, results, strict=True):
        if isinstance(step, CreateMigInstance):
            if result is None or result.uuid is None:
                raise HardwareError(f"{step} of claim {plan.record.claim} yielded no instance with a UUID")
            made[step.gpu_uuid, step.placement] = result
    devices = tuple(replace(device, holding=_with_made(device.holding, made)) for device in plan.record.devices)
    return replace(plan.record, state=ClaimState.COMPLETED, devices=devices)


def plan_unprepare(record: ClaimRecord, inventory: Inventory, checkpoint: Checkpoint) -> tuple[HardwareStep, ...]:
    """The steps that give back what a claim held; afterwards remove its CDI file, then its record.

    The GPUs of `gpus_with_instances` must have been read just now: what lies at a placement may be an admin's since.
    A GPU that is gone or lost gets no steps: nothing is left to give back. Steps of several plans for one GPU must not
    interleave. Raises Retryable while the GPU may be one of those that cannot be read: to forget the record would leave
    its instance to nobody.
    """
    steps: list[HardwareStep] = []
    touched: dict[str, Gpu] = {}
    for device in record.devices:
        holding = device.holding
        gpu = inventory.gpu(holding.gpu_uuid)
        if gpu is None and inventory.unreadable and isinstance(holding, MigHolding) and holding.owned:
            raise Retryable(f"claim {record.claim}: {inventory.unreadable[0]}; what it holds there is given back then")
        if gpu is None or gpu.lost or device.admin_access:
            continue
        if isinstance(holding, GpuHolding):
            if holding.time_slice:
                steps.append(SetTimeSlice(gpu.uuid, 0))
        elif isinstance(holding, MigHolding) and holding.owned:
            instance = find_instance(gpu, holding.profile_id, holding.placement)
            if instance is not None and is_of(holding, instance):
                steps.append(DeleteMigInstance(gpu.uuid, holding.profile_id, holding.placement))
            touched[gpu.uuid] = gpu
    steps.extend(DisableMig(uuid) for uuid, gpu in touched.items() if _may_leave_mig_mode(record, gpu, checkpoint))
    return tuple(steps)


def gpus_with_instances(record: ClaimRecord) -> frozenset[str]:
    """UUIDs of the GPUs on which we made instances for the claim, or were about to."""
    holdings = (device.holding for device in record.devices)
    return frozenset(h.gpu_uuid for h in holdings if isinstance(h, MigHolding) and h.owned)


def plan_recovery(checkpoint: Checkpoint, inventory: Inventory, boot_id: str) -> RecoveryPlan:
    """Undo what was interrupted, make again what a reboot took, keep the rest.

    A power cut may have taken the record of what was made for a claim, but not the intent, if the kubelet was told
    (`kubeletplugin.nvidia`). So what an earlier boot began is made again, too. Where nobody was told, the kubelet asks
    for it or gives it back, and if the claim is gone the sweep does.
    """
    undo: list[UndoPlan] = []
    redo: list[PreparePlan] = []
    failed: list[tuple[ClaimRecord, PartitaError]] = []
    begun = [r for r in checkpoint.records.values() if r.state is ClaimState.STARTED and r.boot_id != boot_id]
    for record in begun:
        checkpoint = checkpoint.without(record.uid)  # instances end with the boot: it owns none of those that are there
    for record in [r for r in checkpoint.records.values() if r.state is ClaimState.STARTED]:
        try:
            steps = plan_unprepare(record, inventory, checkpoint)
        except PartitaError as error:
            failed.append((record, error))
            continue
        for step in steps:
            inventory = after_step(inventory, step, None)
        checkpoint = checkpoint.without(record.uid)
        undo.append(UndoPlan(record, steps))
    completed = [record for record in checkpoint.records.values() if record.state is ClaimState.COMPLETED]
    for record in [*(record for record in completed if record.boot_id != boot_id), *begun]:
        try:
            plan = plan_again(record, inventory, checkpoint, boot_id)
        except PartitaError as error:
            if record.state is ClaimState.STARTED:
                undo.append(UndoPlan(record, ()))  # without UUIDs it would own what an admin makes at its placements
            else:
                failed.append((record, error))
            continue
        checkpoint = checkpoint.with_record(plan.record)
        redo.append(plan)
    keep = tuple(record for record in completed if record.boot_id == boot_id)
    return RecoveryPlan(tuple(undo), tuple(redo), keep, tuple(failed))


def plan_again(record: ClaimRecord, inventory: Inventory, checkpoint: Checkpoint, boot_id: str) -> PreparePlan:
    """Prepare a claim of an earlier boot from its record alone. Raises as `plan_prepare` does."""
    wanted = [
        _Wanted(device, device.holding.time_slice if isinstance(device.holding, GpuHolding) else None)
        for device in record.devices
    ]
    return _plan(_Claim(record, inventory, checkpoint), wanted, boot_id)


def _read_time_slice(config: "DeviceConfig") -> int | None:
    from api.device_config import GpuConfig  # see `kubeletplugin.model.claims.parse_config`

    sharing = config.sharing if isinstance(config, GpuConfig) else None
    return None if sharing is None else sharing.time_slice


def _is_in_place(record: ClaimRecord, inventory: Inventory, boot_id: str) -> bool:
    """Whether a record's result still holds: completed in this boot, and every instance is the one that it names."""
    if record.state is not ClaimState.COMPLETED or record.boot_id != boot_id:
        return False
    for device in record.devices:
        holding = device.holding
        gpu = inventory.gpu(holding.gpu_uuid)
        if gpu is None:
            return False
        if isinstance(holding, MigHolding) and holding.uuid is not None:
            instance = find_instance(gpu, holding.profile_id, holding.placement)
            if instance is None or instance.uuid != holding.uuid:
                return False
    return True


def _plan(claim: _Claim, wanted: Sequence[_Wanted], boot_id: str) -> PreparePlan:
    owner = claim.owner
    devices: list[PreparedDevice] = []
    gpus: dict[str, Gpu] = {}
    for want in wanted:
        device = want.device
        holding, gpu = _plan_device(claim, want)
        _check_own_overlap(claim, device, holding, devices)
        gpus[gpu.uuid] = gpu
        visible = not isinstance(holding, MigHolding) or holding.owned or holding.uuid is not None
        cdi_id = f"{NVIDIA_CDI_VENDOR}/{CDI_CLAIM_CLASS}={owner.uid}-{device.device}"
        devices.append(
            PreparedDevice(
                request=device.request,
                pool=device.pool,
                device=device.device,
                holding=holding,
                cdi_ids=(cdi_id,) if visible else (),
                admin_access=device.admin_access,
                share_id=device.share_id,
            )
        )
    record = ClaimRecord(
        owner.driver, owner.uid, owner.namespace, owner.name, ClaimState.STARTED, boot_id, tuple(devices)
    )
    return PreparePlan(record, _plan_steps(devices, gpus))


def _plan_device(claim: _Claim, want: _Wanted) -> tuple[Holding, Gpu]:
    device = want.device
    ref = find_device(claim.inventory, device.device)
    if ref is None and claim.inventory.unreadable:
        why = claim.inventory.unreadable[0]
        raise Retryable(f"claim {claim.label}: device {device.device} is not there now: {why}")
    if ref is None:
        raise ClaimError(
            claim.label,
            f"request {device.request}: device {device.device} of pool {device.pool} does not exist on this node any "
            "more; delete the pod, so that a new claim is allocated",
            reason="DeviceGone",
        )
    if ref.gpu.lost:
        raise ClaimError(claim.label, f"device {device.device}: GPU {ref.gpu.uuid} is lost", reason="DeviceLost")
    if ref.profile is None or ref.placement is None:
        if not device.admin_access:
            _check_whole_gpu(claim, device, ref.gpu)
        return GpuHolding(ref.gpu.uuid, None if device.admin_access else want.time_slice), ref.gpu
    return _plan_partition(claim, device, ref.gpu, ref.profile, ref.placement), ref.gpu


def _check_whole_gpu(claim: _Claim, device: AnyDevice, gpu: Gpu) -> None:
    for record, _ in claim.others_on(gpu):
        raise _held_by(claim, device, record)
    if admin_instances(gpu, claim.checkpoint):
        raise Busy(f"claim {claim.label}: device {device.device} carries MIG instances that an admin made")
    if gpu.mig is not None and gpu.mig.enabled and gpu.mig.mode_change_needs_reset:
        raise ClaimError(
            claim.label,
            f"device {device.device}: the GPU is in MIG mode, which only an admin can change "
            f"({gpu.architecture}: reset)",
            reason="DeviceGone",
        )


def _plan_partition(
    claim: _Claim, device: AnyDevice, gpu: Gpu, profile: MigProfile, placement: Placement
) -> MigHolding:
    existing = find_instance(gpu, profile.profile_id, placement)
    adopted = MigHolding(gpu.uuid, profile.profile_id, placement, owned=False)
    if existing is not None:
        adopted = _with_instance(adopted, existing)
    if device.admin_access:
        return adopted
    for record, holding in claim.others_on(gpu):
        if not isinstance(holding, MigHolding) or holding.placement.overlaps(placement):
            raise _held_by(claim, device, record)
    if existing is not None and find_owner(gpu.uuid, existing, claim.checkpoint) is None:
        if existing.foreign or existing.uuid is None:
            raise Busy(f"claim {claim.label}: the place of device {device.device} has a layout that an admin made")
        return adopted
    if any(admin.placement.overlaps(placement) for admin in admin_instances(gpu, claim.checkpoint)):
        raise Busy(f"claim {claim.label}: the place of device {device.device} has a MIG instance that an admin made")
    if gpu.mig is not None and not gpu.mig.enabled and gpu.mig.mode_change_needs_reset:
        raise ClaimError(
            claim.label,
            f"device {device.device}: the GPU left MIG mode, which only an admin can change "
            f"({gpu.architecture}: reset)",
            reason="DeviceGone",
        )
    return MigHolding(gpu.uuid, profile.profile_id, placement, owned=True)


def _held_by(claim: _Claim, device: AnyDevice, record: ClaimRecord) -> Busy:
    message = f"claim {claim.label}: device {device.device} overlaps what claim {record.claim} holds on this node"
    return Busy(message, (record.uid,))


def _check_own_overlap(claim: _Claim, device: AnyDevice, holding: Holding, others: Sequence[PreparedDevice]) -> None:
    for other in others:
        if other.admin_access or device.admin_access or other.holding.gpu_uuid != holding.gpu_uuid:
            continue
        if (
            not isinstance(other.holding, MigHolding)
            or not isinstance(holding, MigHolding)
            or other.holding.placement.overlaps(holding.placement)
        ):
            message = f"its own devices {other.device} and {device.device} overlap"
            raise ClaimError(claim.label, message, reason="InvalidAllocation")


def _plan_steps(devices: Sequence[PreparedDevice], gpus: dict[str, Gpu]) -> tuple[HardwareStep, ...]:
    """By GPU in order of bus id, mode first, then instances by start."""
    steps: list[HardwareStep] = []
    for gpu in sorted(gpus.values(), key=lambda gpu: gpu.pci_bus_id):
        holdings = [d.holding for d in devices if d.holding.gpu_uuid == gpu.uuid and not d.admin_access]
        partitions = [h for h in holdings if isinstance(h, MigHolding) and h.owned]
        may_switch = gpu.mig is not None and not gpu.mig.mode_change_needs_reset
        if partitions and may_switch:
            steps.append(
                EnableMig(gpu.uuid)
            )  # also where it is on: another claim's unprepare may be about to turn it off
        for partition in sorted(partitions, key=lambda h: h.placement):
            steps.append(CreateMigInstance(gpu.uuid, partition.profile_id, partition.placement))
        for holding in holdings:
            if isinstance(holding, GpuHolding):
                if may_switch and gpu.mig is not None and gpu.mig.enabled:
                    steps.append(DisableMig(gpu.uuid))
                if holding.time_slice is not None:
                    steps.append(SetTimeSlice(gpu.uuid, holding.time_slice))
    return tuple(steps)


def _with_made(holding: Holding, made: dict[tuple[str, Placement], MigInstance]) -> Holding:
    if isinstance(holding, MigHolding) and holding.owned:
        return _with_instance(holding, made[holding.gpu_uuid, holding.placement])
    return holding


def _with_instance(holding: MigHolding, instance: MigInstance) -> MigHolding:
    return replace(
        holding,
        gpu_instance_id=instance.gpu_instance_id,
        compute_instance_id=instance.compute_instance_id,
        uuid=instance.uuid,
    )


def _may_leave_mig_mode(record: ClaimRecord, gpu: Gpu, checkpoint: Checkpoint) -> bool:
    """Whether nothing but this claim's partitions is on the GPU, and its mode is ours to change."""
    if gpu.mig is None or gpu.mig.mode_change_needs_reset:
        return False
    others = any(other.uid != record.uid for other, _ in checkpoint.on_gpu(gpu.uuid))
    return not others and not admin_instances(gpu, checkpoint)
