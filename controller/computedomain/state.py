"""What a plan is made from: one ComputeDomain, and everything in the cluster that belongs to it.

Values only. Times are seconds since the epoch. `None` and "" mean what the field says, never "unknown by accident".
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final, Literal

from api.clique import Membership, Moment
from api.ref import Ref


@dataclass(frozen=True, slots=True)
class Domain:
    """The ComputeDomain itself. `status` is what the API server stores now, as a plain dict."""

    ref: Ref
    generation: int
    num_nodes: int
    """0: elastic."""
    template_name: str
    allocation_mode: Literal["All", "Single"] = "Single"
    wait_for_all: bool = False
    """releasePolicy AllNodes: no channel before `num_nodes` members are connected."""
    has_finalizer: bool = False
    deleted_at: float | None = None
    force: bool = False
    """The annotation that says: do not wait for those who still use it."""
    status: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Binding:
    """Of a channel that was allocated with binding conditions: which device it is, and what its conditions say."""

    device: str
    pool: str
    share_id: str = ""
    formed: bool = False
    failed: bool = False


@dataclass(frozen=True, slots=True)
class ChannelClaim:
    """A ResourceClaim that is allocated, reserved for somebody, and whose config names the domain."""

    ref: Ref
    domain_uid: str
    node: str
    """The pool of the allocated channel: a node's pool bears the node's name."""
    allocated: Moment
    pods: tuple[Ref, ...] = ()
    """The pods that hold it (`status.reservedFor`). None are told where it is reserved for a PodGroup."""
    binding: Binding | None = None


class Phase(Enum):
    """How far a daemon's pod is."""

    PENDING = "Pending"
    """Not scheduled, or its containers do not run yet."""
    RUNNING = "Running"
    READY = "Ready"
    """Running, and connected to its peers."""
    FINISHED = "Finished"
    """Failed or succeeded: it will not run again."""


@dataclass(frozen=True, slots=True)
class DaemonPod:
    """The pod of one member node. `owner_uid` is the ComputeDomainClique that it was made for."""

    ref: Ref
    domain_uid: str
    node: str
    clique_id: str
    owner_uid: str
    phase: Phase = Phase.PENDING
    address: str = ""
    created_at: float = 0.0
    terminating: bool = False
    grace_s: float = 0.0
    """How long one that is terminating may take."""
    message: str = ""
    """What its status says is in the way, in the kubelet's or scheduler's words."""
    lost_at: float | None = None
    """Since when Kubernetes hears nothing of its node, if its daemon was connected then."""


@dataclass(frozen=True, slots=True)
class DaemonClaim:
    """The ResourceClaim of one daemon's pod."""

    ref: Ref
    domain_uid: str
    node: str
    owner_uid: str
    terminating: bool = False


@dataclass(frozen=True, slots=True)
class Clique:
    """One ComputeDomainClique as stored."""

    ref: Ref
    resource_version: str
    membership: Membership
    terminating: bool = False


@dataclass(frozen=True, slots=True)
class Template:
    """A ResourceClaimTemplate that bears the domain's label, or the name that the domain wants."""

    ref: Ref
    domain_uid: str
    """The value of its label; "" when it is somebody else's."""
    terminating: bool = False
    is_owned: bool = True
    """Its owner is the domain that its label names: it was made for it. In a copied manifest that may not be so."""
    has_finalizer: bool = False
    """NVIDIA's controller gives its templates the finalizer of their domain; ours have none."""


