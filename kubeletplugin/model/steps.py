"""Hardware steps: what a plan asks the executor to do, in order. Each is idempotent when it is run again."""

from dataclasses import dataclass, replace
from typing import assert_never

from kubeletplugin.model.inventory import Inventory, MigInstance, Placement


@dataclass(frozen=True, slots=True)
class EnableMig:
    """Turn MIG mode on. Done already is success."""

    gpu_uuid: str


@dataclass(frozen=True, slots=True)
class DisableMig:
    """Turn MIG mode off where no instance is left. Off already, or instances present, is success."""

    gpu_uuid: str


@dataclass(frozen=True, slots=True)
class CreateMigInstance:
    """Create a GPU instance at `placement` and the one compute instance that spans it; yields a `MigInstance`.

    A GPU instance of this profile at this placement without compute instance is completed.
    """

    gpu_uuid: str
    profile_id: int
    placement: Placement


@dataclass(frozen=True, slots=True)
class DeleteMigInstance:
    """Destroy the GPU instance of exactly this profile and placement, its compute instances first. Absent: done."""

    gpu_uuid: str
    profile_id: int
    placement: Placement


@dataclass(frozen=True, slots=True)
class SetTimeSlice:
    """Set the time-slice of a full GPU: 0 default, 1 short, 2 medium, 3 long."""

    gpu_uuid: str
    interval: int


HardwareStep = EnableMig | DisableMig | CreateMigInstance | DeleteMigInstance | SetTimeSlice


def after_step(inventory: Inventory, step: HardwareStep, result: MigInstance | None) -> Inventory:
    """The inventory once `step` has succeeded with `result`, so that nobody has to read all hardware again."""
    gpu = inventory.gpu(step.gpu_uuid)
    if gpu is None or gpu.mig is None:
        return inventory
    mig = gpu.mig
    match step:
        case EnableMig():
            mig = replace(mig, enabled=True)
        case DisableMig():
            mig = mig if mig.instances else replace(mig, enabled=False)
        case CreateMigInstance() | DeleteMigInstance():
            others = tuple(i for i in mig.instances if i.profile_id != step.profile_id or i.placement != step.placement)
            mig = replace(mig, instances=(*others, result) if result is not None else others)
        case SetTimeSlice():
            return inventory
        case _:
            assert_never(step)
    return replace(inventory, gpus=tuple(replace(g, mig=mig) if g is gpu else g for g in inventory.gpus))
