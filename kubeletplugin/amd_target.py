"""What the controller asks of this node as a whole: read from an annotation of the Node, answered in another."""

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

_TRIES: Final = 5
_PAUSE_S: Final = 5.0
_UNFOLLOWED_S: Final = 30.0


class NodeTarget:
    """The target of this node; `is_set` from the first time that it is seen."""

    def __init__(self, node: str, client: Client) -> None:
        self.is_set = False
        self._node = node
        self._client = client
        self._target: Target | None = None
        self._modes: tuple[str | None, ...] = ()
        self._answered = ""

    def plan(self, inventory: AmdInventory, checkpoint: Checkpoint) -> tuple[AmdStep, ...]:
        """Raises InvalidObject or Busy."""
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
        annotations = node["metadata"].get("annotations") or {}
        was_set = self.is_set
        self.is_set = TARGET_ANNOTATION in annotations or DCM_PROFILE_LABEL in (node["metadata"].get("labels") or {})
        self._target = _read_target(annotations)
        answer = _read_report(annotations)
        if self._target is None:
            if was_set != self.is_set:
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
