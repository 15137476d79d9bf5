"""What `nvidia-imex` reads: its configuration, its node list and the names in /etc/hosts. Pure.

Facts about nvidia-imex that this rests on (NVIDIA's IMEX guide; kubernetes-sigs/dra-driver-nvidia-gpu #1418, #1465):
it reads both files at start only, an entry's position in the node list is its node ID, daemons whose node lists differ
refuse each other, and SIGUSR1 makes it resolve names anew and read its TLS files again, once in 5 s at most.
"""

from dataclasses import dataclass, field
from typing import Final

from api.clique import ANY_NODE_NAME, IMEX_PORT, KEY_ATTRIBUTE, Membership, node_name

IMEX_COMMAND_PORT: Final = 50005
"""IMEX_CMD_PORT: where nvidia-imex-ctl asks every daemon of the domain for its state."""

NO_MEMBER_ADDRESS: Final = "127.0.0.2"
"""What names without a member resolve to: refused at once, instead of a DNS query per name and second (#1465)."""

HOSTS_BEGIN: Final = "# begin: nodes of this IMEX domain"
HOSTS_END: Final = "# end: nodes of this IMEX domain"


@dataclass(frozen=True, slots=True)
class Tls:
    """By what this node knows its peers, and they know it. PEM."""

    authorities: str
    certificate: str
    key: str = field(repr=False)
    peers: frozenset[str] = field(default=frozenset(), repr=False)
    """The certificates of the other members that have an address: whom the authorities are for."""


@dataclass(frozen=True, slots=True)
class TlsMissing:
    """The domain is encrypted, and this node cannot take part yet."""

    reason: str


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Paths of PEM files. `server_name` is what peers' certificates must be for; "" is each one's node list entry."""

    authority: str
    certificate: str
    key: str
    server_name: str


@dataclass(frozen=True, slots=True)
class NodeTable:
    """Who is who in an IMEX domain. `addresses` is by node ID; None where no member has that index."""

    own_index: int
    addresses: tuple[str | None, ...]
    names: tuple[str, ...]
    """Entries of the node list: names that /etc/hosts resolves, or the addresses themselves."""
    absent: frozenset[int] = frozenset()
    """Node IDs of members that nobody is to wait for."""

    def address(self, index: int) -> str | None:
        """None also where the list is shorter."""
        return self.addresses[index] if index < len(self.addresses) else None

    @property
    def peers(self) -> frozenset[int]:
        """Node IDs of the other members that have an address."""
        present = {index for index, address in enumerate(self.addresses) if address}
        return frozenset(present - {self.own_index})

    @property
    def required(self) -> frozenset[int]:
        """Node IDs of the peers without which this node is not connected."""
        return self.peers - self.absent


def build_node_table(
    membership: Membership, node: str, address: str, *, use_names: bool, has_run: bool = False
) -> NodeTable | None:
    """The table as `node` sees it; None while `node` is no member, or an address is awaited.

    With addresses every change starts nvidia-imex anew. So a domain that forms waits until it knows them all; in one
    that has formed nobody stops for a newcomer, or for one that is replaced: it is listed once it has an address.

    `address` is this daemon's own: what the membership says of it may be of a pod that this one replaces. `has_run`:
    nvidia-imex has, under this daemon.
    """
    own = membership.member(node)
    if own is None:
        return None
    has_formed = has_run or any(member.ready for member in membership.members)
    # One that died before it had an address may never get one.
    due = [member for member in membership.members if member.address or not member.absent]
    known = {member.index: member.address or None for member in due}
    known[own.index] = address
    absent = {member.index for member in due if member.absent}
    if use_names:
        size = max(membership.max_nodes, max(known) + 1)
        addresses = tuple(known.get(index) for index in range(size))
        return NodeTable(own.index, addresses, tuple(node_name(index) for index in range(size)), frozenset(absent))
    if None in known.values() and not has_formed:
        return None
    listed = {index: each for index, each in sorted(known.items()) if each}
    places = {index: place for place, index in enumerate(listed)}
    names = tuple(listed.values())
    return NodeTable(places[own.index], names, names, frozenset(places[index] for index in absent))


def find_tls(membership: Membership, node: str, key: str) -> Tls | TlsMissing | None:
    """What `node`, which has this private key ("" for none), needs for TLS; None where the domain is not encrypted."""
    own = membership.member(node)
    if own is None or not membership.tls:
        return None
    if not own.public_key:
        return TlsMissing(
            f"node {node} has no certificate yet: the controller has found no key of the node, which the node plugin "
            f"publishes as attribute {KEY_ATTRIBUTE} in the node's ResourceSlice"
        )
    if not own.certificate or not membership.authorities:
        return TlsMissing(f"node {node} has no certificate yet: the controller has not signed its key {own.public_key}")
    if not key:
        return TlsMissing(
            f"node {node} has a certificate for key {own.public_key}, and not that key: the controller is to sign the "
            f"one that the node's ResourceSlice has now (attribute {KEY_ATTRIBUTE})"
        )
    authorities = "".join(f"{each.strip()}\n" for each in membership.authorities)
    peers = {member.certificate for member in membership.members if member.address and member is not own}
    return Tls(authorities, own.certificate, key, frozenset(peers))


def choose_server_name(*, use_names: bool) -> str:
    """Whom peers' certificates must be for: each its own name, "", but for a node list of addresses, which has none."""
    return "" if use_names else ANY_NODE_NAME


