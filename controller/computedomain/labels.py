"""The node label `nvidia.com/gpu.clique`, by which pods ask for nodes of one NVLink clique.

Where NVIDIA's GPU Feature Discovery runs, it sets the label, and what it wrote stays. Elsewhere the label follows what
the node plugins publish, also when a node moves to another rack.
"""

import asyncio
import logging
from dataclasses import dataclass
from typing import Any, Final

from api.client import Client, path
from api.names import GPU_CLIQUE_NODE_LABEL
from controller.computedomain.reconcile import ComputeDomains
from controller.computedomain.state import NodeFabric
from controller.loop import WorkQueue
from controller.observe import Cache

log = logging.getLogger(__name__)

MANAGER: Final = "partita-clique-labels"
"""Field manager (server-side apply): the API server then knows which labels are ours."""
WORKERS: Final = 4


@dataclass(frozen=True, slots=True)
class NodeLabel:
    """What a Node carries."""

    node: str
    uid: str
    value: str
    """"" is none."""
    ours: bool
    """Whether Partita wrote it."""


def parse_node(raw: dict[str, Any]) -> NodeLabel:
    """From a Node's metadata."""
    metadata = raw["metadata"]
    owned = (
        entry.get("fieldsV1", {}).get("f:metadata", {}).get("f:labels", {})
        for entry in metadata.get("managedFields") or ()
        if entry.get("manager") == MANAGER
    )
    ours = any(f"f:{GPU_CLIQUE_NODE_LABEL}" in labels for labels in owned)
    return NodeLabel(
        metadata["name"], metadata["uid"], (metadata.get("labels") or {}).get(GPU_CLIQUE_NODE_LABEL, ""), ours
    )


def plan_label(label: NodeLabel, fabric: NodeFabric | None) -> str | None:
    """What the label is to become, "" for none; None where it stays: it is right, another's, or the plugin is away."""
    if fabric is None or fabric.clique_id == label.value or (label.value and not label.ours):
        return None
    return fabric.clique_id


class CliqueLabels:
    """Watches what nodes publish and what they carry, and writes where these differ."""

    def __init__(self, client: Client, domains: ComputeDomains) -> None:
        """What nodes publish is watched for the domains already."""
        self._client = client
        self.queue = WorkQueue()
        self._nodes: Cache[NodeLabel] = Cache(path("v1", "nodes"), parse_node, {}, metadata_only=True)
        self._fabric = domains.fabric
        domains.tell_of_fabric = self.queue.add

    @property
    def synced(self) -> bool:
        return self._nodes.synced.is_set() and self._fabric.synced.is_set()

    async def run(self) -> None:
        """Work until cancelled; nothing is written before both caches have been filled once."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._nodes.run(self._client, lambda label: self.queue.add(label.node)))
            await self._nodes.synced.wait()
            await self._fabric.synced.wait()
            group.create_task(self.queue.run(self._reconcile, WORKERS))

    async def _reconcile(self, node: str) -> None:
        label = self._nodes.get("", node)
        if label is None:
            return
        value = plan_label(label, next(self._fabric.find("node", node), None))
        if value is None:
            return
        labels = {GPU_CLIQUE_NODE_LABEL: value} if value else {}
        # With its UID, or a Node that has gone meanwhile would come back.
        metadata = {"name": node, "uid": label.uid, "labels": labels}
        body = {"apiVersion": "v1", "kind": "Node", "metadata": metadata}
        await self._client.apply(path("v1", "nodes", name=node), body, fieldManager=MANAGER)
        log.info("node_labelled", extra={"node": node, "clique": value})
