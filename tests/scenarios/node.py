"""A node's plugin as a value machine: the real plans, the shells' order of writes, and a power switch."""

import itertools
import json
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

from api.device_config import parse_device_config
from api.errors import StateUnreadable
from kubeletplugin.model.cdi import DeviceNode, DriverFile, DriverTree, build_cdi_spec
from kubeletplugin.model.checkpoint import (
    Checkpoint,
    ClaimRecord,
    decode_journal,
    encode_checkpoint,
    encode_header,
    encode_record,
    encode_removal,
)
from kubeletplugin.model.claims import parse_claim
from kubeletplugin.model.inventory import MigInstance
from kubeletplugin.model.prepare import PreparePlan, complete, plan_prepare, plan_recovery, plan_unprepare
from kubeletplugin.model.rebuild import rebuild_checkpoint
from kubeletplugin.model.steps import CreateMigInstance, DeleteMigInstance, HardwareStep
from tests.scenarios.hardware import Hardware

DRIVER = "gpu.nvidia.com"
POOL = "node-1"


class PowerCut(Exception):
    """The program died here."""


def claim(uid: str, *devices: str, admin: bool = False, config: tuple[dict[str, Any], ...] = ()) -> dict[str, Any]:
    """A ResourceClaim as the scheduler leaves it, one request for each device."""
    results = [
        {
            "request": f"r{i}",
            "driver": DRIVER,
            "pool": POOL,
            "device": device,
            **({"adminAccess": True} if admin else {}),
        }
        for i, device in enumerate(devices)
    ]
    return {
        "metadata": {"uid": uid, "namespace": "default", "name": f"claim-{uid}"},
        "spec": {},
        "status": {
            "allocation": {"devices": {"results": results, "config": list(config)}},
            "reservedFor": [{"resource": "pods", "name": f"pod-{uid}", "uid": f"pod-{uid}"}],
        },
    }


def driver_tree(gpus: int = 16) -> DriverTree:
    """A driver root at /run/nvidia/driver without hooks, with the capability minors that NVIDIA's driver uses."""
    minors: dict[str, int] = {}
    for gpu, instance in itertools.product(range(gpus), range(15)):
        base = 3 + 135 * gpu + 9 * instance
        minors[f"gpu{gpu}/gi{instance}/access"] = base
        minors |= {f"gpu{gpu}/gi{instance}/ci{ci}/access": base + 1 + ci for ci in range(8)}
    dev = "/run/nvidia/driver/dev"
    return DriverTree(
        root="/run/nvidia/driver",
        dev_root="/run/nvidia/driver",
        control_nodes=(
            DeviceNode("/dev/nvidiactl", f"{dev}/nvidiactl", 195, 255),
            DeviceNode("/dev/nvidia-uvm", f"{dev}/nvidia-uvm", 510, 0),
        ),
        gpu_nodes={n: (DeviceNode(f"/dev/nvidia{n}", f"{dev}/nvidia{n}", 195, n),) for n in range(gpus)},
        capabilities_major=508,
        capability_minors=minors,
        libraries=(
            DriverFile(
                "/usr/lib/x86_64-linux-gnu/libcuda.so.570.158.01",
                ("/usr/lib/x86_64-linux-gnu/libcuda.so", "/usr/lib/x86_64-linux-gnu/libcuda.so.1"),
            ),
        ),
        tools=("/usr/bin/nvidia-smi",),
    )


TREE = driver_tree()