@dataclass(frozen=True, slots=True)
class NodeFabric:
    """What a node's published devices say about its NVLink clique; "" is none."""

    node: str
    clique_id: str
    public_key: str = ""
    """`api.clique.KEY_ATTRIBUTE`; "" where it publishes none."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What an administrator decides; the same for every domain."""

    namespace: str
    """The driver's namespace: daemons and memberships live there."""
    image: str
    max_nodes_per_imex_domain: int
    tls: bool
    node_list: str
    """What nvidia-imex's node list has: names, which survive a change of address, or addresses."""
    service_account: str
    priority_class: str
    image_pull_policy: str
    image_pull_secrets: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Observation:
    """Everything that a plan for one domain may depend on. `domain` is None when the ComputeDomain is gone."""

    now: float
    uid: str
    domain: Domain | None
    claims: tuple[ChannelClaim, ...] = ()
    fabric: Mapping[str, str] = field(default_factory=dict)
    """Clique by node; "" is a node without fabric; a node whose devices are not published is missing."""
    keys: Mapping[str, str] = field(default_factory=dict)
    """By node: the public keys that are published."""
    cliques: tuple[Clique, ...] = ()
    """In the driver's namespace, where nobody else writes."""
    strays: tuple[Clique, ...] = ()
    """In other namespaces: an earlier installation's, or anybody's. They are deleted, and not waited for."""
    pods: tuple[DaemonPod, ...] = ()
    daemon_claims: tuple[DaemonClaim, ...] = ()
    templates: tuple[Template, ...] = ()
    rivals: "tuple[Standing, ...]" = ()
    """How the other domains with claims on this one's nodes stand."""
    leftovers: Mapping[str, Ref] = field(default_factory=dict)
    """By node: a claim whose ComputeDomain is gone, or ends by force."""
    taken: Mapping[str, str] = field(default_factory=dict)
    """Of its nodes: the claim of another domain's daemon that is still there (`namespace/name`)."""
    held_s: Mapping[str, float] = field(default_factory=dict)
    """For how many seconds every plan has said that something has to wait, by what it is (`Plan.held`)."""
    leaving: frozenset[str] = frozenset()
    """UIDs of pods that have not started and are being deleted; known where `Plan.follow_pods` was said."""
    failures: tuple[str, ...] = ()
    """What the last attempt to act was told, in words for people; empty when everything went through."""


@dataclass(frozen=True, slots=True)
class Member:
    """One member node of a domain, as the plan decides it; `index` is -1 where there is no IMEX domain."""

    node: str
    clique_id: str
    index: int
    pod: DaemonPod | None = None
    ready: bool = False
    released: bool = False
    message: str = ""
    absent: bool = False
    """Its node is lost, or its pods are being deleted: those that are there do not wait for it."""
    holds_node: bool = False
    """Its channel may have been given out: see `Standing`."""
    public_key: str = ""
    certificate: str = ""
    """As stored, for this key and index; "" where there is none yet, or no encryption."""

    @property
    def address(self) -> str:
        return self.pod.address if self.pod else ""


@dataclass(frozen=True, slots=True)
class Standing:
    """A domain among those that want the same nodes. A node has one daemon device, and so serves one domain at a time.

    A domain keeps a node where its channel may have been given out, also while its daemon there is away. Every other
    node is for the domain whose first claim was allocated before those of the others. That is one order for all nodes:
    of two domains that want the same nodes one gets them all, and the other waits. It is made from what is stored, so
    that the next controller knows it again.
    """

    name: str
    """`namespace/name`"""
    uid: str
    since: float
    """When the first of its claims was allocated."""
    nodes: frozenset[str]
    """Where it has a daemon, or wants one."""
    held: frozenset[str]
    """Those of its nodes that it keeps."""

    def rank(self, node: str) -> tuple[bool, float, str]:
        """The least of all domains gets the node."""
        return node not in self.held, self.since, self.uid


@dataclass(frozen=True, slots=True)
class Members:
    """Who belongs to the domain now, and who cannot (with the reason)."""

    members: tuple[Member, ...] = ()
    """In a clique, ascending by clique and index; then the nodes without fabric by name."""
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Nodes that hold a claim but are no member: why, by node."""
    holders: tuple[ChannelClaim, ...] = ()
    """The claims that keep a domain from going away."""
    refused: tuple[ChannelClaim, ...] = ()
    """Claims that came after the domain began to end, or from another namespace."""
    waiting: tuple[ChannelClaim, ...] = ()
    """Claims that belong to the domain and whose channel is not released."""
    standing: Standing | None = None
    """None: it has no members, and wants no node."""
    occupied: Mapping[str, str] = field(default_factory=dict)
    """Of its nodes: which other ComputeDomain (`namespace/name`) each is for now."""


GATHER_ADDRESSES_S: Final = 2.0
"""How long an address may wait for those of the other members, so that all are told at once."""
GATHER_READINESS_S: Final = 2.0
"""How long a readiness may wait for those of the other members. The last one never waits, and no pod waits for it where
nodes release their channels themselves."""
GATHER_WORDS_S: Final = 2.0
"""How long a change of words alone may wait."""
ABSENT_AFTER_S: Final = 10.0
"""How long a node must be lost before the others stop waiting for it."""
OVERDUE_S: Final = 30.0
"""How long after its grace a daemon pod may stay: then no kubelet is there that would end it."""
FAILED_POD_RETRY_S: Final = 10.0
"""A daemon pod that ended is replaced no sooner than this after it was made."""