def render_node_list(table: NodeTable) -> str:
    return "".join(f"{name}\n" for name in table.names)


def render_hosts(current: str, table: NodeTable) -> str:
    """`current`, with our block replaced. Every name is there once, so a lookup never leaves the pod."""
    kept: list[str] = []
    ours = False
    for line in current.splitlines():
        if line == HOSTS_BEGIN:
            ours = True
        if not ours:
            kept.append(line)
        if line == HOSTS_END:
            ours = False
    block = [
        f"{address or NO_MEMBER_ADDRESS}\t{name}"
        for name, address in zip(table.names, table.addresses, strict=True)
        if name != address
    ]
    return "".join(f"{line}\n" for line in [*kept, HOSTS_BEGIN, *block, HOSTS_END])


def render_config(node_list_path: str, address: str, tls: TlsFiles | None) -> str:
    """imexd.cfg with the keys and values of NVIDIA's DRA driver, and IMEX's own encryption where there are keys."""
    settings: dict[str, object] = {
        "LOG_LEVEL": 4,
        "LOG_FILE_NAME": "",
        "STATS_FILE_NAME": "/var/log/nvidia-imex-stats.log",
        "LOG_APPEND_TO_LOG": 0,
        "DAEMONIZE": 0,
        "BIND_INTERFACE_IP": "",
        "SERVER_PORT": IMEX_PORT,
        "IMEX_NODE_CONFIG_FILE": node_list_path,
        "IMEX_WAIT_FOR_QUORUM": "RECOVERY",
        "IMEX_ENABLE_AUTH_ENCRYPTION": 0 if tls is None else 1,
        "IMEX_AUTH_ENCRYPTION_MODE": "SSL_TLS",
        "IMEX_AUTH_SOURCE": "" if tls is None else "FILE",
        "IMEX_SERVER_KEY": "" if tls is None else tls.key,
        "IMEX_SERVER_CERT": "" if tls is None else tls.certificate,
        "IMEX_SERVER_CERT_AUTH": "" if tls is None else tls.authority,
        "IMEX_CLIENT_KEY": "" if tls is None else tls.key,
        "IMEX_CLIENT_CERT": "" if tls is None else tls.certificate,
        "IMEX_CLIENT_CERT_AUTH": "" if tls is None else tls.authority,
        "IMEX_SECURITY_TARGET_OVERRIDE": "" if tls is None else tls.server_name,
        "IMEX_CMD_ENABLED": 1,
        "IMEX_CMD_BIND_INTERFACE_IP": address,
        "IMEX_CMD_PORT": IMEX_COMMAND_PORT,
        "IMEX_NODE_DISCONNECTED_GRACE_TIME": -1,
    }
    return "".join(f"{key}={value}\n" for key, value in settings.items())
