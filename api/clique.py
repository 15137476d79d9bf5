"""ComputeDomainClique: the membership of one IMEX domain, as its readers see it. Standard library only.

A ComputeDomainClique lists the nodes of one ComputeDomain that share one NVLink clique. **The controller is its only
writer.** Node plugins read the objects of the domains on their node, and bring each daemon its own one as a file. It
lives in the driver's namespace under `clique_object_name(uid, clique_id)`, so a reader can watch it with the field
selector `metadata.name=...` before it exists. A reader needs nothing else:

- the daemon of node N takes everybody's address and index from `members`, its own included. A member without an
  address has no daemon yet: it belongs to no node list. An `absent` one belongs to it, and is waited for by nobody;
- the node plugin of node N releases the channel when N's entry says `released`, or, with `release_policy` Connected,
  when N's own daemon says that it is connected (`DAEMON_STATUS_FILE`), and not while that daemon has died
  (`DAEMON_LOCK_FILE`); until then its `message` says what is missing.
  `draining` means: prepare no claim that `is_late`; a claim in `abandoned` is not to be waited for;
- an object that is gone, or has no entry for N, means that N is no member (any more, or yet).

The kind and the fields `daemons[].{nodeName,ipAddress,cliqueID,index,status}` are those of NVIDIA's DRA driver; the
other fields are additions.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from api.errors import InvalidObject

CLIQUE_PLURAL: Final = "computedomaincliques"

KEY_ATTRIBUTE: Final = "imexPublicKey"
"""Of a node's `daemon-0` device: base64 of its P-256 public key, compressed (SEC 1, 2.3.3): 44 characters.

The node plugin makes the key, and another one after each domain; the private half never leaves the node. The controller
signs a certificate for it (`Member.certificate`).
"""

MEMBERSHIP_FILE: Final = "membership/membership.json"
"""In the domain's directory on a node: its ComputeDomainClique, replaced as a whole; no `metadata` while there is none.

The node plugin writes it before the daemon is started; the daemon sees its folder read-only. Plugin and daemon are
upgraded at different times: the plugin hands on every field, also those that it does not know, and a daemon ignores
what it does not know. The plugin adds `key`, the PEM of this node's private key (PKCS #8), while the certificate that
the ComputeDomainClique has for this node is for that key.
"""

DAEMON_STATUS_FILE: Final = "status/status.json"
"""In the same directory: whether the node's daemon is connected to its peers. The daemon writes it."""

DAEMON_LOCK_FILE: Final = "work/daemon.lock"
"""In the same directory: the node's daemon holds a flock(2) on it for as long as it lives.

What it has said last stands in its status file also when it was killed. The jobs' pods, which see that file, do not see
this one. A daemon has `work` as its directory's root.
"""

MEMBERSHIP_FILE_VERSION: Final = 1
"""`version` in the file. Raised only where an older daemon would misunderstand the file; a file without one is of 1."""

DAEMON_HTTP_PORT: Final = 8097
"""Where the daemon answers GET /readyz (200: this node and its peers are connected) and /livez.

`/readyz` may hold its answer until the state changes, for less than `DAEMON_PROBE_TIMEOUT_S`: the kubelet then learns
of readiness at once instead of at its next probe.
"""

DAEMON_PROBE_TIMEOUT_S: Final = 30

FORMED_CONDITION: Final = "resource.nvidia.com/ComputeDomainFormed"
FAILED_CONDITION: Final = "resource.nvidia.com/ComputeDomainFailed"
"""Binding condition and binding failure condition of a channel, where those are wanted (KEP-5007)."""

IMEX_PORT: Final = 50000
"""imexd.cfg SERVER_PORT: daemons talk to each other on it."""


def clique_object_name(domain_uid: str, clique_id: str) -> str:
    """`<domain uid>.<clique id>`, as in NVIDIA's DRA driver; a clique id is `<cluster uuid>.<number>`."""
    return f"{domain_uid}.{clique_id}"


def node_name(index: int) -> str:
    """What the daemons of an IMEX domain call the member of this index, as in NVIDIA's DRA driver."""
    return f"compute-domain-daemon-{index:04d}"


ANY_NODE_NAME: Final = "compute-domain-daemon"
"""What every member's certificate is for besides its `node_name`: for node lists of addresses, which have no names."""


