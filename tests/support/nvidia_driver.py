"""NVIDIA's own DRA driver on one simulated node, in place of Partita's plugin."""

from bench.nvidia import NvidiaNode
from bench.objects import RESOURCE_API

from api.client import path
from tests.support.go_tools import built
from tests.support.plugin_world import NodeWorld


async def hand_over(it: NodeWorld) -> None:
    """Partita leaves the node, and NVIDIA's driver comes: with the same hardware, directories and names."""
    built("nvidia-dra-driver")
    if it.node.is_running():
        it.node.end()
    for item in await it.slices():
        await it.client.delete(path(RESOURCE_API, "resourceslices", name=item["metadata"]["name"]))
    node = it.node
    it.node = NvidiaNode(node.name, node.base, "none", node.kubeconfig, None, node.driver)
    await it.start()
