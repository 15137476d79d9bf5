"""What a local cluster is made of, and every name and address that follows from it."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from cluster.report import ClusterError

MAX_NODES = 200
DEFAULT_NODE_TIMEOUT_S = 40


@dataclass(frozen=True, slots=True)
class Shape:
    """What the user asked for. `profiles` are given to the nodes in turn; empty: nodes without simulated hardware."""

    nodes: int
    profiles: tuple[str, ...]
    kubernetes: str
    feature_gates: str
    audit: bool
    node_timeout_s: int
    network_policies: bool = False

    def profile(self, node: str) -> str | None:
        """The simulated hardware of a node."""
        return self.profiles[(node_number(node) - 1) % len(self.profiles)] if self.profiles else None

    def node_names(self) -> tuple[str, ...]:
        return tuple(f"n{number}" for number in range(1, self.nodes + 1))


def describe_difference(has: Shape, asked: Shape) -> str:
    """`nodes 1, not 2`: every field in which they differ."""
    pairs = ((field, getattr(has, field), getattr(asked, field)) for field in Shape.__dataclass_fields__)
    return ", ".join(f"{field} {mine!r}, not {wanted!r}" for field, mine, wanted in pairs if mine != wanted)


def node_number(node: str) -> int:
    return int(node.removeprefix("n"))


@dataclass(frozen=True, slots=True)
class Cluster:
    """A shape at a place: `slot` numbers the clusters of this machine and decides their addresses."""

    state: Path
    slot: int
    shape: Shape

    @property
    def identity(self) -> str:
        return identity(self.state)

    @property
    def host_address(self) -> str:
        return f"10.77.{self.slot}.1"

    @property
    def loopback_address(self) -> str:
        """For what only the control plane itself talks to; all of 127.0.0.0/8 is this machine."""
        return f"127.77.{self.slot}.1"

    @property
    def pod_network(self) -> str:
        return f"10.{100 + self.slot}.0.0/16"

    def node_address(self, node: str) -> str:
        return f"10.77.{self.slot}.{10 + node_number(node)}"

    def node_pods(self, node: str) -> str:
        return f"10.{100 + self.slot}.{node_number(node)}.0/24"

    @property
    def server(self) -> str:
        return f"https://{self.host_address}:6443"

    @property
    def kubeconfig(self) -> Path:
        return self.state / "kubeconfig"

    @property
    def logs(self) -> Path:
        return self.state / "logs"

    def node_dir(self, node: str) -> Path:
        return self.state / "nodes" / node

    def check_node(self, node: str) -> str:
        if node not in self.shape.node_names():
            raise ClusterError(
                f"there is no node {node!r}; the nodes are {', '.join(self.shape.node_names()) or 'none'}"
            )
        return node


SLOTS = 100
SERVICE_NETWORK = "10.96.0.0/16"
SERVICE_ADDRESS = "10.96.0.1"  # the first address: the `kubernetes` Service


def identity(state: Path) -> str:
    """Names the cluster's cgroups, network namespaces and links, so that they can be found without its state."""
    return f"pt{hashlib.sha256(str(state).encode()).hexdigest()[:6]}"


def write_cluster(cluster: Cluster) -> None:
    text = json.dumps({"slot": cluster.slot, "shape": asdict(cluster.shape)}, indent=1)
    (cluster.state / "cluster.json").write_text(text)


def read_cluster(state: Path) -> Cluster | None:
    """None: no cluster was ever begun in that folder."""
    try:
        data = json.loads((state / "cluster.json").read_text())
    except FileNotFoundError:
        return None
    shape = data["shape"]
    return Cluster(state, data["slot"], Shape(**{**shape, "profiles": tuple(shape["profiles"])}))
