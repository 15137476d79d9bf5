"""The driver `gpu.nvidia.com`: NVIDIA GPUs and MIG devices of this node."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from api.client import Client, Json
from api.errors import Busy, HardwareError, PartitaError, Retryable, StateUnreadable
from api.events import Recorder
from api.names import NVIDIA_CDI_VENDOR, NVIDIA_GPU_DRIVER
from kubeletplugin.cdi_files import CdiFiles
from kubeletplugin.crash import CrashPoint
from kubeletplugin.driver import ready_devices
from kubeletplugin.driver_files import DriverFiles
from kubeletplugin.evidence import Evidence, adopt_rebuilt, gather_evidence
from kubeletplugin.executor import Executor
from kubeletplugin.files import Store
from kubeletplugin.hardware.backend import LibraryMissing
from kubeletplugin.leftovers import Leftovers
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
from kubeletplugin.occupants import Occupants
from kubeletplugin.server import ClaimRef, DeviceHealth, ReadyDevice
from kubeletplugin.stale import StaleClaims

log = logging.getLogger(__name__)

_MISSING_RETRY_S: Final = 5.0
_GONE_AFTER: Final = 2  # looks in a row: one may fall into the moment in which a library opens its session anew


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
        stale, occupants = StaleClaims(client, node, stale_grace_s), Occupants(executor.read_processes, events, node)
        self._leftovers = Leftovers(node, events, store, stale, occupants, self._release)
        self._shown_tree = files.tree
        """The driver's files that all CDI files name, once that has been looked at."""
        self._loads = 0
        """`Store.loads` when the hardware was read last."""
        self._planned: tuple[tuple[ClaimRequest, Inventory, Checkpoint], PreparePlan] | None = None
        """The newest plan, and what it was made on: most are asked for again, and nothing has changed."""

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
                self._leftovers.report_not_undone(undo.record, error)
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
            self._try_to_ensure_cdi(record)
        for record, why in plan.failed:
            if record.state is ClaimState.STARTED:
                self._leftovers.report_not_undone(record, why)
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
        try:
            record = await self._prepare(request)
        except Busy as busy:
            if not await self._leftovers.sweep_holders(busy):  # the holder may have gone while nobody told us
                raise
            record = await self._prepare(request)
        self._crash("done")
        return ready_devices(record)

    async def _prepare(self, request: ClaimRequest) -> ClaimRecord:
        async with self._store.lease():
            if self._loads != self._store.loads:
                # Another instance has prepared or given back something, and its instances are not in our inventory.
                await self._look()
            plan = self._plan(request)
            if plan.done:
                if await self._confirm(plan.record):
                    return plan.record
                plan = self._plan(request)
            self._store.reserve(plan.record)
            try:
                if plan.is_delicate:
                    return await self._change(request, plan)
                record = self._complete(plan, ())
                await self._store.sync()
                return record
            except BaseException:
                self._store.release(request.uid)
                raise

    async def _confirm(self, record: ClaimRecord) -> bool:
        """Say once more that a claim is prepared; false where a sweep that took it for gone was faster."""
        async with self._executor.holding(device.holding.gpu_uuid for device in record.devices):
            if self._store.checkpoint.get(record.uid) != record:
                return False
            self._leftovers.forget(record.uid)
            self._ensure_cdi(record)
        await self._store.sync()
        return True

    def _plan(self, request: ClaimRequest) -> PreparePlan:
        # For what is only reserved nothing has been made: whatever lies at its placements is somebody else's.
        basis = request, self._executor.inventory, self._store.without_reservation(request.uid)
        planned = self._planned  # another thread may be planning, too
        if planned is None or planned[0] != basis:
            planned = self._planned = basis, plan_prepare(*basis, self._boot_id)
        return planned[1]

    async def _change(self, request: ClaimRequest, plan: PreparePlan) -> ClaimRecord:
        """Prepare a claim whose GPUs must be held; what fails is undone by what the hardware then shows.

        An intent is synced while the hardware works. From it, recovery makes again what a power cut takes: the
        instances, and the record of them.
        """
        gpus = {device.holding.gpu_uuid for device in plan.record.devices}
        loop = asyncio.get_running_loop()
        intent = 0

        def decide() -> tuple[HardwareStep, ...]:
            # An admin, or the claim that had the GPU until now, may have changed what this plan was made on. After the
            # intent is written, whatever lies at its placements counts as ours; and an admin's instance that a claim is
            # given must be the one that is there now, for ids are reused.
            nonlocal plan, intent
            plan = self._plan(request)
            if not gpus.issuperset(device.holding.gpu_uuid for device in plan.record.devices):
                raise Retryable(f"claim {request.claim}: its devices are numbered anew, and are on other GPUs now")
            if plan.steps:
                intent = self._store.put(plan.record)
                loop.call_soon_threadsafe(self._store.begin_sync)
                self._crash("intent")
            return plan.steps

        async with self._executor.holding(gpus):
            try:
                made = await self._executor.change(gpus, decide)
                record = self._complete(plan, made)
            except PartitaError:
                if intent:
                    await self._undo(plan.record)
                raise
        await self._store.sync(intent)
        return record

    def _complete(self, plan: PreparePlan, results: Sequence[MigInstance | None]) -> ClaimRecord:
        """Record and CDI file, in this order: no file is without a record.

        After a kill the record is in the kernel's cache, and recovery writes the CDI file (`keep`). A power cut before
        the sync may take the record, and the CDI directory, which is in memory; where that is on a disk, recovery
        rebuilds the journal from the file without record.
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
            await self._release(record, lambda: True)
            # Nobody waits for the disk: what a power cut brings back of it, the sweep after the start finds gone.
            self._store.sync_soon()
        self._crash("removed")

    async def _release(self, record: ClaimRecord, condition: Callable[[], bool]) -> bool:
        """False where the record has changed meanwhile (somebody asked for the claim again, or gave it back), or the
        condition does not hold any more."""
        async with self._executor.holding(device.holding.gpu_uuid for device in record.devices):
            if self._store.checkpoint.get(record.uid) != record or not condition():
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
        self._leftovers.forget(uid)

    def _ensure_cdi(self, record: ClaimRecord) -> None:
        """Another version of NVIDIA's driver has other files, which a container needs when it is started again."""
        self._cdi.ensure(
            cdi_file_name(NVIDIA_CDI_VENDOR, record.uid),
            encode_cdi_spec(record, self._executor.inventory, self._files.tree),
        )

    def _renew_cdi(self) -> None:
        """At the next look again, where the disk had no room."""
        if self._files.tree is self._shown_tree:
            return
        completed = [r for r in self._store.checkpoint.records.values() if r.state is ClaimState.COMPLETED]
        if sum(self._try_to_ensure_cdi(record) for record in completed) == len(completed):  # every one is tried
            self._shown_tree = self._files.tree

    def _try_to_ensure_cdi(self, record: ClaimRecord) -> bool:
        """False where that may succeed later."""
        try:
            self._ensure_cdi(record)
        except PartitaError as error:
            log.error("no_cdi_file", extra={"claim": record.claim, "claim_uid": record.uid, "error": str(error)})
            return not isinstance(error, Retryable)
        return True

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
        def on_event(gpu_uuid: str, xid: int) -> None:
            log.error("xid", extra={"driver": self.name, "gpu": gpu_uuid, "xid": xid})
            self._observe(observe_event(self._health, gpu_uuid, xid, self._ignored_xids), changed)

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._executor.watch_events(on_event))
            tasks.create_task(self._rescan(changed))
            tasks.create_task(self._leftovers.run(changed))

    def _observe(self, health: NodeHealth, changed: Callable[[], None]) -> None:
        if health != self._health:
            self._health = health
            changed()

    async def _rescan(self, changed: Callable[[], None]) -> None:
        """Hardware that appears, disappears or is repartitioned by an admin shows within a few seconds."""
        failed = 0
        while True:
            await asyncio.sleep(self._rescan_interval_s)
            before, known = self._executor.inventory, self._store.checkpoint
            try:
                # Under the lease what another instance has made has its record here, and is not taken for an admin's.
                async with self._store.lease():
                    inventory = await self._look()
                failed = 0
            except PartitaError as error:
                log.error("rescan_failed", extra={"driver": self.name, "error": str(error)})
                failed = failed + 1 if isinstance(error, LibraryMissing) else 0
                if failed < _GONE_AFTER:
                    continue
                inventory = self._executor.lose(str(error))
            if inventory != before or self._store.checkpoint is not known:
                changed()
            self._observe(observe_inventory(self._health, inventory), changed)
            if failed:
                continue
            await self._files.read_again(inventory)
            self._renew_cdi()

    async def _look(self) -> Inventory:
        """Read all hardware, under the lease: then nobody else is about to change it."""
        loads = self._store.loads
        inventory = await self._executor.rescan()
        self._loads = loads
        return inventory
