"""The driver `gpu.nvidia.com`: NVIDIA GPUs and MIG devices of this node."""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Final

from api.client import ApiError, Client, Json, NotFound, path
from api.errors import Busy, HardwareError, InvalidObject, PartitaError, StateUnreadable
from api.names import NVIDIA_CDI_VENDOR, NVIDIA_GPU_DRIVER
from api.resources import allocated_devices
from kubeletplugin.driver import CLAIM_API
from kubeletplugin.events import Recorder
from kubeletplugin.executor import Executor
from kubeletplugin.files import CdiFiles, CrashPoint, Store
from kubeletplugin.hardware.tree import DriverRoot, read_driver_tree
from kubeletplugin.metrics import show_prepared
from kubeletplugin.model.cdi import DriverTree, cdi_file_name, check_libraries, encode_cdi_spec
from kubeletplugin.model.checkpoint import ClaimRecord, MigHolding
from kubeletplugin.model.claims import ClaimRequest, parse_claim, parse_config
from kubeletplugin.model.devices import DeviceSet, Features, build_devices
from kubeletplugin.model.health import IGNORED_XIDS, NodeHealth, observe_event, observe_inventory
from kubeletplugin.model.mig import gpu_device_name
from kubeletplugin.model.prepare import (
    PreparePlan,
    complete,
    plan_prepare,
    plan_recovery,
    plan_unprepare,
)
from kubeletplugin.model.rebuild import rebuild_checkpoint, unrecorded_claims
from kubeletplugin.server import ClaimRef, DeviceHealth, ReadyDevice

log = logging.getLogger(__name__)