@dataclass(frozen=True, slots=True)
class Member:
    """One node of an IMEX domain. `address` is "" until its daemon's pod has one."""

    node: str
    address: str
    index: int
    """Kept for as long as the node is a member; below `Membership.max_nodes`."""
    ready: bool
    released: bool
    message: str = ""
    absent: bool = False
    """It was connected, and Kubernetes has lost its node; or it was not, and all its pods are being deleted. It may
    come back, but nobody is to wait for it."""
    holds_node: bool = False
    """The node may have given its channel out; until it leaves, no other domain gets the node. Of interest to the
    controller alone, which must know it again when the daemon is away."""
    public_key: str = ""
    """What the certificate is for (`KEY_ATTRIBUTE`); "" without encryption, or of a node that publishes none."""
    certificate: str = ""
    """PEM, for the DNS names `node_name(index)` and `ANY_NODE_NAME`; "" where there is no public key."""


@dataclass(frozen=True, slots=True)
class Membership:
    """One ComputeDomainClique. `members` ascend by index."""

    name: str
    domain_uid: str
    domain_name: str
    domain_namespace: str
    clique_id: str
    max_nodes: int
    draining: bool
    members: tuple[Member, ...]
    abandoned: tuple[str, ...] = ()
    """UIDs of claims that wait for their channel, while all their pods are being deleted."""
    release_policy: str = ""
    """Connected or AllNodes; "" from a controller that leaves no release to the nodes."""
    tls: bool | None = None
    """Whether its daemons encrypt; None from an older controller."""
    authorities: tuple[str, ...] = ()
    """PEM of the certificate authorities of this IMEX domain: daemons trust them all, and nobody else."""
    node_list: str = ""
    """What its daemons list: names or addresses; "" from an older controller."""
    deleted_at: float | None = None
    """When the ComputeDomain was deleted, in seconds since the epoch; also None from an older controller."""

    def member(self, node: str) -> Member | None:
        return next((member for member in self.members if member.node == node), None)


@dataclass(frozen=True, slots=True)
class Moment:
    """When a claim was allocated, in seconds since the epoch."""

    at: float
    is_known: bool
    """False: the API server does not say, and `at` is when the claim was made."""


def parse_moment(claim: Mapping[str, Any]) -> Moment:
    """Of a ResourceClaim that is allocated. (`allocationTimestamp` comes with DRADeviceBindingConditions.)"""
    allocated = ((claim.get("status") or {}).get("allocation") or {}).get("allocationTimestamp")
    return Moment(parse_time(allocated or claim["metadata"].get("creationTimestamp")), bool(allocated))


def parse_time(text: str | None) -> float:
    """RFC 3339 to seconds since the epoch; 0.0 for none."""
    return datetime.fromisoformat(text).timestamp() if text else 0.0


def is_late(allocated: Moment, deleted_at: float, *, on_member: bool) -> bool:
    """Whether a claim came after its ComputeDomain was deleted: no node serves it, and it keeps no domain from ending.

    `on_member`: its node is in the ComputeDomainClique. Where nobody knows when it was allocated, that speaks for it.
    """
    return allocated.at > deleted_at or not (allocated.is_known or on_member)


def parse_membership(raw: Mapping[str, Any]) -> Membership:
    """A ComputeDomainClique from the API server. Raises InvalidObject when it is not one of the controller's."""
    name = str(raw["metadata"]["name"])
    uid, dot, clique_id = name.partition(".")
    if not dot:
        raise InvalidObject(f"ComputeDomainClique {name}: the name must be <domain uid>.<clique id>")
    entries = raw.get("daemons") or []
    members = sorted((_parse_member(entry) for entry in entries), key=lambda member: member.index)
    if len({member.index for member in members}) != len(members):
        raise InvalidObject(f"ComputeDomainClique {name}: every daemon must have an index of its own")
    return Membership(
        name=name,
        domain_uid=uid,
        domain_name=str(raw.get("domainName", "")),
        domain_namespace=str(raw.get("domainNamespace", "")),
        clique_id=clique_id,
        max_nodes=int(raw.get("maxNodes", 18)),
        draining=bool(raw.get("draining", False)),
        members=tuple(members),
        abandoned=tuple(sorted(map(str, raw.get("abandonedClaims") or ()))),
        release_policy=str(raw.get("releasePolicy", "")),
        tls=bool(raw["tls"]) if "tls" in raw else None,
        authorities=tuple(map(str, raw.get("authorities") or ())),
        node_list=str(raw.get("nodeList", "")),
        deleted_at=parse_time(raw["deletedAt"]) if raw.get("deletedAt") else None,
    )


def _parse_member(entry: Mapping[str, Any]) -> Member:
    return Member(
        node=str(entry["nodeName"]),
        address=str(entry.get("ipAddress", "")),
        index=int(entry.get("index", 0)),
        ready=entry.get("status") == "Ready",
        released=bool(entry.get("released", False)),
        message=str(entry.get("message", "")),
        absent=bool(entry.get("absent", False)),
        holds_node=bool(entry.get("holdsNode", False)),
        public_key=str(entry.get("publicKey", "")),
        certificate=str(entry.get("certificate", "")),
    )
