"""The driver `gpu.amd.com`: AMD GPUs of this node and their partitions."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

from api.client import Client, Json
from api.errors import Busy, HardwareError, PartitaError, StateUnreadable
from api.events import Recorder, node_reference
from api.names import AMD_CDI_VENDOR, AMD_GPU_DRIVER
from kubeletplugin.amd_home import HomeModes
from kubeletplugin.amd_reload import ReloadMark
from kubeletplugin.amd_target import NodeTarget
from kubeletplugin.cdi_files import CdiFiles
from kubeletplugin.crash import CrashPoint
from kubeletplugin.driver import ready_devices
from kubeletplugin.evidence import adopt_rebuilt
from kubeletplugin.files import Store
from kubeletplugin.hardware.amdsmi import AmdBackend, ModeRefused
from kubeletplugin.hardware.backend import LibraryMissing
from kubeletplugin.metrics import show_prepared
from kubeletplugin.model.amd_cdi import build_amd_cdi_spec, device_paths
from kubeletplugin.model.amd_devices import build_amd_devices
from kubeletplugin.model.amd_partitions import AmdInventory
from kubeletplugin.model.amd_prepare import (
    AmdPreparePlan,
    AmdStep,
    ReloadDriver,
    complete_amd,
    plan_amd_again,
    plan_amd_prepare,
    unfinished_claims,
)
from kubeletplugin.model.amd_target import plan_target
from kubeletplugin.model.cdi import cdi_file_name, read_record
from kubeletplugin.model.checkpoint import Checkpoint, ClaimRecord, ClaimState
from kubeletplugin.model.claims import parse_claim, parse_config
from kubeletplugin.model.devices import DeviceSet, Features
from kubeletplugin.model.health import HealthStatus
from kubeletplugin.server import ClaimRef, DeviceHealth, ReadyDevice
from kubeletplugin.settings import RELOAD_MARK
from kubeletplugin.stale import SWEEP_INTERVAL_S, StaleClaims
from kubeletplugin.threads import call_in

log = logging.getLogger(__name__)

_MISSING_RETRY_S: Final = 5.0
_IDLE_S: Final = 15.0  # pods of one application that is being replaced come within that
_MOST_PATIENCE_S: Final = 3600.0

T = TypeVar("T")


class AmdDriver:
    """`kubeletplugin.driver.NodeDriver` for AMD GPUs.

    One claim, or one change of the whole node, at a time: a change of mode concerns every claim of its GPU, and a
    reload every claim of the node.
    """

    name = AMD_GPU_DRIVER
    interruptible = False

    def __init__(
        self,
        node: str,
        client: Client,
        events: Recorder,
        backend: AmdBackend,
        store: Store,
        cdi: CdiFiles,
        crash: CrashPoint,
        on_claim: bool,
        rescan_interval_s: float,
        stale_grace_s: float,
        boot_id_path: Path,
    ) -> None:
        self._node = node
        self._client = client
        self._events = events
        self._backend = backend
        self._store = store
        self._cdi = cdi
        self._crash = crash
        self._rescan_interval_s = rescan_interval_s
        self._boot_id_path = boot_id_path
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="amdsmi")
        self._one_at_a_time = asyncio.Lock()
        self._inventory = AmdInventory()
        self._offered = DeviceSet()
        self._boot_id = ""
        self._changed: Callable[[], None] = lambda: None
        self._target = NodeTarget(node, client, on_claim)
        self._home = HomeModes(store.path.with_name("home-modes.json"))
        self._loads = 0
        """`Store.loads` when the hardware was read last."""
        self._stale = StaleClaims(client, node, stale_grace_s)
        self._reload = ReloadMark(store.path.with_name(RELOAD_MARK))

    # Start

    async def recover(self) -> None:
        """Wait for the hardware, then finish what was interrupted and bring back what a reboot took."""
        self._boot_id = self._boot_id_path.read_text().strip()
        while True:
            try:
                async with self._store.lease(read=False):  # another instance may be in the middle of a reload
                    self._read_journal()
                    await self._rescan_once()
                    await self._recover_claims()
                await self._target.look()
                return
            except (PartitaError, OSError) as error:
                log.warning("not_recovered", extra={"driver": self.name, "error": str(error)})
                await asyncio.sleep(_MISSING_RETRY_S)

    async def _recover_claims(self) -> None:
        for record in unfinished_claims(self._store.checkpoint, self._inventory, self._boot_id):
            log.info("preparing_again", extra={"claim": record.claim, "claim_uid": record.uid})
            try:
                await self._carry_out(self._plan_again(record))
            except PartitaError as error:  # the kubelet asks again for it, or gives it back
                log.error("not_prepared_again", extra={"claim": record.claim, "error": str(error)})
        for record in self._store.checkpoint.records.values():
            if record.state is ClaimState.COMPLETED:
                self._ensure_cdi(record)
        await self._store.sync()

    def _read_journal(self) -> None:
        try:
            self._store.refresh()
        except StateUnreadable as error:
            self._rebuild(error)

    def _rebuild(self, error: StateUnreadable) -> None:
        """Set the journal aside and make it anew from the CDI files, each of which carries its claim's record."""
        checkpoint = Checkpoint()
        for uid, spec in self._cdi.read_all():
            try:
                checkpoint = checkpoint.with_record(read_record(spec or {}))
            except StateUnreadable as fault:
                log.error("claim_lost", extra={"claim_uid": uid, "error": str(fault)})
        adopt_rebuilt(self._store, checkpoint, self._events, self.name, self._node, error)

    # Claims

    async def prepare(self, claim: Json, ref: ClaimRef) -> tuple[ReadyDevice, ...]:
        request = parse_claim(claim, self.name, self._node, ref.uid, parse_config)

        def plan() -> AmdPreparePlan:
            return plan_amd_prepare(
                request, self._inventory, self._store.checkpoint, self._boot_id, on_claim=self._target.may_change
            )

        async def take() -> ClaimRecord:
            async with self._store.lease():
                async with self._one_at_a_time:
                    if self._loads != self._store.loads:
                        await self._rescan_once()  # another instance has worked for claims
                    planned = plan()
                    self._stale.forget(request.uid)
                    if planned.done:
                        self._ensure_cdi(planned.record)
                    record = planned.record if planned.done else await self._carry_out(planned)
                await self._store.sync()
            return record

        try:
            record = await take()
        except Busy:
            # The holder may be a claim that went away while nobody told us.
            if not await self._stale.try_sweep(self.name, self._store.checkpoint.records.values(), self._give_back):
                raise
            record = await take()
        self._crash("done")
        return ready_devices(record)

    def _plan_again(self, record: ClaimRecord) -> AmdPreparePlan:
        # The claim was promised its mode, whatever this node's policy is now.
        return plan_amd_again(record, self._inventory, self._store.checkpoint, self._boot_id, on_claim=True)

    async def _carry_out(self, plan: AmdPreparePlan) -> ClaimRecord:
        """Intent, hardware, record, CDI file. What is interrupted stays STARTED, for whoever comes next to finish."""
        if plan.steps:
            self._store.put(plan.record)
            await self._store.sync()
            self._crash("intent")
            self._home.remember(self._boot_id, self._inventory)
            await self._run_steps(plan.steps)
        self._crash("hardware")
        record = complete_amd(plan)
        spec = self._build_cdi(record)
        self._store.put(record)
        self._cdi.write(cdi_file_name(AMD_CDI_VENDOR, record.uid), spec)
        self._crash("cdi")
        return record

    async def _run_steps(self, steps: Sequence[AmdStep]) -> None:
        try:
            for step in steps:
                log.info("step", extra={"driver": self.name, "step": str(step)})
                if isinstance(step, ReloadDriver):
                    await self._reload_driver(step)
                else:
                    await self._call(partial(self._backend.apply_step, step))
        finally:
            await self._rescan_once(is_ours=True)

    async def _reload_driver(self, step: ReloadDriver) -> None:
        self._reload.set(self._boot_id)
        try:
            await self._call(partial(self._backend.apply_step, step))
        except ModeRefused:
            raise
        except HardwareError as error:
            log.warning("memory_mode_pending", extra={"driver": self.name, "error": str(error)})
            self._events.warn(node_reference(self._node), "MemoryModePending", "Reload", str(error))
            self._home.expect(self._boot_id, step.memory_mode)
            raise

    async def unprepare(self, ref: ClaimRef) -> None:
        async with self._one_at_a_time, self._store.lease():
            self._forget(ref.uid)
            # A power cut that takes the removal brings the record back, and the sweep after the start finds its claim
            # gone. So nobody waits for the disk; the next claim's sync covers it, or one of its own.
            self._store.sync_soon()
        self._crash("removed")

    def _forget(self, uid: str) -> None:
        self._cdi.remove(cdi_file_name(AMD_CDI_VENDOR, uid))
        self._crash("cdi_removed")
        if self._store.checkpoint.get(uid) is not None:
            self._store.remove(uid)
        self._stale.forget(uid)

    async def _give_back(self, record: ClaimRecord) -> bool:
        async with self._one_at_a_time, self._store.lease():
            if self._store.checkpoint.get(record.uid) != record or not self._stale.is_gone(record.uid):
                return False
            self._forget(record.uid)
            self._store.sync_soon()
        self._changed()
        return True

    def _build_cdi(self, record: ClaimRecord) -> Json:
        nodes = self._backend.read_device_nodes(device_paths(record, self._inventory))
        return build_amd_cdi_spec(record, self._inventory, nodes, self._node)

    def _ensure_cdi(self, record: ClaimRecord) -> None:
        """Written anew at every start: device numbers may be others after a reboot."""
        try:
            self._cdi.write(cdi_file_name(AMD_CDI_VENDOR, record.uid), self._build_cdi(record))
        except HardwareError as error:
            log.error("no_cdi_file", extra={"claim": record.claim, "error": str(error)})

    # Publishing

    def offer(self, features: Features) -> DeviceSet:
        on_claim = self._target.may_change and features.partitionable and features.shared
        self._offered = build_amd_devices(self._inventory, self._store.checkpoint, on_claim=on_claim)
        prepared = sum(len(record.devices) for record in self._store.checkpoint.records.values())
        show_prepared(self._node, self.name, {"gpu": prepared})
        return self._offered

    def health(self) -> tuple[DeviceHealth, ...]:
        """What cannot be read is not offered, and what is offered has been read a moment ago."""
        return tuple(
            DeviceHealth(self._node, device["name"], HealthStatus.HEALTHY, "")
            for group in self._offered.groups
            for device in group.devices
        )

    async def run(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._rescan())
            tasks.create_task(self._stale.run(self.name, self._sweep_all, lambda: self._store.checkpoint.records))
            tasks.create_task(self._target.run(self._reach_target))

    async def _reach_target(self) -> None:
        """Bring the node into the modes that the controller asks for, and say how it went."""
        self._changed()  # a node with a target no longer partitions on claim
        async with self._one_at_a_time, self._store.lease():
            await self._rescan_once()
            steps = self._target.plan(self._inventory, self._store.checkpoint)
            await self._run_steps(steps)
            self._home.forget()  # these modes are asked for, not left over from claims
        self._target.observe(self._inventory)

    async def _rescan(self) -> None:
        idle_s, patience_s = 0.0, _IDLE_S
        while True:
            await asyncio.sleep(self._rescan_interval_s)
            is_idle = self._target.may_change and not self._store.checkpoint.records
            idle_s = idle_s + self._rescan_interval_s if is_idle else 0.0
            try:
                async with self._one_at_a_time, self._store.lease():
                    await self._rescan_once()
                    if idle_s >= patience_s:
                        await self._return_home()
                        patience_s = _IDLE_S
            except PartitaError as error:
                log.warning("not_looked_after", extra={"driver": self.name, "error": str(error)})
                if idle_s >= patience_s:
                    # Something holds the driver; every attempt is felt by whoever monitors the GPUs.
                    idle_s, patience_s = 0.0, min(2 * patience_s, _MOST_PATIENCE_S)

    async def _return_home(self) -> None:
        """Undo what claims that are gone did to the memory mode, so that claims for several GPUs find it."""
        target = self._home.target(self._boot_id, self._inventory)
        if target and not self._store.checkpoint.records:
            log.info("returning_home", extra={"driver": self.name, "modes": list(target)})
            await self._run_steps(plan_target(self._inventory, self._store.checkpoint, target))

    async def _sweep_all(self) -> float:
        await self._stale.sweep(self._store.checkpoint.records.values(), self._give_back)
        return SWEEP_INTERVAL_S

    async def _rescan_once(self, *, is_ours: bool = False) -> None:
        """Under the lease. What cannot be read is not offered, whatever was read before.

        `is_ours`: after steps of ours. So is what a reload of ours has left, and what may be on behalf of claims; all
        else is an administrator's choice.
        """
        before, loads = self._inventory, self._store.loads
        try:
            self._inventory = await self._read_hardware()
            self._loads = loads
            is_ours = is_ours or bool(self._store.checkpoint.records) or self._reload.is_set(self._boot_id)
            self._home.observe(self._boot_id, self._inventory, is_ours=is_ours)
            self._reload.clear()
        except HardwareError as error:
            self._inventory = AmdInventory(unreadable=(str(error),))
            raise
        finally:
            if self._inventory != before:
                self._changed()

    async def _read_hardware(self) -> AmdInventory:
        """Loads the driver, where a reload of ours was interrupted."""
        try:
            return await self._call(self._backend.read_inventory)
        except LibraryMissing:
            if not self._reload.is_set(self._boot_id):
                raise
        log.warning("loading_driver", extra={"driver": self.name, "why": "a reload of ours was interrupted"})
        await self._call(self._backend.load_driver)
        return await self._call(self._backend.read_inventory)

    async def _call(self, function: Callable[[], T]) -> T:
        return await call_in(self._worker, function)
