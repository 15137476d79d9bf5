"""The bridge of a cluster and the network namespaces of its nodes, by iproute2."""

import fcntl
import ipaddress
import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster.report import ClusterError
from cluster.shape import SLOTS, Cluster

LOCK = Path("/run")  # every machine has this folder, and a lock on it leaves nothing
NARROW = 12  # prefix length; a wider route (a VPN's 10.0.0.0/8) is only shadowed for our few addresses


def _ip(*arguments: str) -> str:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ClusterError(f"`ip {' '.join(arguments)}` failed: {done.stderr.strip()}")
    return done.stdout


@contextmanager
def choosing_addresses() -> Iterator[None]:
    """Held from the choice of a slot until its bridge exists, because the bridge's route marks the slot as taken."""
    lock = os.open(LOCK, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def choose_slot(preferred: int | None) -> int:
    """The first number whose networks this machine has no route to."""
    taken = []
    for route in json.loads(_ip("-json", "-4", "route", "show", "table", "all")):
        if route["dst"] != "default":
            network = ipaddress.ip_network(route["dst"], strict=False)
            if network.prefixlen >= NARROW:
                taken.append(network)
    for slot in range(SLOTS) if preferred is None else [preferred, *range(SLOTS)]:
        wanted = [ipaddress.ip_network(f"10.77.{slot}.0/24"), ipaddress.ip_network(f"10.{100 + slot}.0.0/16")]
        if not any(a.overlaps(b) for a in wanted for b in taken):
            return slot
    raise ClusterError("no free networks: 10.77.0.0/16 and 10.100.0.0 to 10.199.0.0 are all routed on this machine")


def bridge(identity: str) -> str:
    return f"{identity}br"


def namespace(identity: str, node: str) -> str:
    return f"{identity}-{node}"


def link(identity: str, node: str) -> str:
    """The host's end of a node's cable."""
    return f"{identity}{node}"


def create_bridge(cluster: Cluster) -> None:
    name = bridge(cluster.identity)
    _ip("link", "add", name, "type", "bridge")
    _ip("address", "add", f"{cluster.host_address}/24", "dev", name)
    _ip("link", "set", name, "up")
    _allow_forwarding(name)


def connect_node(cluster: Cluster, node: str) -> None:
    name, cable, others = namespace(cluster.identity, node), link(cluster.identity, node), cluster.shape.node_names()
    _ip("netns", "add", name)
    _ip("link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", name)
    _ip("link", "set", cable, "master", bridge(cluster.identity), "up")
    _ip("route", "replace", cluster.node_pods(node), "via", cluster.node_address(node))
    commands = [
        "link set lo up",
        f"address add {cluster.node_address(node)}/24 dev eth0",
        "link set eth0 up",
        f"route add default via {cluster.host_address}",
        *(
            f"route add {cluster.node_pods(other)} via {cluster.node_address(other)}"
            for other in others
            if other != node
        ),
    ]
    subprocess.run(["ip", "-netns", name, "-batch", "-"], input="\n".join(commands), text=True, check=True)


def set_cable(cluster: Cluster, node: str, state: str) -> None:
    """`state`: up or down."""
    _ip("link", "set", link(cluster.identity, node), state)


def remove(identity: str) -> None:
    """Every namespace, link and rule with this identity; routes go with the bridge."""
    for entry in Path("/run/netns").glob(f"{identity}-*"):
        _ip("netns", "delete", entry.name)
    for entry in json.loads(_ip("-json", "link", "show")):
        if entry["ifname"].startswith(identity):
            # A veth may vanish by itself when the namespace that holds its peer does.
            subprocess.run(["ip", "link", "delete", entry["ifname"]], capture_output=True, check=False)
    _forget_forwarding(bridge(identity))


def _forward_rule(name: str) -> list[str]:
    return ["FORWARD", "-i", name, "-o", name, "-j", "ACCEPT"]


def _allow_forwarding(name: str) -> None:
    """Docker's policy is to drop what is forwarded, and with br_netfilter that includes what a bridge carries."""
    if _iptables("-S", "FORWARD").startswith("-P FORWARD DROP"):
        _iptables("-I", *_forward_rule(name))


def _forget_forwarding(name: str) -> None:
    if f"-i {name} " in _iptables("-S", "FORWARD"):
        _iptables("-D", *_forward_rule(name))


def _iptables(*arguments: str) -> str:
    """Empty without iptables: then nothing can have set a policy by it."""
    try:
        return subprocess.run(["iptables", "-w", *arguments], capture_output=True, text=True, check=False).stdout
    except FileNotFoundError:
        return ""
