"""ComputeDomain and ComputeDomainClique (`resource.nvidia.com/v1beta1`).

Sources: the API of NVIDIA's DRA driver, whose fields are all here under their names and meanings. What is marked
*added* is ours; an object without it is still valid, and a reader that does not know it still works.

**Who writes what.** Users write a ComputeDomain's `spec`. The controller writes its `status`, and is the only writer of
ComputeDomainCliques.

How a ComputeDomainClique is read: `api.clique`.
"""

from typing import Any, Final, Literal

from pydantic import ConfigDict, Field

from api.crd import Column, Condition, CustomResource, Model, build_crd, build_schema
from api.names import RESOURCE_GROUP

RESOURCE_VERSION: Final = "v1beta1"

FORCE_DELETE_ANNOTATION: Final = "resource.nvidia.com/force-delete"
"""Added. `"true"` on a ComputeDomain that is being deleted: do not wait for the claims that still use it."""

MAX_NODES_PER_IMEX_DOMAIN: Final = 18
"""An NVL72 rack has 18 compute trays; NVIDIA's DRA driver has the same default (MAX_NODES_PER_IMEX_DOMAIN)."""


DNS_SUBDOMAIN: Final = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"  # RFC 1123


class ResourceClaimTemplateReference(Model):
    """Names the ResourceClaimTemplate that pods refer to; the controller makes it."""

    name: str = Field(min_length=1, max_length=253, pattern=DNS_SUBDOMAIN)


class Channel(Model):
    """The IMEX channels that every pod of the domain gets."""

    resource_claim_template: ResourceClaimTemplateReference
    allocation_mode: Literal["All", "Single"] = Field(
        default="Single", description="Single: channel 0. All: all 2048 channels, for what partitions them further."
    )
    release_policy: Literal["Connected", "AllNodes"] = Field(
        default="Connected",
        description="Connected: a pod may start when its own node is connected to the members that are present. "
        "AllNodes: only when numNodes members are, and all of them are connected.",
    )
    """*Added.*"""


class ComputeDomainSpec(Model):
    """What the user asks for."""

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [{"rule": "self == oldSelf", "message": "A computeDomain.spec is immutable"}]
        }
    )

    num_nodes: int = Field(
        default=0,
        ge=0,
        description="The number of nodes after which the domain counts as Ready. 0: elastic, no number is expected.",
    )
    channel: Channel


NodeStatus = Literal["Ready", "NotReady"]


class ComputeDomainNode(Model):
    """One member. `ipAddress` is empty until the daemon's pod has one; `cliqueID` is empty without NVLink fabric."""

    name: str
    ip_address: str
    clique_id: str = Field(alias="cliqueID")
    index: int = Field(default=0, description="Position in the IMEX domain of its clique; -1 without fabric.")
    status: NodeStatus = "NotReady"


class ComputeDomainCondition(Condition):
    """`metav1.Condition`."""

    observed_generation: int = 0


class ComputeDomainStatus(Model):
    """Where the domain is. Everything but `status` and `nodes` is *added*."""

    status: NodeStatus = "NotReady"
    nodes: list[ComputeDomainNode] = Field(
        default_factory=list,
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    )
    conditions: list[ComputeDomainCondition] = Field(
        default_factory=list,
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    )
    observed_generation: int = 0
    member_nodes: int = Field(default=0, description="Nodes with a claim of this domain.")
    ready_nodes: int = Field(default=0, description="Members that are connected to their peers.")
    progress: str = Field(default="", description="Ready nodes of wanted ones, for people: 2/4.")


class CliqueDaemon(Model):
    """One member of an IMEX domain, and what its daemon's pod says about itself."""

    node_name: str
    ip_address: str = Field(description="The daemon's pod; empty until it has an address.")
    clique_id: str = Field(alias="cliqueID")
    index: int = Field(default=0, ge=0, description="Kept for as long as the node is a member.")
    status: NodeStatus = Field(default="NotReady", description="Ready: connected to the members that are present.")
    released: bool = Field(default=False, description="The channel may be given to this node's pods.")
    """*Added.*"""
    message: str = Field(default="", description="Why the channel is not released yet.")
    """*Added.*"""
    absent: bool = Field(default=False, description="Its node is lost or given up: the others do not wait for it.")
    """*Added.*"""
    holds_node: bool = Field(
        default=False,
        description="Its channel may have been given out: no other domain gets the node.",
    )
    """*Added.*"""
    public_key: str = Field(default="", description="What the certificate is for: the node publishes it.")
    """*Added.*"""
    certificate: str = Field(default="", description="PEM: by it this daemon is known to the others.")
    """*Added.*"""


