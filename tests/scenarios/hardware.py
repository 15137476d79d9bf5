"""NVIDIA hardware as a value: applying a step gives the next value, with the library's rules enforced.

Profile tables: A100-40 and H100-80 (8 units), A30, RTX PRO 6000 (12 units); MIG User Guide, nvidia-smi listings.
"""

from dataclasses import dataclass, replace

from kubeletplugin.hardware.backend import DeviceBusy, PlacementOccupied
from kubeletplugin.model.inventory import Gpu, Inventory, Mig, MigInstance, MigProfile, Placement
from kubeletplugin.model.steps import (
    CreateMigInstance,
    DeleteMigInstance,
    DisableMig,
    EnableMig,
    HardwareStep,
    after_step,
)

GIB = 1024**3
MIB = 1024**2

Row = tuple[str, int, int, int, tuple[int, int, int, int, int, int], int, tuple[int, ...]]
"""Name, profile id, most instances, MiB, (SM, CE, DEC, ENC, JPEG, OFA), size, starts."""

_EIGHT = {
    19: (1, (0, 1, 2, 3, 4, 5, 6)),
    20: (1, (0, 1, 2, 3, 4, 5, 6)),
    15: (2, (0, 2, 4, 6)),
    14: (2, (0, 2, 4)),
    9: (4, (0, 4)),
    5: (4, (0,)),
    0: (8, (0,)),
}
H100_ROWS: tuple[Row, ...] = (
    ("1g.10gb", 19, 7, 9984, (16, 1, 1, 0, 1, 0), *_EIGHT[19]),
    ("1g.10gb+me", 20, 1, 9984, (16, 1, 1, 0, 1, 1), *_EIGHT[20]),
    ("1g.20gb", 15, 4, 20096, (26, 1, 1, 0, 1, 0), *_EIGHT[15]),
    ("2g.20gb", 14, 3, 20096, (32, 2, 2, 0, 2, 0), *_EIGHT[14]),
    ("3g.40gb", 9, 2, 40448, (60, 3, 3, 0, 3, 0), *_EIGHT[9]),
    ("4g.40gb", 5, 1, 40448, (64, 4, 4, 0, 4, 0), *_EIGHT[5]),
    ("7g.80gb", 0, 1, 81152, (132, 8, 7, 0, 7, 1), *_EIGHT[0]),
)
A100_ROWS: tuple[Row, ...] = (
    ("1g.5gb", 19, 7, 4864, (14, 1, 0, 0, 0, 0), *_EIGHT[19]),
    ("1g.5gb+me", 20, 1, 4864, (14, 1, 1, 0, 1, 1), *_EIGHT[20]),
    ("1g.10gb", 15, 4, 9856, (14, 1, 1, 0, 0, 0), *_EIGHT[15]),
    ("2g.10gb", 14, 3, 9856, (28, 2, 1, 0, 0, 0), *_EIGHT[14]),
    ("3g.20gb", 9, 2, 19968, (42, 3, 2, 0, 0, 0), *_EIGHT[9]),
    ("4g.20gb", 5, 1, 19968, (56, 4, 2, 0, 0, 0), *_EIGHT[5]),
    ("7g.40gb", 0, 1, 40192, (98, 7, 5, 0, 1, 1), *_EIGHT[0]),
)
A30_ROWS: tuple[Row, ...] = (
    ("1g.6gb", 14, 4, 5952, (14, 1, 1, 0, 0, 0), 1, (0, 1, 2, 3)),
    ("2g.12gb", 5, 2, 11968, (28, 2, 2, 0, 0, 0), 2, (0, 2)),
    ("4g.24gb", 0, 1, 24000, (56, 4, 4, 0, 1, 1), 4, (0,)),
)
RTX_ROWS: tuple[Row, ...] = (
    ("1g.24gb", 14, 4, 23680, (46, 1, 1, 1, 1, 0), 3, (0, 3, 6, 9)),
    ("1g.24gb+me", 21, 1, 23680, (46, 1, 1, 1, 1, 1), 3, (0, 3, 6, 9)),
    ("1g.24gb-me", 67, 4, 23680, (46, 1, 0, 0, 0, 0), 3, (0, 3, 6, 9)),
    ("1g.24gb+me.all", 65, 1, 23680, (46, 1, 4, 4, 4, 1), 3, (0, 3, 6, 9)),
    ("2g.48gb", 5, 2, 48512, (94, 2, 2, 2, 2, 0), 6, (0, 6)),
    ("4g.96gb", 0, 1, 97280, (188, 4, 4, 4, 4, 1), 12, (0,)),
)


def profiles(rows: tuple[Row, ...]) -> tuple[MigProfile, ...]:
    return tuple(
        MigProfile(name, number, most, mib * MIB, *amounts, placements=tuple(Placement(s, size) for s in starts))
        for name, number, most, mib, amounts, size, starts in rows
    )


H100, A100, A30, RTX = profiles(H100_ROWS), profiles(A100_ROWS), profiles(A30_ROWS), profiles(RTX_ROWS)


def h100(minor: int = 0, *, enabled: bool = False, instances: tuple[MigInstance, ...] = ()) -> Gpu:
    """Hopper: MIG mode can be switched at any time."""
    return _gpu(minor, "NVIDIA H100 80GB HBM3", "Hopper", "9.0", 81559 * MIB, Mig(enabled, False, H100, instances))


def a100(minor: int = 0, *, enabled: bool = False, instances: tuple[MigInstance, ...] = ()) -> Gpu:
    """Ampere: a change of MIG mode needs a reset."""
    return _gpu(minor, "NVIDIA A100-SXM4-40GB", "Ampere", "8.0", 40960 * MIB, Mig(enabled, True, A100, instances))


