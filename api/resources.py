"""Narrow views of Kubernetes objects, over plain dicts as the API server returned them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Object = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ClaimView:
    """A ResourceClaim: who it is and whether it is allocated."""

    uid: str
    namespace: str
    name: str
    deleting: bool
    allocated: bool
    reserved_for: tuple[str, ...]
    """UIDs of the consumers."""


def view_claim(raw: Object) -> ClaimView:
    metadata, status = raw["metadata"], raw.get("status") or {}
    return ClaimView(
        uid=metadata["uid"],
        namespace=metadata["namespace"],
        name=metadata["name"],
        deleting="deletionTimestamp" in metadata,
        allocated=status.get("allocation") is not None,
        reserved_for=tuple(consumer["uid"] for consumer in status.get("reservedFor") or ()),
    )


def allocated_devices(raw: Object, driver: str, pool: str | None = None) -> tuple[Object, ...]:
    """The allocation results of one driver (and pool); none where the claim is not allocated."""
    allocation = (raw.get("status") or {}).get("allocation") or {}
    results = (allocation.get("devices") or {}).get("results") or ()
    return tuple(r for r in results if r["driver"] == driver and pool in (None, r["pool"]))


@dataclass(frozen=True, slots=True)
class SliceView:
    """A ResourceSlice: what publishing needs to tell it apart."""

    name: str
    uid: str
    resource_version: str
    owner_uid: str | None
    generation: int
    spec: Object


def view_slice(raw: Object) -> SliceView:
    metadata = raw["metadata"]
    owners = [owner["uid"] for owner in metadata.get("ownerReferences") or () if owner.get("kind") == "Node"]
    return SliceView(
        name=metadata["name"],
        uid=metadata["uid"],
        resource_version=metadata["resourceVersion"],
        owner_uid=owners[0] if owners else None,
        generation=raw["spec"]["pool"].get("generation", 0),
        spec=raw["spec"],
    )


@dataclass(frozen=True, slots=True)
class NodeView:
    """A Node: who it is, as an owner of slices."""

    name: str
    uid: str
    labels: Mapping[str, str]


def view_node(raw: Object) -> NodeView:
    return NodeView(raw["metadata"]["name"], raw["metadata"]["uid"], raw["metadata"].get("labels") or {})