_MISSING_RETRY_S: Final = 5.0
_SWEEP_INTERVAL_S: Final = 600.0


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
        root: DriverRoot,
        crash: CrashPoint,
        ignored_xids: frozenset[int],
        rescan_interval_s: float,
        boot_id_path: Path,
    ) -> None:
        self._node = node
        self._client = client
        self._events = events
        self._executor = executor
        self._store = store
        self._cdi = cdi
        self._root = root
        self._crash = crash
        self._ignored_xids = IGNORED_XIDS | ignored_xids
        self._rescan_interval_s = rescan_interval_s
        self._boot_id_path = boot_id_path
        self._boot_id = ""
        self._tree = DriverTree("/", "/")
        self._lack: str | None = None
        self._health = NodeHealth()
        self._offered: tuple[str, ...] = ()

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
        self._read_tree()
        self._health = observe_inventory(self._health, self._executor.inventory)
        delay_s = _MISSING_RETRY_S
        while True:
            try:
                async with self._store.lease():
                    await self._recover_claims()
                return
            except StateUnreadable as error:
                await self._rebuild(error)
            except (PartitaError, OSError) as error:
                log.error("recovery_failed", extra={"driver": self.name, "error": str(error), "retry_in_s": delay_s})
                await asyncio.sleep(delay_s)

    async def _recover_claims(self) -> None:
        lost = unrecorded_claims(self._store.checkpoint, [uid for uid, _ in self._cdi.read_all()])
        if lost:
            raise StateUnreadable(f"{self._store.path}: claims {', '.join(lost)} have CDI files but no record")
        plan = plan_recovery(self._store.checkpoint, self._executor.inventory, self._boot_id)
        for undo in plan.undo:
            log.info("undoing", extra={"claim": undo.record.claim, "claim_uid": undo.record.uid})
            await self._executor.run(undo.steps)
            self._forget(undo.record.uid)
        for redo in plan.redo:
            log.info("preparing_again", extra={"claim": redo.record.claim, "claim_uid": redo.record.uid})
            try:
                await self._carry_out(redo)
            except HardwareError as error:
                log.error("not_prepared_again", extra={"claim": redo.record.claim, "error": str(error)})
        for record in plan.keep:
            self._ensure_cdi(record)
        for record, why in plan.failed:
            log.error("not_prepared_again", extra={"claim": record.claim, "claim_uid": record.uid, "error": why})
        await self._store.sync()

    async def _rebuild(self, error: StateUnreadable) -> None:
        """Set the journal aside and make it anew from claims, CDI files and hardware; nothing is taken for empty."""
        claims = await self._list_until_answered(path(CLAIM_API, "resourceclaims"))
        query = {"fieldSelector": f"spec.driver={self.name},spec.nodeName={self._node}"}
        slices = await self._list_until_answered(path(CLAIM_API, "resourceslices"), **query)
        checkpoint = rebuild_checkpoint(
            self.name,
            self._node,
            claims,
            dict(self._cdi.read_all()),
            self._executor.inventory,
            self._boot_id,
            _static_uuids(slices),
        )
        aside = self._store.set_aside()
        self._store.adopt(checkpoint)
        message = f"{error}; set aside as {aside}, {len(checkpoint.records)} claims recovered"
        log.error("checkpoint_rebuilt", extra={"driver": self.name, "error": message})
        self._events.warn(self._node_reference(), "CheckpointRebuilt", "Recover", message)

    async def _list_until_answered(self, where: str, **query: str) -> list[Json]:
        while True:
            try:
                return await self._client.list(where, **query)
            except ApiError as error:
                log.error("waiting_for_api_server", extra={"driver": self.name, "error": str(error)})
                await asyncio.sleep(_MISSING_RETRY_S)

    # Claims

    async def prepare(self, claim: Json, ref: ClaimRef) -> tuple[ReadyDevice, ...]:
        request = parse_claim(claim, self.name, ref.uid, parse_config)
        async with self._store.lease():
            try:
                plan = self._plan(request)
            except Busy:
                # The holder may be a claim that went away while nobody told us.
                if not await self._sweep():
                    raise
                plan = self._plan(request)
            if plan.done:
                record = plan.record
                self._ensure_cdi(record)
            else:
                self._store.reserve(plan.record)
                try:
                    record = await (self._change(request, plan) if plan.steps else self._carry_out(plan))
                except BaseException:
                    self._store.release(request.uid)
                    raise
            await self._store.sync()
        self._crash("done")
        return _ready_devices(record)

    def _plan(self, request: ClaimRequest) -> PreparePlan:
        return plan_prepare(request, self._executor.inventory, self._store.checkpoint, self._boot_id)

    async def _change(self, request: ClaimRequest, plan: PreparePlan) -> ClaimRecord:
        """Prepare a claim that needs hardware steps; what fails is undone by what the hardware then shows."""
        gpus = {step.gpu_uuid for step in plan.steps}
        async with self._executor.holding(gpus):
            # An admin, or the claim that had the GPU until now, may have changed what this plan was made on: after the
            # intent is written, whatever lies at its placements counts as ours.
            await self._executor.refresh(gpus)
            plan = self._plan(request)
            self._store.put(plan.record)
            await self._store.sync()
            self._crash("intent")
            try:
                return await self._carry_out(plan)
            except PartitaError:
                await self._undo(plan.record)
                raise

    async def _carry_out(self, plan: PreparePlan) -> ClaimRecord:
        """Hardware, record, CDI file: the record is in the journal before the CDI file is, so that none is without one.

        The caller syncs afterwards and only then replies. A process killed after the record leaves it in the kernel's
        cache, and recovery writes the CDI file again (`keep`). A power cut before the sync may take the record: the CDI
        directory is in memory and goes with it, and where it is on a disk, a file without record makes recovery rebuild
        the journal from the record inside that file (`unrecorded_claims`). Hardware changes only after a synced intent.
        """
        results = await self._executor.run(plan.steps) if plan.steps else ()
        self._crash("hardware")
        record = complete(plan, results)
        spec = encode_cdi_spec(record, self._executor.inventory, self._tree)
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
            inventory = await self._executor.rescan()
            await self._executor.run(plan_unprepare(record, inventory, self._store.checkpoint))
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
            # A power cut that takes the removal brings the record back, and the sweep after the start finds its claim
            # gone. So nobody waits for the disk; the next claim's sync covers it, or one of its own.
            self._store.sync_soon()
        self._crash("removed")

    async def _release(self, record: ClaimRecord) -> None:
        async with self._executor.holding(device.holding.gpu_uuid for device in record.devices):
            steps = plan_unprepare(record, self._executor.inventory, self._store.checkpoint)
            if steps:
                await self._executor.run(steps)
            self._crash("undone")
            self._forget(record.uid)

    def _forget(self, uid: str) -> None:
        self._cdi.remove(cdi_file_name(NVIDIA_CDI_VENDOR, uid))
        self._crash("cdi_removed")
        self._store.remove(uid)

    async def _sweep(self) -> int:
        """Give back what claims hold that are gone from the API server, or no longer have these devices."""
        swept = 0
        for record in tuple(self._store.checkpoint.records.values()):
            where = path(CLAIM_API, "resourceclaims", namespace=record.namespace, name=record.name)
            try:
                claim = await self._client.get(where)
            except NotFound:
                claim = None
            if claim is not None and _still_holds(claim, record):
                continue
            if self._store.checkpoint.get(record.uid) is record:
                log.warning("stale_claim", extra={"claim": record.claim, "claim_uid": record.uid})
                await self._release(record)
                swept += 1
        return swept

    def _ensure_cdi(self, record: ClaimRecord) -> None:
        name = cdi_file_name(NVIDIA_CDI_VENDOR, record.uid)
        if not self._cdi.exists(name):
            self._cdi.write(name, encode_cdi_spec(record, self._executor.inventory, self._tree))

    # Publishing

    def offer(self, features: Features) -> DeviceSet:
        inventory, checkpoint = self._executor.inventory, self._store.checkpoint
        self._count()
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
            tasks.create_task(self._sweep_regularly(changed))

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
                    inventory = await self._executor.rescan()
            except PartitaError as error:
                log.error("rescan_failed", extra={"driver": self.name, "error": str(error)})
                continue
            if inventory != before or self._store.checkpoint is not known:
                changed()
            self._observe(observe_inventory(self._health, inventory), changed)
            try:
                self._use_tree(await asyncio.to_thread(read_driver_tree, self._root, inventory.driver_version))
            except OSError as error:
                log.error("driver_files_not_read", extra={"driver": self.name, "error": str(error)})

    async def _sweep_regularly(self, changed: Callable[[], None]) -> None:
        while True:
            try:
                async with self._store.lease():
                    if await self._sweep():
                        await self._store.sync()
                        changed()
            except (PartitaError, InvalidObject) as error:
                log.warning("sweep_failed", extra={"driver": self.name, "error": str(error)})
            await asyncio.sleep(_SWEEP_INTERVAL_S)

    def _read_tree(self) -> None:
        self._use_tree(read_driver_tree(self._root, self._executor.inventory.driver_version))

    def _use_tree(self, tree: DriverTree) -> None:
        """Nodes, tools, a hook or libraries may come later than we; claims do not wait for them."""
        inventory = self._executor.inventory
        if not tree.says_the_same_as(self._tree):
            self._tree = tree
        lack = check_libraries(self._tree, inventory.driver_version) if inventory.gpus else None
        if lack != self._lack:
            if lack:
                log.error("driver_libraries_missing", extra={"driver": self.name, "error": lack})
            else:
                log.info("driver_libraries_found", extra={"driver": self.name})
        if lack:
            self._events.warn(self._node_reference(), "DriverLibrariesMissing", "ReadDriver", lack)
        self._lack = lack

    def _node_reference(self) -> dict[str, str]:
        return {"apiVersion": "v1", "kind": "Node", "name": self._node, "uid": self._node}

    def _count(self) -> None:
        counts = Counter({"gpu": 0, "mig": 0})
        for record in self._store.checkpoint.records.values():
            counts.update("mig" if isinstance(device.holding, MigHolding) else "gpu" for device in record.devices)
        show_prepared(self._node, self.name, counts)


def _ready_devices(record: ClaimRecord) -> tuple[ReadyDevice, ...]:
    return tuple(
        ReadyDevice((device.request,), device.pool, device.device, device.cdi_ids, device.share_id)
        for device in record.devices
    )


def _still_holds(claim: Json, record: ClaimRecord) -> bool:
    if claim["metadata"]["uid"] != record.uid:
        return False
    allocated = {result["device"] for result in allocated_devices(claim, record.driver)}
    return all(device.device in allocated for device in record.devices)


def _static_uuids(slices: list[Json]) -> frozenset[str]:
    """UUIDs of the MIG instances that were published as an admin's."""
    attributes = [device.get("attributes") or {} for item in slices for device in (item["spec"].get("devices") or ())]
    return frozenset(
        found["uuid"]["string"]
        for found in attributes
        if (found.get("type") or {}).get("string") == "mig" and "string" in (found.get("uuid") or {})
    )