def a30(minor: int = 0, *, enabled: bool = True) -> Gpu:
    return _gpu(minor, "NVIDIA A30", "Ampere", "8.0", 24576 * MIB, Mig(enabled, True, A30))


def rtx(minor: int = 0, *, enabled: bool = False, instances: tuple[MigInstance, ...] = ()) -> Gpu:
    name = "NVIDIA RTX PRO 6000 Blackwell Server Edition"
    return _gpu(minor, name, "Blackwell", "12.0", 97887 * MIB, Mig(enabled, False, RTX, instances))


def l40s(minor: int = 0) -> Gpu:
    """Without MIG."""
    return _gpu(minor, "NVIDIA L40S", "Ada Lovelace", "8.9", 46068 * MIB, None)


def _gpu(minor: int, name: str, architecture: str, capability: str, memory_bytes: int, mig: Mig | None) -> Gpu:
    return Gpu(
        minor=minor,
        uuid=f"GPU-{minor:08x}-0000-0000-0000-000000000000",
        index=minor,
        pci_bus_id=f"0000:{minor + 16:02x}:00.0",
        product_name=name,
        brand="Nvidia",
        architecture=architecture,
        cuda_compute_capability=capability,
        memory_bytes=memory_bytes,
        pcie_root=f"pci0000:{minor + 15:02x}",
        numa_node=minor // 4,
        addressing_mode="None",
        mig=mig,
    )


def inventory(*gpus: Gpu) -> Inventory:
    return Inventory(driver_version="570.158.01", cuda_driver_version="12.8", gpus=gpus)


@dataclass(frozen=True)
class Hardware:
    """All GPUs of a node. `made` counts creations, so that every instance gets a UUID of its own."""

    inventory: Inventory
    made: int = 0

    def apply(self, step: HardwareStep) -> tuple["Hardware", MigInstance | None]:
        """One step done to its end. Raises the back-end's errors."""
        match step:
            case CreateMigInstance():
                begun = self.begin_creation(step)
                return begun._finish_creation(step)
            case DisableMig() if self._mig(step.gpu_uuid).instances:
                return self, None
            case _:
                return replace(self, inventory=after_step(self.inventory, step, None)), None

    def begin_creation(self, step: CreateMigInstance) -> "Hardware":
        """Only the GPU instance, as a program leaves it that dies before it made the compute instance."""
        mig = self._mig(step.gpu_uuid)
        if any(i.placement == step.placement and i.profile_id == step.profile_id for i in mig.instances):
            return self
        if not mig.enabled:
            raise PlacementOccupied(f"{step}: MIG mode is off")
        if any(i.placement.overlaps(step.placement) for i in mig.instances):
            raise PlacementOccupied(f"{step}: insufficient resources")
        profile = next(profile for profile in mig.profiles if profile.profile_id == step.profile_id)
        if step.placement not in profile.placements:
            raise PlacementOccupied(f"{step}: no such placement")
        if sum(i.profile_id == step.profile_id for i in mig.instances) >= profile.max_instances:
            raise PlacementOccupied(f"{step}: no more of this profile")
        taken = {i.gpu_instance_id for i in mig.instances}
        number = next(n for n in range(1, 100) if n not in taken)
        bare = MigInstance(number, step.profile_id, step.placement)
        return replace(self, inventory=after_step(self.inventory, step, bare))

    def begin_deletion(self, step: DeleteMigInstance) -> "Hardware":
        """Only the compute instance gone."""
        for instance in self._mig(step.gpu_uuid).instances:
            if instance.placement == step.placement and instance.profile_id == step.profile_id:
                bare = replace(instance, compute_instance_id=None, uuid=None)
                create = CreateMigInstance(step.gpu_uuid, step.profile_id, step.placement)
                return replace(self, inventory=after_step(self.inventory, create, bare))
        return self

    def _finish_creation(self, step: CreateMigInstance) -> tuple["Hardware", MigInstance]:
        bare = next(
            i
            for i in self._mig(step.gpu_uuid).instances
            if i.placement == step.placement and i.profile_id == step.profile_id
        )
        if bare.foreign:
            raise DeviceBusy(f"{step}: a foreign layout is there")
        if bare.uuid is not None:
            return self, bare
        whole = replace(bare, compute_instance_id=0, uuid=f"MIG-{self.made + 1:08x}-0000-0000-0000-000000000000")
        return Hardware(after_step(self.inventory, step, whole), self.made + 1), whole

    def rebooted(self) -> "Hardware":
        """Instances are gone, and so is a MIG mode that is not kept in the GPU (Ampere keeps it)."""
        gpus = []
        for gpu in self.inventory.gpus:
            mig = gpu.mig
            if mig is not None:
                mig = replace(mig, instances=(), enabled=mig.enabled and mig.mode_change_needs_reset)
            gpus.append(replace(gpu, mig=mig))
        return replace(self, inventory=replace(self.inventory, gpus=tuple(gpus)))

    def with_admin_instance(
        self, gpu_uuid: str, profile_id: int, placement: Placement
    ) -> tuple["Hardware", MigInstance]:
        """As an admin's `nvidia-smi mig -cgi ... -C`."""
        on, _ = self.apply(EnableMig(gpu_uuid))
        hardware, instance = on.apply(CreateMigInstance(gpu_uuid, profile_id, placement))
        assert instance is not None
        return hardware, instance

    def instances(self) -> dict[tuple[str, Placement], MigInstance]:
        return {
            (gpu.uuid, instance.placement): instance
            for gpu in self.inventory.gpus
            if gpu.mig is not None
            for instance in gpu.mig.instances
        }

    def _mig(self, gpu_uuid: str) -> Mig:
        gpu = self.inventory.gpu(gpu_uuid)
        assert gpu is not None
        assert gpu.mig is not None
        return gpu.mig
