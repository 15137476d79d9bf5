"""One object in the cluster, by its name. Pure."""

from dataclasses import dataclass
from typing import Final

from api.names import DRA_API_VERSION, KAIWO_API_VERSION, RESOURCE_API_VERSION

COLLECTIONS: Final = {
    "Node": ("v1", "nodes"),
    "Pod": ("v1", "pods"),
    "Secret": ("v1", "secrets"),
    "ResourceClaim": (DRA_API_VERSION, "resourceclaims"),
    "ResourceClaimTemplate": (DRA_API_VERSION, "resourceclaimtemplates"),
    "ComputeDomain": (RESOURCE_API_VERSION, "computedomains"),
    "ComputeDomainClique": (RESOURCE_API_VERSION, "computedomaincliques"),
    "KaiwoNode": (KAIWO_API_VERSION, "kaiwonodes"),
}
"""`apiVersion` and plural of each kind that a `Ref` may name."""


@dataclass(frozen=True, slots=True)
class Ref:
    """One object in the cluster, and which incarnation of it."""

    kind: str
    namespace: str
    """"" where the kind has none."""
    name: str
    uid: str = ""

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"
