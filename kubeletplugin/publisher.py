"""ResourceSlices of one driver: watches its own, and writes until they say what the driver offers."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from api.client import ApiError, Client, Invalid, Json, NotFound, back_off_s, path
from api.errors import PartitaError
from api.events import Recorder, node_reference
from api.names import DRA_API_VERSION
from api.resources import NodeView, view_node
from kubeletplugin.driver import NodeDriver
from kubeletplugin.metrics import DEVICES, PUBLISH_DURATION, PUBLISH_ERRORS, SLICES
from kubeletplugin.model.devices import Features
from kubeletplugin.model.slices import (
    CreateSlice,
    DeleteSlice,
    SliceAction,
    SliceSpec,
    UpdateSlice,
    build_slices,
    dropped_features,
    plan_publication,
    refuses_informing_taints,
    wants_counters_joined,
)
from kubeletplugin.server import HealthBoard

log = logging.getLogger(__name__)

_QUIET_S: Final = 0.3  # several claims at once change the order of devices once
_PATIENCE_S: Final = 5.0  # under a steady stream of claims, which never is quiet
_CREATES_AT_ONCE: Final = 8  # round trips overlap; more at once would only queue in the API server
_FEATURE_FIELDS: Final = {
    "DRAPartitionableDevices": "partitionable",
    "DRADeviceTaints": "taints",
    "DRAConsumableCapacity": "shared",
    "DRADeviceBindingConditions": "binding",
}


class Publisher:
    """Level-triggered: `changed()` is the only input; everything else is read when it is needed."""

    def __init__(self, driver: NodeDriver, client: Client, events: Recorder, node: str, health: HealthBoard) -> None:
        self._driver = driver
        self._client = client
        self._events = events
        self._node_name = node
        self._health = health
        self._features = Features()
        self._node: NodeView | None = None
        """None where it must be read: the garbage collector removes slices whose owner has another UID by now."""
        self._stored: dict[str, Json] = {}
        self._synced = asyncio.Event()
        self._wake = asyncio.Event()
        self._notes: tuple[str, ...] = ()
        self.published = asyncio.Event()

    def changed(self) -> None:
        """The driver's offer or health may be another now."""
        self._wake.set()

    async def run(self, permission: Awaitable[None]) -> None:
        """Keep the slices right until cancelled; write none before `permission` has been given."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._watch())
            tasks.create_task(self._publish_for_ever(permission))

    async def _watch(self) -> None:
        selector = f"spec.driver={self._driver.name},spec.nodeName={self._node_name}"
        delays = back_off_s()
        while True:
            try:
                async for kind, obj in self._client.list_watch(
                    path(DRA_API_VERSION, "resourceslices"), field_selector=selector
                ):
                    self._observe(kind, obj)
            except ApiError as error:
                log.error("slices_not_watched", extra={"driver": self._driver.name, "error": str(error)})
            await asyncio.sleep(next(delays))

    def _observe(self, kind: str, obj: Any) -> None:
        if kind == "SYNC":
            before, self._stored = self._stored, {}
            for item in obj:
                self._remember(item)
            if before.keys() - self._stored.keys():
                self._node = None
            self._synced.set()
        elif kind == "DELETED":
            known = self._stored.get(obj["metadata"]["name"])
            if known is not None and known["metadata"]["uid"] == obj["metadata"]["uid"]:
                del self._stored[obj["metadata"]["name"]]
                self._node = None  # this was not us: perhaps the Node was deleted, and made anew
        elif not self._is_older(obj):
            self._remember(obj)
        else:
            return  # an echo of a write of ours
        self._wake.set()

    def _remember(self, obj: Json) -> None:
        obj["metadata"].pop("managedFields", None)  # nobody here reads it, and it is not small
        self._stored[obj["metadata"]["name"]] = obj

    def _is_older(self, obj: Json) -> bool:
        """Whether we know this object as newer or the same already, from the answer to our own write."""
        known = self._stored.get(obj["metadata"]["name"])
        if known is None or known["metadata"]["uid"] != obj["metadata"]["uid"]:
            return False
        return int(obj["metadata"]["resourceVersion"]) <= int(known["metadata"]["resourceVersion"])

    async def _publish_for_ever(self, permission: Awaitable[None]) -> None:
        self._node = await self._read_node()
        await self._synced.wait()
        await permission
        delays = back_off_s()
        while True:
            self._wake.clear()
            try:
                self._node = self._node or await self._read_node()
                await self._publish(self._node)
                delays = back_off_s()
            except PartitaError as error:
                PUBLISH_ERRORS.labels(self._driver.name, error.reason).inc()
                delay_s = next(delays)
                log.warning(
                    "not_published",
                    extra={"driver": self._driver.name, "error": str(error), "retry_in_s": round(delay_s, 2)},
                )
                await asyncio.sleep(delay_s)
                continue
            await self._wait_until_quiet()

    async def _wait_until_quiet(self) -> None:
        await self._wake.wait()
        deadline_s = time.monotonic() + _PATIENCE_S
        while self._wake.is_set() and time.monotonic() < deadline_s:
            self._wake.clear()
            # Sleeping, not waiting: under a stream of claims nobody is woken up for each of them.
            await asyncio.sleep(_QUIET_S)

    async def _read_node(self) -> NodeView:
        delays = back_off_s()
        while True:
            try:
                return view_node(await self._client.get(path("v1", "nodes", name=self._node_name)))
            except ApiError as error:
                log.warning("node_not_read", extra={"node": self._node_name, "error": str(error)})
            await asyncio.sleep(next(delays))

    async def _publish(self, node: NodeView) -> None:
        """One pass. Raises ApiError, InvalidObject."""
        started_s = time.perf_counter()
        offered = self._driver.offer(self._features)
        self._health.show(self._driver.health())
        if offered.notes != self._notes:
            self._notes = offered.notes
            for note in offered.notes:
                log.warning("not_offered", extra={"driver": self._driver.name, "note": note})
        desired = build_slices(
            self._driver.name, node.name, node.name, offered, counters_apart=self._features.counters_apart
        )
        actions = plan_publication(tuple(self._stored.values()), desired, node)
        for batch in _batches(actions):
            results = await asyncio.gather(*(self._try(action) for action in batch), return_exceptions=True)
            # After all have ended, so that none is under way when the next pass begins.
            if True in results:
                # The server dropped fields, or refused: what was meant is not what it would offer. Begin again.
                self._wake.set()
                return
            for result in results:
                if isinstance(result, BaseException):
                    raise result
        SLICES.labels(self._driver.name).set(len(desired))
        DEVICES.labels(self._driver.name).set(sum(len(group.devices) for group in offered.groups))
        self.published.set()
        if actions:
            took_s = time.perf_counter() - started_s
            PUBLISH_DURATION.labels(self._driver.name).observe(took_s)
            log.info(
                "published",
                extra={
                    "driver": self._driver.name,
                    "slices": len(desired),
                    "writes": len(actions),
                    "took_ms": round(took_s * 1e3, 1),
                },
            )

    async def _try(self, action: SliceAction) -> bool:
        """As `_apply`; also true where the server turned out to want another layout."""
        try:
            return await self._apply(action)
        except Invalid as error:
            if self._features.counters_apart and wants_counters_joined(str(error)):
                log.info("counters_joined", extra={"driver": self._driver.name})
                self._features = replace(self._features, counters_apart=False)
            elif self._features.informing and refuses_informing_taints(str(error)):
                log.info("informing_taints_left_out", extra={"driver": self._driver.name})
                self._features = replace(self._features, informing=False)
            else:
                raise
        return True

    async def _apply(self, action: SliceAction) -> bool:
        """Write, and remember what came of it; true where the server turned out to lack a feature."""
        collection = path(DRA_API_VERSION, "resourceslices")
        match action:
            case DeleteSlice():
                try:
                    await self._client.delete(
                        f"{collection}/{action.name}", uid=action.uid, resource_version=action.resource_version
                    )
                except NotFound:
                    log.debug("slice_gone", extra={"slice": action.name})
                self._stored.pop(action.name, None)
                return False
            case UpdateSlice():
                written = await self._client.update(f"{collection}/{action.body['metadata']['name']}", action.body)
            case CreateSlice():
                written = await self._client.create(collection, action.body)
        self._remember(written)
        return self._degrade(action.body["spec"], written["spec"])

    def _degrade(self, wanted: SliceSpec, written: Mapping[str, Any]) -> bool:
        dropped = dropped_features(wanted, written)
        fields = {_FEATURE_FIELDS[gate] for gate in dropped if gate in _FEATURE_FIELDS}
        missing = {field for field in fields if getattr(self._features, field)}
        if not missing:
            return False
        self._features = replace(self._features, **dict.fromkeys(missing, False))
        gates = ", ".join(sorted(dropped))
        message = (
            f"the API server drops fields of feature gate {gates}; {self._driver.name} offers only what works without "
            "(no partitions on demand, no device taints respectively) until the gate is on and this plugin restarted"
        )
        log.error("features_missing", extra={"driver": self._driver.name, "gates": gates, "error": message})
        self._events.warn(node_reference(self._node_name), "FeatureGateOff", "Publish", message)
        return True


def _batches(actions: Sequence[SliceAction]) -> Iterator[Sequence[SliceAction]]:
    """New slices are created several at a time; all else goes in order, and so does the first write, which tells what
    the server lacks."""
    creates = [action for action in actions[1:] if isinstance(action, CreateSlice)]
    in_order = actions[: len(actions) - len(creates)]  # creates come last in every plan
    yield from ((action,) for action in in_order)
    for start in range(0, len(creates), _CREATES_AT_ONCE):
        yield creates[start : start + _CREATES_AT_ONCE]