COMPUTE_DOMAIN: Final = CustomResource(
    group=RESOURCE_GROUP,
    version=RESOURCE_VERSION,
    kind="ComputeDomain",
    plural="computedomains",
    scope="Namespaced",
    description="Pods whose GPUs share memory over Multi-Node NVLink, isolated from everybody else.",
    properties={"spec": build_schema(ComputeDomainSpec), "status": build_schema(ComputeDomainStatus)},
    required=("spec",),
    columns=(
        Column("Status", ".status.status"),
        Column("Nodes", ".status.progress"),
        Column("Reason", '.status.conditions[?(@.type=="Ready")].reason'),
        Column("Message", '.status.conditions[?(@.type=="Ready")].message', wide=True),
        Column("Age", ".metadata.creationTimestamp", kind="date"),
    ),
)

_DAEMONS_SCHEMA: Final[dict[str, Any]] = {
    "type": "array",
    "items": build_schema(CliqueDaemon),
    "x-kubernetes-list-type": "map",
    "x-kubernetes-list-map-keys": ["nodeName"],
}

COMPUTE_DOMAIN_CLIQUE: Final = CustomResource(
    group=RESOURCE_GROUP,
    version=RESOURCE_VERSION,
    kind="ComputeDomainClique",
    plural="computedomaincliques",
    scope="Namespaced",
    description="The members of one IMEX domain: the nodes of a ComputeDomain that are in one NVLink clique.",
    properties={
        "spec": {
            "type": "object",
            "properties": {"replicas": {"type": "integer", "minimum": 0}},
            "description": "How many daemons there are to be, for whoever counts them, as PodDisruptionBudgets do.",
        },
        "daemons": _DAEMONS_SCHEMA,
        "domainName": {"type": "string", "description": "The ComputeDomain's name."},
        "domainNamespace": {"type": "string", "description": "The only namespace whose claims may use the domain."},
        "maxNodes": {"type": "integer", "minimum": 1, "description": "Indexes are below this number."},
        "tls": {"type": "boolean", "description": "Its daemons encrypt; decided when it is made, as maxNodes is."},
        "authorities": {
            "type": "array",
            "items": {"type": "string"},
            "description": "PEM of those whose certificates its daemons trust.",
        },
        "nodeList": {"type": "string", "description": "What its daemons list: names or addresses; decided likewise."},
        "draining": {"type": "boolean", "description": "The domain is being deleted: no new claim may be prepared."},
        "deletedAt": {
            "type": "string",
            "format": "date-time",
            "description": "When it was deleted: a claim that was allocated before is not new.",
        },
        "releasePolicy": {
            "type": "string",
            "description": "Connected: a node may give its channel out when its own daemon says that it is connected. "
            "AllNodes: when the controller says so.",
        },
        "abandonedClaims": {
            "type": "array",
            "items": {"type": "string"},
            "x-kubernetes-list-type": "set",
            "description": "UIDs of claims that wait for a channel, and whose pods are being deleted.",
        },
    },
    status_subresource=False,
    replicas_path=".spec.replicas",
    columns=(
        Column("Domain", ".domainName"),
        Column("Namespace", ".domainNamespace"),
        Column("Age", ".metadata.creationTimestamp", kind="date"),
    ),
)

CUSTOM_RESOURCES: Final = (COMPUTE_DOMAIN, COMPUTE_DOMAIN_CLIQUE)


def build_crds() -> list[dict[str, Any]]:
    """The CustomResourceDefinitions of this module, for the chart."""
    return [build_crd(resource) for resource in CUSTOM_RESOURCES]
