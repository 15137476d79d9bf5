"""ResourceSlices of one pool: building them, and planning the writes that make the API server's the same.

Rules: k8s.io/dynamic-resource-allocation resourceslice (controller) and k8s.io/api resource/v1 (limits).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from api.resources import NodeView
from kubeletplugin.model.devices import DeviceSet

SliceSpec = dict[str, Any]
"""ResourceSlice.spec without `pool.generation` and `pool.resourceSliceCount`, which `plan_publication` sets."""


@dataclass(frozen=True, slots=True)
class CreateSlice:
    """POST `body` (a whole ResourceSlice with `generateName`)."""

    body: dict[str, Any]


@dataclass(frozen=True, slots=True)
class UpdateSlice:
    """PUT `body`, which carries name, uid and resourceVersion of what was read."""

    body: dict[str, Any]


@dataclass(frozen=True, slots=True)
class DeleteSlice:
    """DELETE with preconditions; 404 is success."""

    name: str
    uid: str
    resource_version: str


SliceAction = DeleteSlice | UpdateSlice | CreateSlice


def build_slices(driver: str, pool: str, node: str, devices: DeviceSet) -> list[SliceSpec]:
    """The slices of a node's pool, in the allocator's order. Raises InvalidObject where a limit is broken."""
    return [{"driver": driver, "nodeName": node, "pool": {"name": pool}, "devices": []}]


def plan_publication(
    stored: Sequence[Mapping[str, Any]], desired: Sequence[SliceSpec], node: NodeView
) -> tuple[SliceAction, ...]:
    """The writes, in order, that turn the stored slices of this driver and node into the desired ones."""
    return ()


def dropped_features(written: Mapping[str, Any], stored: Mapping[str, Any]) -> frozenset[str]:
    """Feature gates that must be off, for the server dropped fields of theirs from the spec that we wrote."""
    return frozenset()
