"""The driver `gpu.nvidia.com`: NVIDIA GPUs and MIG devices of this node."""

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final

from api.client import ApiError, Client, Json
from api.errors import Busy, HardwareError, PartitaError, StateUnreadable
from api.events import Recorder, node_reference
from api.names import NVIDIA_CDI_VENDOR, NVIDIA_GPU_DRIVER
from kubeletplugin.crash import CrashPoint
from kubeletplugin.driver import ready_devices
from kubeletplugin.driver_files import DriverFiles
from kubeletplugin.evidence import Evidence, adopt_rebuilt, gather_evidence
from kubeletplugin.executor import Executor
from kubeletplugin.files import CdiFiles, Store
from kubeletplugin.metrics import show_prepared
from kubeletplugin.model.cdi import cdi_file_name, encode_cdi_spec
from kubeletplugin.model.checkpoint import Checkpoint, ClaimRecord, ClaimState, count_prepared
from kubeletplugin.model.claims import ClaimRequest, parse_claim, parse_config
from kubeletplugin.model.devices import DeviceSet, Features, build_devices
from kubeletplugin.model.health import IGNORED_XIDS, NodeHealth, observe_event, observe_inventory
from kubeletplugin.model.inventory import Inventory, MigInstance
from kubeletplugin.model.mig import gpu_device_name
from kubeletplugin.model.prepare import PreparePlan, complete, plan_prepare, plan_recovery
from kubeletplugin.model.rebuild import rebuild_checkpoint, unrecorded_claims
from kubeletplugin.model.steps import HardwareStep
from kubeletplugin.occupants import ASK_AGAIN_S, Occupants
from kubeletplugin.server import ClaimRef, DeviceHealth, ReadyDevice
from kubeletplugin.stale import SWEEP_INTERVAL_S, StaleClaims

log = logging.getLogger(__name__)

_MISSING_RETRY_S: Final = 5.0
_UNDO_AGAIN_S: Final = 30.0


