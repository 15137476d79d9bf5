"""Hardware steps: what a plan asks the executor to do, in order. Each is idempotent when it is run again."""

from dataclasses import dataclass

from kubeletplugin.model.inventory import Placement


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
