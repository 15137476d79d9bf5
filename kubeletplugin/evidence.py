"""A journal that cannot be read: what the API server knows about the node's claims, and a new one in its place."""

import asyncio
import logging
from dataclasses import dataclass
from typing import Final

from api.client import ApiError, Client, Json, path
from api.errors import StateUnreadable
from api.events import Recorder, node_reference
from api.names import DRA_API_VERSION
from kubeletplugin.files import Store
from kubeletplugin.model.checkpoint import Checkpoint

log = logging.getLogger(__name__)

_RETRY_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Evidence:
    """All claims there are, and what the node has published of itself."""

    claims: list[Json]
    static_uuids: frozenset[str] | None
    """UUIDs of the MIG instances that were published as an admin's; None where nothing is published."""


async def gather_evidence(client: Client, driver: str, node: str) -> Evidence:
    """Waits for the API server for as long as it takes: without its word nothing may be taken for free."""
    claims = await _list_until_answered(client, path(DRA_API_VERSION, "resourceclaims"))
    query = {"fieldSelector": f"spec.driver={driver},spec.nodeName={node}"}
    slices = await _list_until_answered(client, path(DRA_API_VERSION, "resourceslices"), **query)
    return Evidence(claims, _static_uuids(slices) if slices else None)


def adopt_rebuilt(
    store: Store, checkpoint: Checkpoint, events: Recorder, driver: str, node: str, why: StateUnreadable
) -> None:
    """Keep the unreadable journal aside, go on with this, and tell the node's people. Raises OSError, DiskFull."""
    aside = store.set_aside()
    store.adopt(checkpoint)
    message = f"{why}; set aside as {aside}, {len(checkpoint.records)} claims recovered"
    log.error("checkpoint_rebuilt", extra={"driver": driver, "error": message})
    events.warn(node_reference(node), "CheckpointRebuilt", "Recover", message)


async def _list_until_answered(client: Client, where: str, **query: str) -> list[Json]:
    while True:
        try:
            return await client.list(where, **query)
        except ApiError as error:
            log.error("waiting_for_api_server", extra={"path": where, "error": str(error)})
            await asyncio.sleep(_RETRY_S)


def _static_uuids(slices: list[Json]) -> frozenset[str]:
    attributes = [device.get("attributes") or {} for item in slices for device in (item["spec"].get("devices") or ())]
    return frozenset(
        found["uuid"]["string"]
        for found in attributes
        if (found.get("type") or {}).get("string") == "mig" and "string" in (found.get("uuid") or {})
    )
