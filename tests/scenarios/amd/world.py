"""A node with AMD GPUs, a scheduler that knows only published slices, and claims: all as values, driven by hand.

The hardware follows amdgpu's rules; the scheduler follows those of k8s.io/dynamic-resource-allocation for counters,
consumable capacity and exclusive devices.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from api.errors import Busy, ClaimError
from api.quantity import parse_quantity
from kubeletplugin.model.amd_devices import build_amd_devices
from kubeletplugin.model.amd_partitions import AmdGpu, AmdInventory, Mode, ModeOffer, Partition, held_partitions
from kubeletplugin.model.amd_prepare import (
    AmdStep,
    ReloadDriver,
    SetComputeMode,
    SetMemoryMode,
    complete_amd,
    plan_amd_again,
    plan_amd_prepare,
    unfinished_claims,
)
from kubeletplugin.model.checkpoint import Checkpoint, ClaimState
from kubeletplugin.model.claims import AllocatedDevice, ClaimRequest
from kubeletplugin.model.devices import ApiDevice, DeviceSet

GIB = 1 << 30
MI300X = (("SPX", 1, 1), ("DPX", 1, 2), ("QPX", 1, 4), ("CPX", 1, 8), ("DPX", 2, 2), ("QPX", 4, 4), ("CPX", 4, 8))
AUTOMATIC = {"NPS1": "SPX", "NPS2": "DPX", "NPS4": "CPX"}


class Killed(Exception):
    """The program ended here."""


def build_gpu(number: int, mode: Mode | None = None, *, can_partition: bool = True) -> AmdGpu:
    offers = tuple(ModeOffer(Mode(compute, f"NPS{memory}"), parts) for compute, memory, parts in MI300X)
    gpu = AmdGpu(
        pci_address=f"0000:{number + 5:02x}:00.0",
        device_id="0x74a1",
        unique_id=f"e3aa140f9a5f9e{number:02x}",
        product_name="AMD Instinct MI300X OAM",
        compute_units=304,
        simd_units=1216,
        memory_bytes=192 * GIB - (16 << 20),
        partitions=(),
        offers=offers if can_partition else (),
        numa_node=number // 4,
        pcie_root="pci0000:00",
        hive_id="15188982192727901047",
    )
    return with_mode(gpu, number, (mode or Mode("SPX", "NPS1")) if can_partition else None)


def with_mode(gpu: AmdGpu, number: int, mode: Mode | None) -> AmdGpu:
    count = gpu.partitions_in(mode) if mode else 1
    parts = tuple(
        Partition(slot, 1 + 8 * number + slot, 128 + 8 * number + slot, 304 // count, 1216 // count, 192 * GIB // count)
        for slot in range(count)
    )
    return replace(gpu, mode=mode, partitions=parts)


@dataclass
class Allocated:
    device: str
    share: int


@dataclass
class Node:
    """The node, the program on it, and the scheduler."""

    inventory: AmdInventory
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    boot: int = 1
    requested_memory: str | None = None
    published: DeviceSet = field(default_factory=DeviceSet)
    allocations: dict[str, list[Allocated]] = field(default_factory=dict)
    """By claim UID."""
    shares: int = 0
    reloads: int = 0
    kill_after: int | None = None
    """So many more durable acts, then the program is killed."""

    @property
    def boot_id(self) -> str:
        return f"boot-{self.boot}"

    def publish(self) -> None:
        self.published = build_amd_devices(self.inventory, self.checkpoint, on_claim=True)

    def devices(self) -> dict[str, ApiDevice]:
        return {device["name"]: device for group in self.published.groups for device in group.devices}

    # --- the scheduler ---

    def can_allocate(self, name: str) -> bool:
        device, devices = self.devices()[name], self.devices()
        taken = [a.device for allocated in self.allocations.values() for a in allocated]
        if device.get("allowMultipleAllocations"):
            if taken.count(name) >= int(device["capacity"]["partitions"]["value"]):
                return False
        elif name in taken:
            return False
        limits = {s["name"]: _amounts(s) for s in self.published.counter_sets}
        for other in {*taken, name}:
            for consumed in devices.get(other, {}).get("consumesCounters", []):
                for counter, amount in _amounts(consumed).items():
                    limits[consumed["counterSet"]][counter] -= amount
        return all(left >= 0 for counters in limits.values() for left in counters.values())

    def allocatable(self) -> list[str]:
        return [name for name in self.devices() if self.can_allocate(name)]

    def allocate(self, uid: str, name: str) -> None:
        assert self.can_allocate(name)
        self.shares += 1
        self.allocations.setdefault(uid, []).append(Allocated(name, self.shares))

    # --- the program ---

    def prepare(self, uid: str) -> None:
        """Raises Busy, ClaimError or Killed."""
        devices = tuple(
            AllocatedDevice("gpu", "node", allocated.device, share_id=str(allocated.share))
            for allocated in self.allocations[uid]
        )
        request = ClaimRequest("gpu.amd.com", uid, "default", uid, devices, tuple(None for _ in devices))
        plan = plan_amd_prepare(request, self.inventory, self.checkpoint, self.boot_id, on_claim=True)
        self._run(plan)

    def restart(self) -> None:
        """Finish or bring back what is found; what cannot be had now stays as it is for the kubelet's next try."""
        for record in unfinished_claims(self.checkpoint, self.inventory, self.boot_id):
            try:
                self._run(plan_amd_again(record, self.inventory, self.checkpoint, self.boot_id, on_claim=True))
            except (Busy, ClaimError):
                continue

    def _run(self, plan: Any) -> None:
        if plan.done:
            return
        self._act()
        self.checkpoint = self.checkpoint.with_record(plan.record)
        for step in plan.steps:
            self._act()
            self.apply(step, plan.record.uid)
        self._act()
        self.checkpoint = self.checkpoint.with_record(complete_amd(plan))

    def _act(self) -> None:
        if self.kill_after is not None:
            if self.kill_after == 0:
                self.kill_after = None
                raise Killed
            self.kill_after -= 1

    def release(self, uid: str) -> None:
        self.checkpoint = self.checkpoint.without(uid)
        self.allocations.pop(uid, None)

    # --- the hardware ---

    def apply(self, step: AmdStep, uid: str) -> None:
        match step:
            case SetMemoryMode():
                self.requested_memory = step.memory_mode
            case ReloadDriver():
                present = {self._mode(pci).memory for pci in step.gpus}
                if present != {step.memory_mode}:
                    self._check_idle(uid)
                    self._reload()
            case SetComputeMode():
                if self._mode(step.gpu_uuid) != step.mode:
                    assert self._mode(step.gpu_uuid).memory == step.mode.memory, "driver: NPS-incompatible"
                    running = [h for h in self.running(uid) if h.holding.gpu_uuid == step.gpu_uuid]
                    assert not running, f"driver: busy, {running}"
                    self._set({step.gpu_uuid: step.mode})

    def _mode(self, pci: str) -> Mode:
        gpu = self.inventory.gpu(pci)
        assert gpu is not None and gpu.mode is not None
        return gpu.mode

    def running(self, without: str = "") -> list[Any]:
        """Partitions that containers use: prepared in this boot."""
        held = held_partitions(self.checkpoint, without=(without,))
        return [h for h in held if h.record.state is ClaimState.COMPLETED and h.record.boot_id == self.boot_id]

    def _check_idle(self, uid: str) -> None:
        assert not self.running(uid), "driver: reload while GPUs are used"
        self.reloads += 1

    def _reload(self) -> None:
        self._set(
            {gpu.pci_address: self._after_reload(gpu.mode) for gpu in self.inventory.gpus if gpu.mode is not None}
        )
        self.requested_memory = None

    def _after_reload(self, mode: Mode) -> Mode:
        memory = self.requested_memory or mode.memory
        return Mode(AUTOMATIC[memory], memory)

    def _set(self, modes: dict[str, Mode]) -> None:
        gpus = tuple(
            with_mode(gpu, number, modes.get(gpu.pci_address, gpu.mode))
            for number, gpu in enumerate(self.inventory.gpus)
        )
        self.inventory = replace(self.inventory, gpus=gpus)

    def reboot(self) -> None:
        self.boot += 1
        self.requested_memory = None
        self._set({gpu.pci_address: Mode("SPX", "NPS1") for gpu in self.inventory.gpus if gpu.mode is not None})

    # --- what must always hold ---

    def check(self) -> None:
        slots: set[tuple[str, int]] = set()
        for held in self.running():
            key = held.holding.gpu_uuid, held.holding.slot
            assert key not in slots, f"partition {key} is given twice"
            slots.add(key)
            gpu = self.inventory.gpu(held.holding.gpu_uuid)
            assert gpu is not None and gpu.mode == held.mode, "a claim's GPU left its mode"
            assert held.holding.slot < len(gpu.partitions)


def build_node(gpus: int = 2) -> Node:
    node = Node(AmdInventory("6.12.12", "ABC", tuple(build_gpu(number) for number in range(gpus))))
    node.publish()
    return node


def _amounts(raw: dict[str, Any]) -> dict[str, int]:
    return {name: parse_quantity(counter["value"]) for name, counter in raw["counters"].items()}


def claim_names() -> Iterator[str]:
    number = 0
    while True:
        number += 1
        yield f"claim-{number}"