@dataclass
class Node:
    """`journal`, `cdi` and `hardware` are what survives; everything else is the running program's memory."""

    hardware: Hardware
    journal: bytes = encode_header(DRIVER)
    cdi: dict[str, str] = field(default_factory=dict)
    synced: int = len(encode_header(DRIVER))
    """Bytes of the journal that outlive a power cut; a killed program loses none of it."""
    writes_back: bool = False
    """Its kernel has always written everything by itself when the power is cut."""
    boot: int = 1
    effects_left: int | None = None
    """Effects until the power is cut; None: never."""
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    watchers: list[Callable[[], None]] = field(default_factory=list)
    """Called after every effect: what must hold at all times."""

    @property
    def boot_id(self) -> str:
        return f"boot-{self.boot}"

    def prepare(self, raw: dict[str, Any]) -> ClaimRecord:
        request = parse_claim(raw, DRIVER, POOL, raw["metadata"]["uid"], parse_device_config)
        plan = plan_prepare(request, self.hardware.inventory, self.checkpoint, self.boot_id)
        before = len(self.journal)
        record = plan.record if plan.done else self._carry_out(plan)
        # Of a change of hardware only the intent is sure to be on the disk when the kubelet is told.
        self.synced = before + len(encode_record(plan.record)) if plan.steps else len(self.journal)
        return record

    def unprepare(self, uid: str) -> None:
        record = self.checkpoint.get(uid)
        if record is not None:
            self._give_back(record, plan_unprepare(record, self.hardware.inventory, self.checkpoint))
            self.synced = len(self.journal)

    def restart(self) -> None:
        """The program starts: reads the journal, recovers."""
        journal = decode_journal(DRIVER, self.journal)
        self.journal = self.journal[: journal.valid_bytes]
        self.checkpoint = journal.checkpoint
        recovery = plan_recovery(self.checkpoint, self.hardware.inventory, self.boot_id)
        for undo in recovery.undo:
            self._give_back(undo.record, undo.steps)
        for plan in recovery.redo:
            self._carry_out(plan)
        for record in recovery.keep:
            if record.uid not in self.cdi:
                self._write_cdi(record)
        self.synced = len(self.journal)

    def restart_with(self, claims: list[dict[str, Any]], static_uuids: Collection[str]) -> None:
        """As `restart`, with the API server at hand for a journal that cannot be read."""
        try:
            self.restart()
        except StateUnreadable:
            specs = {uid: json.loads(text) for uid, text in self.cdi.items()}
            inventory = self.hardware.inventory
            rebuilt = rebuild_checkpoint(DRIVER, POOL, claims, specs, inventory, self.boot_id, static_uuids)
            self._effect()
            self.journal = encode_checkpoint(DRIVER, rebuilt)
            self.synced = len(self.journal)
            self.restart()

    def reboot(self) -> None:
        """Power off and on: hardware forgets, and so do the CDI directory, which is a tmpfs, and unsynced appends."""
        self.journal = self.journal if self.writes_back else self.journal[: self.synced]
        self.hardware = self.hardware.rebooted()
        self.cdi = {}
        self.boot += 1

    def _carry_out(self, plan: PreparePlan) -> ClaimRecord:
        """In the order of `kubeletplugin.nvidia`: an intent where hardware changes; the record before the CDI file."""
        if plan.steps:
            self._append(encode_record(plan.record))
            self.checkpoint = self.checkpoint.with_record(plan.record)
        results = [self._apply(step) for step in plan.steps]
        record = complete(plan, results)
        self._append(encode_record(record))
        self.checkpoint = self.checkpoint.with_record(record)
        self._write_cdi(record)
        return record

    def _give_back(self, record: ClaimRecord, steps: tuple[HardwareStep, ...]) -> None:
        for step in steps:
            self._apply(step)
        self._effect()
        self.cdi.pop(record.uid, None)
        self._append(encode_removal(record.uid))
        self.checkpoint = self.checkpoint.without(record.uid)

    def _apply(self, step: HardwareStep) -> MigInstance | None:
        self._effect()
        if isinstance(step, CreateMigInstance):
            self.hardware = self.hardware.begin_creation(step)
            self._effect()
        if isinstance(step, DeleteMigInstance):
            self.hardware = self.hardware.begin_deletion(step)
            self._effect()
        self.hardware, result = self.hardware.apply(step)
        return result

    def _write_cdi(self, record: ClaimRecord) -> None:
        self._effect()
        self.cdi[record.uid] = json.dumps(build_cdi_spec(record, self.hardware.inventory, TREE))

    def _append(self, line: bytes) -> None:
        try:
            self._effect()
        except PowerCut:
            self.journal += line[: len(line) // 2]  # torn
            raise
        self.journal += line

    def _effect(self) -> None:
        for watch in self.watchers:
            watch()
        if self.effects_left is not None:
            self.effects_left -= 1
            if self.effects_left < 0:
                raise PowerCut


def completed_instances(node: Node) -> Iterator[tuple[str, Any]]:
    """(claim UID, holding) of everything that the checkpoint says is in place."""
    for record in node.checkpoint.records.values():
        for device in record.devices:
            if not device.admin_access:
                yield record.uid, device.holding
