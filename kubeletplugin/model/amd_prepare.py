"""Preparing claims of AMD GPUs, decided on values: which partition a claim gets, and the changes of mode it needs.

Counters keep modes apart in the scheduler (`amd_devices`); what slips through between a change and the slices that
show it is refused here. Giving back changes nothing on the hardware: the next claim decides.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from api.errors import Busy, ClaimError
from api.names import AMD_CDI_VENDOR, CDI_CLAIM_CLASS
from kubeletplugin.model.amd_partitions import (
    AmdGpu,
    AmdInventory,
    DeviceRef,
    Held,
    Mode,
    held_partitions,
    parse_device_name,
)
from kubeletplugin.model.checkpoint import Checkpoint, ClaimRecord, ClaimState, PartitionHolding, PreparedDevice
from kubeletplugin.model.claims import AnyClaim, AnyDevice, ClaimRequest


@dataclass(frozen=True, slots=True)
class SetMemoryMode:
    """Ask for a memory mode for the hive of a GPU; it takes effect at the next driver load. In it already: done."""

    gpu_uuid: str
    memory_mode: str


@dataclass(frozen=True, slots=True)
class ReloadDriver:
    """Load the driver again, unless all of `gpus` are in `memory_mode`. Every GPU of the node must be free."""

    gpus: tuple[str, ...]
    memory_mode: str


@dataclass(frozen=True, slots=True)
class SetComputeMode:
    """Bring a GPU into a mode whose memory mode it is in. In it already: done."""

    gpu_uuid: str
    mode: Mode


AmdStep = SetMemoryMode | ReloadDriver | SetComputeMode


@dataclass(frozen=True, slots=True)
class AmdPreparePlan:
    """Where there are `steps`: write `record`, do them in order, and read the inventory again.

    Then write `complete_amd(plan)`, and the CDI file.

    Where `done`, there is nothing to do and nothing to write: `record` is the answer.
    """

    record: ClaimRecord
    steps: tuple[AmdStep, ...] = ()

    @property
    def done(self) -> bool:
        return self.record.state is ClaimState.COMPLETED


@dataclass(frozen=True, slots=True)
class _Wanted:
    device: AnyDevice
    slot: int | None
    """The partition that an earlier attempt gave."""


@dataclass(frozen=True, slots=True)
class _Claim:
    """The claim in hand, and what everybody else holds."""

    owner: AnyClaim
    inventory: AmdInventory
    others: tuple[Held, ...]
    boot_id: str
    on_claim: bool

    @property
    def label(self) -> str:
        return self.owner.claim

    def fault(self, message: str, reason: str) -> ClaimError:
        return ClaimError(self.label, message, reason=reason)


def plan_amd_prepare(
    request: ClaimRequest, inventory: AmdInventory, checkpoint: Checkpoint, boot_id: str, *, on_claim: bool
) -> AmdPreparePlan:
    """Raises ClaimError (a person must act) or Busy (a named claim holds what is asked for, or its mode)."""
    record = checkpoint.get(request.uid)
    if record is not None:
        asked = sorted(_key(device) for device in request.devices)
        if asked != sorted(_key(device) for device in record.devices):
            raise Busy(
                f"claim {request.claim} still holds {', '.join(d.device for d in record.devices)} of an earlier "
                "allocation; what it asks for now can be prepared once that is given back"
            )
        return plan_amd_again(record, inventory, checkpoint, boot_id, on_claim=on_claim)
    wanted = [_Wanted(device, None) for device in request.devices]
    others = tuple(held_partitions(checkpoint))
    return _plan(_Claim(request, inventory, others, boot_id, on_claim), wanted)


def plan_amd_again(
    record: ClaimRecord, inventory: AmdInventory, checkpoint: Checkpoint, boot_id: str, *, on_claim: bool
) -> AmdPreparePlan:
    """Finish a claim that was interrupted, or bring its partitions back after a reboot, from its record alone."""
    is_current = record.state is ClaimState.COMPLETED and record.boot_id == boot_id
    if is_current and all(_is_in_place(device, inventory) for device in record.devices):
        return AmdPreparePlan(record)
    wanted = [
        _Wanted(device, device.holding.slot if isinstance(device.holding, PartitionHolding) else None)
        for device in record.devices
    ]
    others = tuple(held_partitions(checkpoint, without=(record.uid,)))
    return _plan(_Claim(record, inventory, others, boot_id, on_claim), wanted)


def complete_amd(plan: AmdPreparePlan) -> ClaimRecord:
    """The record to write once all steps are done, before the CDI file."""
    return replace(plan.record, state=ClaimState.COMPLETED)


def unfinished_claims(checkpoint: Checkpoint, inventory: AmdInventory, boot_id: str) -> tuple[ClaimRecord, ...]:
    """What a start of the program finds to do again, with `plan_amd_again`: interrupted, or of an earlier boot."""
    return tuple(
        record
        for record in checkpoint.records.values()
        if record.state is ClaimState.STARTED
        or record.boot_id != boot_id
        or not all(_is_in_place(device, inventory) for device in record.devices)
    )


def plan_reload(gpus: Sequence[AmdGpu], memory_mode: str) -> tuple[AmdStep, ...]:
    """Bring these GPUs into another memory mode: asked for once per hive."""
    hives = {gpu.hive_id or gpu.pci_address: gpu.pci_address for gpu in reversed(gpus)}
    return (
        *(SetMemoryMode(pci, memory_mode) for pci in sorted(hives.values())),
        ReloadDriver(tuple(gpu.pci_address for gpu in gpus), memory_mode),
    )


def _key(device: AnyDevice) -> tuple[str, str, str, str]:
    return device.request, device.pool, device.device, device.share_id or ""


def _is_in_place(device: PreparedDevice, inventory: AmdInventory) -> bool:
    holding = device.holding
    gpu = inventory.gpu(holding.gpu_uuid)
    if gpu is None or not isinstance(holding, PartitionHolding):
        return False
    mode = gpu.mode and (gpu.mode.compute, gpu.mode.memory)
    return (mode or (None, None)) == (holding.compute_mode, holding.memory_mode)


def _plan(claim: _Claim, wanted: Sequence[_Wanted]) -> AmdPreparePlan:
    owner = claim.owner
    devices: list[PreparedDevice] = []
    changes: dict[str, Mode] = {}
    for want in wanted:
        gpu, ref = _find(claim, want.device)
        if ref.mode is not None and ref.mode != gpu.mode:
            _check_change(claim, want.device, gpu, ref.mode)
            changes[gpu.pci_address] = ref.mode
        slot = _choose_slot(claim, want, gpu, ref, devices)
        devices.append(_prepared(claim, want.device, gpu, ref, slot))
    _check_own_modes(claim, devices)
    record = ClaimRecord(
        owner.driver, owner.uid, owner.namespace, owner.name, ClaimState.STARTED, claim.boot_id, tuple(devices)
    )
    return AmdPreparePlan(record, _plan_steps(claim, devices, changes))


def _prepared(claim: _Claim, device: AnyDevice, gpu: AmdGpu, ref: DeviceRef, slot: int) -> PreparedDevice:
    compute, memory = (ref.mode.compute, ref.mode.memory) if ref.mode else (None, None)
    return PreparedDevice(
        request=device.request,
        pool=device.pool,
        device=device.device,
        holding=PartitionHolding(gpu.pci_address, compute, memory, slot),
        cdi_ids=(f"{AMD_CDI_VENDOR}/{CDI_CLAIM_CLASS}={claim.owner.uid}-{device.device}-{slot}",),
        admin_access=device.admin_access,
        share_id=device.share_id,
    )


def _find(claim: _Claim, device: AnyDevice) -> tuple[AmdGpu, DeviceRef]:
    ref = parse_device_name(device.device)
    gpu = claim.inventory.gpu(ref.pci_address) if ref else None
    where = f"request {device.request}: device {device.device} of pool {device.pool}"
    if ref is None or gpu is None:
        raise claim.fault(
            f"{where} does not exist on this node, or cannot be read now: "
            + ("; ".join(claim.inventory.unreadable) or "every GPU of the node answers, this one is gone"),
            "DeviceGone",
        )
    if (ref.mode is None) != (gpu.mode is None) or (ref.mode is not None and not gpu.partitions_in(ref.mode)):
        offered = ", ".join(offer.mode.profile for offer in gpu.offers) or "none"
        raise claim.fault(f"{where}: the GPU has no such mode; it offers {offered}", "ModeNotOffered")
    return gpu, ref


def _check_change(claim: _Claim, device: AnyDevice, gpu: AmdGpu, mode: Mode) -> None:
    """Whether the GPU may be brought into another mode now."""
    now = gpu.mode.profile if gpu.mode else "none"
    if device.admin_access:
        raise claim.fault(f"device {device.device}: the GPU is in {now}; admin access never changes a mode", "ModeGone")
    if not claim.on_claim:
        raise claim.fault(
            f"device {device.device}: the GPU is in {now}, and this node does not change modes for claims; "
            "delete the pod, so that a new claim is allocated",
            "ModeGone",
        )
    changes_memory = gpu.mode is not None and gpu.mode.memory != mode.memory
    for other in claim.others:
        if other.holding.gpu_uuid == gpu.pci_address and other.mode != mode:
            raise _held_in_other_mode(claim, device, other)
        if changes_memory and not _awaits_reload(other, mode, claim.boot_id):
            raise Busy(
                f"claim {claim.label}: device {device.device} needs memory mode {mode.memory}, which takes a reload of "
                f"the driver, but claim {other.record.claim} holds {other.device.device} on this node"
            )


def _awaits_reload(other: Held, mode: Mode, boot_id: str) -> bool:
    """Another claim that needs the same reload is not disturbed: it has not got its partition in this boot yet."""
    is_waiting = other.record.state is ClaimState.STARTED or other.record.boot_id != boot_id
    return is_waiting and other.mode is not None and other.mode.memory == mode.memory


def _held_in_other_mode(claim: _Claim, device: AnyDevice, other: Held) -> Busy:
    held = other.mode.profile if other.mode else "none"
    return Busy(
        f"claim {claim.label}: device {device.device} cannot be had while claim {other.record.claim} holds a partition "
        f"of the same GPU in mode {held}"
    )


def _choose_slot(claim: _Claim, want: _Wanted, gpu: AmdGpu, ref: DeviceRef, chosen: Sequence[PreparedDevice]) -> int:
    count = gpu.partitions_in(ref.mode) if ref.mode else 1
    fixed = want.slot if ref.slot is None else ref.slot
    if count == 1:
        fixed = 0
    if fixed is not None and fixed >= count:
        raise claim.fault(f"device {want.device.device}: {ref.mode} has {count} partitions only", "DeviceGone")
    if want.device.admin_access:
        return fixed or 0
    taken: dict[int, str] = {}
    for other in claim.others:
        if other.holding.gpu_uuid == gpu.pci_address:
            if other.mode != ref.mode:
                raise _held_in_other_mode(claim, want.device, other)
            taken[other.holding.slot] = f"claim {other.record.claim}"
    for device in chosen:
        if isinstance(device.holding, PartitionHolding) and device.holding.gpu_uuid == gpu.pci_address:
            taken[device.holding.slot] = f"its own device {device.device}"
    if fixed is not None and fixed not in taken:
        return fixed
    free = [] if fixed is not None else [slot for slot in range(count) if slot not in taken]
    if not free:
        holders = taken[fixed] if fixed is not None else ", ".join(sorted(set(taken.values())))
        raise Busy(f"claim {claim.label}: no partition of device {want.device.device} is free; held by {holders}")
    return free[-1]  # partitions that are devices of their own are taken from the other end


def _check_own_modes(claim: _Claim, devices: Sequence[PreparedDevice]) -> None:
    """One claim cannot have two modes of one GPU, nor two memory modes that both need a reload."""
    held = [device.holding for device in devices if isinstance(device.holding, PartitionHolding)]
    by_gpu: dict[str, PartitionHolding] = {}
    for holding in held:
        first = by_gpu.setdefault(holding.gpu_uuid, holding)
        if (first.compute_mode, first.memory_mode) != (holding.compute_mode, holding.memory_mode):
            raise claim.fault(f"its devices need two modes of GPU {holding.gpu_uuid}", "InvalidAllocation")
    memory = {h.memory_mode for h in held if h.memory_mode is not None}
    if len(memory) > 1:
        raise claim.fault(f"its devices need memory modes {', '.join(sorted(memory))} at once", "InvalidAllocation")


def _plan_steps(claim: _Claim, devices: Sequence[PreparedDevice], changes: dict[str, Mode]) -> tuple[AmdStep, ...]:
    """Memory before compute: a compute change leaves handles open that make the reload fail."""
    steps: list[AmdStep] = []
    gpus = [gpu for gpu in claim.inventory.gpus if gpu.pci_address in changes]
    reloaded = [gpu for gpu in gpus if gpu.mode and gpu.mode.memory != changes[gpu.pci_address].memory]
    if reloaded:
        memory = changes[reloaded[0].pci_address].memory
        steps += plan_reload(reloaded, memory)
        # The reload resets every GPU, those of this claim too that were in their mode before.
        changes = changes | {
            d.holding.gpu_uuid: Mode(d.holding.compute_mode, d.holding.memory_mode)
            for d in devices
            if isinstance(d.holding, PartitionHolding) and d.holding.compute_mode and d.holding.memory_mode
        }
    steps += [SetComputeMode(pci, mode) for pci, mode in sorted(changes.items())]
    return tuple(steps)