class NvidiaDriver:
    """`kubeletplugin.driver.NodeDriver` for NVIDIA GPUs."""

    name = NVIDIA_GPU_DRIVER
    interruptible = False

    def __init__(
        self,
        node: str,
        client: Client,
        events: Recorder,
        executor: Executor,
        store: Store,
        cdi: CdiFiles,
        files: DriverFiles,
        crash: CrashPoint,
        ignored_xids: frozenset[int],
        rescan_interval_s: float,
        stale_grace_s: float,
        boot_id_path: Path,
    ) -> None:
        self._node = node
        self._client = client
        self._events = events
        self._executor = executor
        self._store = store
        self._cdi = cdi
        self._files = files
        self._crash = crash
        self._ignored_xids = IGNORED_XIDS | ignored_xids
        self._rescan_interval_s = rescan_interval_s
        self._boot_id_path = boot_id_path
        self._boot_id = ""
        self._health = NodeHealth()
        self._offered: tuple[str, ...] = ()
        self._stale = StaleClaims(client, node, stale_grace_s)
        self._occupants = Occupants(executor.read_processes, events, node)
        self._changed: Callable[[], None] = lambda: None
        self._loads = 0
        """`Store.loads` when the hardware was read last."""
        self._planned: tuple[tuple[ClaimRequest, Inventory, Checkpoint], PreparePlan] | None = None
        """The newest plan, and what it was made on: most are asked for again, and nothing has changed."""
        self._not_undone: dict[str, ClaimRecord] = {}
        """What an earlier run left half made and could not be undone at the start, by claim UID."""

    # Start

    async def recover(self) -> None:
        """Wait for the driver's library, then make disk, hardware and CDI files agree."""
        self._boot_id = self._boot_id_path.read_text().strip()
        while True:
            try:
                await self._executor.rescan()
                break
            except HardwareError as error:
                log.warning("waiting_for_hardware", extra={"driver": self.name, "error": str(error)})
                await asyncio.sleep(_MISSING_RETRY_S)
        self._files.read(self._executor.inventory)
        self._health = observe_inventory(self._health, self._executor.inventory)
        evidence: Evidence | None = None
        while True:
            try:
                async with self._store.lease(read=False):
                    # Anew: until now another instance may have changed what was read.
                    await self._executor.rescan()
                    self._read_journal(evidence)
                    self._loads = self._store.loads
                    await self._recover_claims()
                return
            except StateUnreadable as error:
                log.error("journal_unreadable", extra={"driver": self.name, "error": str(error)})
                evidence = await gather_evidence(self._client, self.name, self._node)  # others may have the lease
            except (PartitaError, OSError) as error:
                extra = {"driver": self.name, "error": str(error), "retry_in_s": _MISSING_RETRY_S}
                log.error("recovery_failed", extra=extra)
                evidence = None
                await asyncio.sleep(_MISSING_RETRY_S)

    def _read_journal(self, evidence: Evidence | None) -> None:
        """Raises StateUnreadable where that can be mended, with evidence."""
        try:
            self._store.refresh()
            lost = unrecorded_claims(self._store.checkpoint, [uid for uid, _ in self._cdi.read_all()])
            if lost:
                raise StateUnreadable(f"{self._store.path}: claims {', '.join(lost)} have CDI files but no record")
        except StateUnreadable as error:
            if evidence is None:
                raise
            self._rebuild(error, evidence)

    async def _recover_claims(self) -> None:
        plan = plan_recovery(self._store.checkpoint, self._executor.inventory, self._boot_id)
        for undo in plan.undo:
            log.info("undoing", extra={"claim": undo.record.claim, "claim_uid": undo.record.uid})
            try:
                if undo.steps:
                    await self._executor.give_back(undo.record, self._store.checkpoint)
                self._forget(undo.record.uid)
            except PartitaError as error:  # one claim that cannot be undone must not keep the others waiting
                self._report_not_undone(undo.record, error)
        for redo in plan.redo:
            log.info("preparing_again", extra={"claim": redo.record.claim, "claim_uid": redo.record.uid})
            try:
                if redo.steps:
                    # As for any claim: what is made without an intent would be an admin's after a crash. Where it
                    # fails, the intent stays for whoever asks again, gives it back, or starts next.
                    self._store.put(redo.record)
                    self._crash("intent")
                self._complete(redo, await self._executor.run(redo.steps))
            except HardwareError as error:
                log.error("not_prepared_again", extra={"claim": redo.record.claim, "error": str(error)})
        for record in plan.keep:
            try:
                self._ensure_cdi(record)
            except PartitaError as error:
                log.error("no_cdi_file", extra={"claim": record.claim, "claim_uid": record.uid, "error": str(error)})
        for record, why in plan.failed:
            if record.state is ClaimState.STARTED:
                self._report_not_undone(record, why)
            else:
                log.error("not_prepared_again", extra={"claim": record.claim, "error": str(why)})
        await self._store.sync()

    def _rebuild(self, error: StateUnreadable, evidence: Evidence) -> None:
        """Set the journal aside and make it anew from claims, CDI files and hardware; nothing is taken for empty."""
        specs, inventory = dict(self._cdi.read_all()), self._executor.inventory
        checkpoint = rebuild_checkpoint(
            self.name, self._node, evidence.claims, specs, inventory, self._boot_id, evidence.static_uuids
        )
        adopt_rebuilt(self._store, checkpoint, self._events, self.name, self._node, error)
        for uid in unrecorded_claims(checkpoint, specs):
            file = self._cdi.set_aside(cdi_file_name(NVIDIA_CDI_VENDOR, uid))
            log.error("cdi_file_set_aside", extra={"driver": self.name, "claim_uid": uid, "path": str(file)})

    # Claims

    async def prepare(self, claim: Json, ref: ClaimRef) -> tuple[ReadyDevice, ...]:
        request = parse_claim(claim, self.name, self._node, ref.uid, parse_config)
        async with self._store.lease():
            if self._loads != self._store.loads:
                # Another instance has prepared or given back something, and its instances are not in our inventory.
                await self._look()
            try:
                plan = self._plan(request)
            except Busy as busy:
                if not await self._sweep_holders(busy):  # the holder may have gone while nobody told us
                    raise
                plan = self._plan(request)
            if plan.done:
                record = plan.record
                self._ensure_cdi(record)
            else:
                self._store.reserve(plan.record)
                try:
                    record = await self._change(request, plan) if plan.is_delicate else self._complete(plan, ())
                except BaseException:
                    self._store.release(request.uid)
                    raise
            await self._store.sync()
        self._crash("done")
        return ready_devices(record)

    def _plan(self, request: ClaimRequest) -> PreparePlan:
        # For what is only reserved nothing has been made: whatever lies at its placements is somebody else's.
        basis = request, self._executor.inventory, self._store.without_reservation(request.uid)
        planned = self._planned  # another thread may be planning, too
        if planned is None or planned[0] != basis:
            planned = self._planned = basis, plan_prepare(*basis, self._boot_id)
        return planned[1]

    async def _change(self, request: ClaimRequest, plan: PreparePlan) -> ClaimRecord:
        """Prepare a claim whose GPUs must be held; what fails is undone by what the hardware then shows."""
        gpus = {device.holding.gpu_uuid for device in plan.record.devices}
        intent: ClaimRecord | None = None

        def decide() -> tuple[HardwareStep, ...]:
            # An admin, or the claim that had the GPU until now, may have changed what this plan was made on. After the
            # intent is written, whatever lies at its placements counts as ours; and an admin's instance that a claim is
            # given must be the one that is there now, for ids are reused.
            nonlocal plan, intent
            plan = self._plan(request)
            if plan.steps:
                # Not synced: a kill leaves it in the kernel, and a power cut takes the instances, too.
                self._store.put(plan.record)
                intent = plan.record
                self._crash("intent")
            return plan.steps

        async with self._executor.holding(gpus):
            try:
                made = await self._executor.change(gpus, decide)
                return self._complete(plan, made)
            except PartitaError:
                if intent is not None:
                    await self._undo(intent)
                raise

    def _complete(self, plan: PreparePlan, results: Sequence[MigInstance | None]) -> ClaimRecord:
        """Record and CDI file, in this order: no file is without a record.

        The caller syncs afterwards and only then replies. After a kill the record is in the kernel's cache, and
        recovery writes the CDI file (`keep`). A power cut before the sync may take the record, and the CDI directory,
        which is in memory; where that is on a disk, recovery rebuilds the journal from the file without record.
        """
        self._crash("hardware")
        record = complete(plan, results)
        spec = encode_cdi_spec(record, self._executor.inventory, self._files.tree)
        self._store.put(record)
        try:
            self._cdi.write(cdi_file_name(NVIDIA_CDI_VENDOR, record.uid), spec)
        except PartitaError:
            self._store.put(plan.record) if plan.steps else self._store.remove(record.uid)
            raise
        self._crash("cdi")
        return record

    async def _undo(self, record: ClaimRecord) -> None:
        """Give back what a failed preparation made. Where that fails too, the record stays for the next attempt."""
        try:
            await self._executor.give_back(record, self._store.checkpoint)
            self._forget(record.uid)
        except PartitaError as error:
            log.error("not_undone", extra={"error": str(error)})

    async def unprepare(self, ref: ClaimRef) -> None:
        async with self._store.lease():
            record = self._store.checkpoint.get(ref.uid)
            if record is None:
                self._cdi.remove(cdi_file_name(NVIDIA_CDI_VENDOR, ref.uid))
                return
            await self._release(record)
            # Nobody waits for the disk: what a power cut brings back of it, the sweep after the start finds gone.
            self._store.sync_soon()
        self._crash("removed")

    async def _release(self, record: ClaimRecord) -> bool:
        """False where the record has changed meanwhile: somebody asked for the claim again, or gave it back."""
        async with self._executor.holding(device.holding.gpu_uuid for device in record.devices):
            if self._store.checkpoint.get(record.uid) != record:
                return False
            # Instances end with the boot: what lies there now was not made by an interrupted claim of an earlier one.
            if record.state is ClaimState.COMPLETED or record.boot_id == self._boot_id:
                await self._executor.give_back(record, self._store.checkpoint)
            self._crash("undone")
            self._forget(record.uid)
            return True

    def _forget(self, uid: str) -> None:
        self._cdi.remove(cdi_file_name(NVIDIA_CDI_VENDOR, uid))
        self._crash("cdi_removed")
        self._store.remove(uid)
        self._stale.forget(uid)

    async def _sweep_holders(self, busy: Busy) -> int:
        """Give back what the holders hold, where they are stale; an API server that is away says nothing of that."""
        try:
            return await self._sweep(busy.holders)
        except ApiError as error:
            log.warning("sweep_failed", extra={"driver": self.name, "error": str(error)})
            return 0

    async def _sweep(self, uids: Iterable[str]) -> int:
        """Give back what those of these claims hold that are stale; how many. Raises ApiError."""
        records = [record for uid in uids if (record := self._store.checkpoint.get(uid)) is not None]
        swept = await self._stale.sweep(records, self._release_unless_in_use)
        self._note_swept(swept)
        return swept

    async def _release_unless_in_use(self, record: ClaimRecord) -> bool:
        if await self._occupants.remain(record):
            self._stale.postpone(record.uid, ASK_AGAIN_S)
            return False
        return await self._release(record)

    def _note_swept(self, count: int) -> None:
        if count:
            self._store.sync_soon()
            self._changed()

    def _ensure_cdi(self, record: ClaimRecord) -> None:
        name = cdi_file_name(NVIDIA_CDI_VENDOR, record.uid)
        if not self._cdi.exists(name):
            self._cdi.write(name, encode_cdi_spec(record, self._executor.inventory, self._files.tree))

    # Publishing

    def offer(self, features: Features) -> DeviceSet:
        inventory, checkpoint = self._executor.inventory, self._store.checkpoint
        show_prepared(self._node, self.name, count_prepared(checkpoint))
        offered = build_devices(inventory, checkpoint, self._health, features)
        self._offered = tuple(device["name"] for group in offered.groups for device in group.devices)
        return offered

    def health(self) -> tuple[DeviceHealth, ...]:
        gpus = {gpu_device_name(gpu): self._health.of(gpu.uuid) for gpu in self._executor.inventory.gpus}
        states = ((name, gpus.get(name.partition("-mig-")[0])) for name in self._offered)
        return tuple(DeviceHealth(self._node, name, int(s.status), s.message) for name, s in states if s is not None)

    async def run(self, changed: Callable[[], None]) -> None:
        self._changed = changed

        def on_event(gpu_uuid: str, xid: int) -> None:
            log.error("xid", extra={"driver": self.name, "gpu": gpu_uuid, "xid": xid})
            self._observe(observe_event(self._health, gpu_uuid, xid, self._ignored_xids), changed)

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._executor.watch_events(on_event))
            tasks.create_task(self._rescan(changed))
            tasks.create_task(self._stale.run(self.name, self._sweep_all, lambda: self._store.checkpoint.records))

    def _observe(self, health: NodeHealth, changed: Callable[[], None]) -> None:
        if health != self._health:
            self._health = health
            changed()

    async def _rescan(self, changed: Callable[[], None]) -> None:
        """Hardware that appears, disappears or is repartitioned by an admin shows within a few seconds."""
        while True:
            await asyncio.sleep(self._rescan_interval_s)
            before, known = self._executor.inventory, self._store.checkpoint
            try:
                # Under the lease what another instance has made has its record here, and is not taken for an admin's.
                async with self._store.lease():
                    inventory = await self._look()
            except PartitaError as error:
                log.error("rescan_failed", extra={"driver": self.name, "error": str(error)})
                continue
            if inventory != before or self._store.checkpoint is not known:
                changed()
            self._observe(observe_inventory(self._health, inventory), changed)
            await self._files.read_again(inventory)

    async def _look(self) -> Inventory:
        """Read all hardware, under the lease: then nobody else is about to change it."""
        loads = self._store.loads
        inventory = await self._executor.rescan()
        self._loads = loads
        return inventory

    async def _sweep_all(self) -> float:
        async with self._store.lease():
            await self._undo_the_rest()
            await self._sweep(self._store.checkpoint.records)
        return _UNDO_AGAIN_S if self._not_undone else SWEEP_INTERVAL_S

    async def _undo_the_rest(self) -> None:
        """Try again what could not be undone at the start, where nobody has asked for the claim since."""
        undone = 0
        for uid, record in tuple(self._not_undone.items()):
            try:
                undone += await self._release(record)
                del self._not_undone[uid]
            except PartitaError as error:
                self._report_not_undone(record, error)
        self._note_swept(undone)

    def _report_not_undone(self, record: ClaimRecord, error: PartitaError) -> None:
        self._not_undone[record.uid] = record
        message = f"claim {record.claim}: what an earlier run left half made cannot be undone yet: {error}"
        log.error("not_undone", extra={"claim": record.claim, "claim_uid": record.uid, "error": str(error)})
        self._events.warn(node_reference(self._node), "ClaimNotUndone", "Recover", message)
