"""Bringing a whole node of AMD GPUs into the modes that its administrator asks for, decided on values."""

from collections.abc import Sequence

from api.errors import Busy, InvalidObject, Retryable
from kubeletplugin.model.amd_partitions import AmdGpu, AmdInventory, Mode, held_partitions
from kubeletplugin.model.amd_prepare import AmdStep, SetComputeMode, plan_reload
from kubeletplugin.model.checkpoint import Checkpoint


def plan_target(inventory: AmdInventory, checkpoint: Checkpoint, target: Sequence[str | None]) -> tuple[AmdStep, ...]:
    """The steps; none where the node is there already. `target`: `cpx_nps4` by GPU in order, None: as it is.

    Raises InvalidObject where the hardware cannot be brought there, Busy where a claim is in the way, Retryable while
    not every GPU can be read: which one the target means by its index is not known then.
    """
    if inventory.unreadable:
        raise Retryable("; ".join(inventory.unreadable))
    if len(target) != len(inventory.gpus):
        raise InvalidObject(f"the target has modes for {len(target)} GPUs; the node has {len(inventory.gpus)}")
    wanted = {
        gpu.pci_address: _find_mode(gpu, profile)
        for gpu, profile in zip(inventory.gpus, target, strict=True)
        if profile is not None
    }
    changed = [gpu for gpu in inventory.gpus if wanted.get(gpu.pci_address, gpu.mode) != gpu.mode]
    if not changed:
        return ()
    reloaded = [gpu for gpu in changed if gpu.mode and gpu.mode.memory != wanted[gpu.pci_address].memory]
    if reloaded:
        _check_memory(inventory, wanted)
    disturbed = {gpu.pci_address for gpu in (inventory.gpus if reloaded else changed)}
    for held in held_partitions(checkpoint):
        if held.holding.gpu_uuid in disturbed:
            raise Busy(f"claim {held.record.claim} holds {held.device.device}, which is to be changed")
    if not reloaded:
        return tuple(SetComputeMode(gpu.pci_address, wanted[gpu.pci_address]) for gpu in changed)
    memory = wanted[reloaded[0].pci_address].memory
    return (*plan_reload(reloaded, memory), *(SetComputeMode(pci, mode) for pci, mode in sorted(wanted.items())))


def _find_mode(gpu: AmdGpu, profile: str) -> Mode:
    mode = next((offer.mode for offer in gpu.offers if offer.mode.profile == profile), None)
    if mode is None:
        offered = ", ".join(offer.mode.profile for offer in gpu.offers) or "none, it cannot be partitioned"
        raise InvalidObject(f"GPU {gpu.pci_address} has no mode {profile}; it has: {offered}")
    return mode


def _check_memory(inventory: AmdInventory, wanted: dict[str, Mode]) -> None:
    """A reload gives every GPU of a hive its memory mode, and resets the compute mode of all: none can be left out."""
    left_out = [gpu.pci_address for gpu in inventory.gpus if gpu.mode is not None and gpu.pci_address not in wanted]
    if left_out:
        raise InvalidObject(
            f"GPU {left_out[0]} is to be skipped, but a memory mode can only be changed for all GPUs of the node"
        )
