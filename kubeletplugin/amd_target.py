"""What this node's Node object asks of its AMD GPUs.

The controller asks for modes of the whole node in one annotation, and is answered in another. An administrator says by
a label whether claims may change modes here, whatever the other nodes do.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from pydantic import ValidationError

from api.client import Client, Json, path
from api.errors import PartitaError, Retryable
from api.kaiwo import DCM_PROFILE_LABEL, REPORT_ANNOTATION, TARGET_ANNOTATION, Target, TargetReport
from kubeletplugin.hardware.backend import DeviceBusy
from kubeletplugin.model.amd_partitions import AmdInventory
from kubeletplugin.model.amd_prepare import AmdStep
from kubeletplugin.model.amd_target import plan_target
from kubeletplugin.model.checkpoint import Checkpoint

log = logging.getLogger(__name__)

POLICY_LABEL: Final = "partita/amd-partitioning"
_POLICIES: Final = ("on-claim", "static")
_LOOK_LIMIT_S: Final = 5.0
_TRIES: Final = 5
_PAUSE_S: Final = 5.0
_UNFOLLOWED_S: Final = 30.0


class NodeTarget:
    """The target of this node, and its policy."""

    def __init__(self, node: str, client: Client, on_claim: bool) -> None:
        self.may_change = on_claim
        """Whether claims may change modes now: neither the node's policy nor a target of its own forbids it."""
        self._node = node
        self._client = client
        self._on_claim = on_claim
        self._target: Target | None = None
        self._modes: tuple[str | None, ...] = ()
        self._answered = ""

    async def look(self) -> None:
        """Once, before anything is offered; `run` follows. Without an answer, all nodes' policy is this node's."""
        try:
            async with asyncio.timeout(_LOOK_LIMIT_S):
                self._read(await self._client.get(path("v1", "nodes", name=self._node)))
        except (PartitaError, TimeoutError) as error:
            log.warning("node_not_read", extra={"error": str(error)})

    def _read(self, node: Json) -> None:
        annotations, labels = (node["metadata"].get(key) or {} for key in ("annotations", "labels"))
        self._target = _read_target(annotations)
        is_pinned = TARGET_ANNOTATION in annotations or DCM_PROFILE_LABEL in labels
        self.may_change = _read_policy(labels, self._on_claim) and not is_pinned

    def plan(self, inventory: AmdInventory, checkpoint: Checkpoint) -> tuple[AmdStep, ...]:
        """Raises as `plan_target` does."""
        return plan_target(inventory, checkpoint, self._target.modes) if self._target else ()

    def observe(self, inventory: AmdInventory) -> None:
        """What the hardware is after the steps; goes into the answer."""
        self._modes = tuple(gpu.mode.profile if gpu.mode else None for gpu in inventory.gpus)

    async def run(self, reach: Callable[[], Awaitable[None]]) -> None:
        """Follow the Node until cancelled, and reach every target that has not been answered."""
        while True:
            try:
                await self._follow(reach)
            except PartitaError as error:  # the GPUs serve claims without the controller's word
                log.error("node_not_followed", extra={"error": str(error)})
            await asyncio.sleep(_UNFOLLOWED_S)

    async def _follow(self, reach: Callable[[], Awaitable[None]]) -> None:
        events = self._client.list_watch(path("v1", "nodes"), field_selector=f"metadata.name={self._node}")
        async for kind, payload in events:
            for node in payload if kind == "SYNC" else [payload]:
                if kind != "DELETED":
                    await self._take(node, reach)

    async def _take(self, node: Json, reach: Callable[[], Awaitable[None]]) -> None:
        before = self.may_change
        self._read(node)
        answer = _read_report(node["metadata"].get("annotations") or {})
        if self._target is None:
            if before != self.may_change:
                await self._try(reach)
            return
        if answer is not None and answer.id == self._target.id and answer.state != "working":
            self._answered = answer.id
        if self._answered == self._target.id:
            return
        await self._report("working", "")
        error = await self._try(reach)
        await self._report("failure" if error else "success", error)
        self._answered = self._target.id

    async def _try(self, reach: Callable[[], Awaitable[None]]) -> str:
        """Empty, or why it could not be reached. A holder may be about to let go, so what is busy is tried again."""
        for attempt in range(1, _TRIES + 1):
            try:
                await reach()
                return ""
            except PartitaError as error:
                log.warning("target_not_reached", extra={"error": str(error), "attempt": attempt})
                if attempt == _TRIES or not isinstance(error, Retryable | DeviceBusy):
                    return str(error)
            await asyncio.sleep(_PAUSE_S)
        return ""

    async def _report(self, state: str, message: str) -> None:
        assert self._target is not None
        report = {"id": self._target.id, "state": state, "message": message, "modes": list(self._modes)}
        text = TargetReport.model_validate(report).model_dump_json(by_alias=True)
        body = {"metadata": {"annotations": {REPORT_ANNOTATION: text}}}
        while True:
            try:
                await self._client.patch(path("v1", "nodes", name=self._node), body, "application/merge-patch+json")
                return
            except PartitaError as error:
                log.warning("target_not_answered", extra={"error": str(error)})
                await asyncio.sleep(_PAUSE_S)


def _read_policy(labels: Json, on_claim: bool) -> bool:
    """Whether claims may change modes. `on_claim`: where the node has no policy of its own."""
    policy = labels.get(POLICY_LABEL)
    if policy not in (None, *_POLICIES):
        log.error("policy_unknown", extra={"label": POLICY_LABEL, "value": policy, "known": _POLICIES})
    return policy == "on-claim" if policy in _POLICIES else on_claim


def _read_target(annotations: Json) -> Target | None:
    text = annotations.get(TARGET_ANNOTATION)
    try:
        return Target.model_validate_json(text) if text else None
    except ValidationError as error:
        log.error("target_unreadable", extra={"annotation": TARGET_ANNOTATION, "error": error.errors()[0]["msg"]})
        return None


def _read_report(annotations: Json) -> TargetReport | None:
    text = annotations.get(REPORT_ANNOTATION)
    try:
        return TargetReport.model_validate_json(text) if text else None
    except ValidationError:
        log.warning("report_unreadable")  # written by another version of this program: answer anew
        return None
