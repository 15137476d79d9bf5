"""Is this node connected to its peers? Read from what `nvidia-imex-ctl -N -j` prints. Pure.

Its vocabulary (NVIDIA's IMEX guide): a domain is UP, DEGRADED or DOWN; a node READY, UNAVAILABLE or on its way; a
connection CONNECTED, RECOVERING, INVALID, and more that all mean "not connected". The domain's word says nothing here:
with names for members that are not there it is always DEGRADED. What counts is this node's own row.
"""

import json
from dataclasses import dataclass
from typing import Any

from kubeletplugin.imexdaemon.config import NodeTable


@dataclass(frozen=True, slots=True)
class Readiness:
    """`message` says what is missing; `responding` is False while the local nvidia-imex answers nothing."""

    ready: bool
    message: str
    connected: frozenset[int] = frozenset()
    """Node IDs of the peers that this node is connected to."""
    responding: bool = True
    lagging: bool = False
    """All peers are up, and this node is not connected to all of them: its next attempt may be up to a second away.

    Not before all are up: nvidia-imex can be hastened once in five seconds.
    """


def check_readiness(output: str, table: NodeTable, told: NodeTable) -> Readiness:
    """`output` is of `nvidia-imex-ctl -N -j`; anything else than its JSON is "not ready", never an error.

    `told`: what nvidia-imex knows. A connection to where a peer was before is none to the peer.
    """
    nodes = _parse_nodes(output)
    own = nodes.get(str(table.own_index))
    if own is None:
        return Readiness(False, "nvidia-imex-ctl reports nothing about this node", responding=False)
    state = str(own.get("status", ""))
    if state != "READY":
        return Readiness(False, f"nvidia-imex is {state or 'silent'}", responding=state not in ("", "UNAVAILABLE"))
    known = frozenset(index for index in table.peers if told.address(index) == table.address(index))
    connected = frozenset(index for index in known if _is_connected(nodes, table.own_index, index))
    missing = sorted(table.required - connected)
    if missing:
        names = ", ".join(f"{index} ({table.addresses[index]})" for index in missing[:4])
        more = f" and {len(missing) - 4} more" if len(missing) > 4 else ""
        up = all(nodes.get(str(index), {}).get("status") == "READY" for index in missing)
        message = f"not connected to node {names}{more} of {len(table.peers)} peers"
        return Readiness(False, message, connected, lagging=up)
    return Readiness(True, f"connected to {len(connected)} of {len(table.peers)} peers", connected)


def _parse_nodes(output: str) -> dict[str, Any]:
    try:
        document = json.loads(output)
    except ValueError:
        return {}
    nodes = document.get("nodes") if isinstance(document, dict) else None
    if not isinstance(nodes, dict):
        return {}
    return {str(index): node for index, node in nodes.items() if isinstance(node, dict)}


def _is_connected(nodes: dict[str, Any], own: int, peer: int) -> bool:
    """Both ways, as far as the peer can be asked: one that cannot be reached for its state reports INVALID for all."""
    there = _link(nodes, own, peer)
    back = _link(nodes, peer, own)
    asked = nodes.get(str(peer), {}).get("status", "UNAVAILABLE") != "UNAVAILABLE"
    return there == "CONNECTED" and (back == "CONNECTED" or not asked)


def _link(nodes: dict[str, Any], start: int, end: int) -> str:
    connections = nodes.get(str(start), {}).get("connections")
    link = connections.get(str(end)) if isinstance(connections, dict) else None
    return str(link.get("status", "")) if isinstance(link, dict) else ""
