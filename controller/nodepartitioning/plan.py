"""Partitioning of nodes, decided on values: one node, one step further.

    (none) -> Pending -> DrainingUntoleratedPods -> ApplyingPartitions -> WaitingForResourceUpdate -> Completed
                                                    any of them -> Error -> Pending again

A node whose GPUs are in the modes already goes from Pending to WaitingForResourceUpdate, and is not disturbed.

First nothing new may come (NoSchedule) and pods are evicted as their PodDisruptionBudgets allow. Only when none is left
that could be hurt do the NoExecute taints follow, which the Device Config Manager asks for. Every phase has a limit; a
node that fails is untainted, and says why.
"""

from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from api.kaiwo import (
    DCM_TAINT_KEY,
    DCM_TAINT_VALUE,
    ENABLED_LABEL,
    KAIWO_TAINT_KEY,
    PROFILE_LABEL,
    PartitioningSpec,
    Phase,
)
from controller.nodepartitioning.actions import Action, EnsureConfigMap, EnsureKaiwoNode, Plan, SetSpec
from controller.nodepartitioning.state import KaiwoNode, Node, Observation, Settings, Taint

DRAIN_TAINTS: Final = frozenset({Taint(KAIWO_TAINT_KEY, "", "NoSchedule")})
DCM_TAINTS: Final = frozenset({Taint(DCM_TAINT_KEY, DCM_TAINT_VALUE, "NoExecute")})
KAIWO_TAINTS: Final = DRAIN_TAINTS | {Taint(KAIWO_TAINT_KEY, "", "NoExecute")}
APPLY_TAINTS: Final = DCM_TAINTS | KAIWO_TAINTS
ACTIVE: Final[frozenset[Phase]] = frozenset(
    {"DrainingUntoleratedPods", "ApplyingPartitions", "WaitingForResourceUpdate"}
)
"""A node in these phases is tainted, unless its GPUs are in the modes already."""


class Signal(Enum):
    """What the world says about a node, seen from its phase."""

    NOTHING = auto()
    REQUESTED = auto()
    """A mode is asked for that the node is not in, or not any more."""
    MATCHED = auto()
    """The node is in the mode that is asked for."""
    PRESENT = auto()
    """It is, but claims may change it."""
    FAULTY = auto()
    """What is asked for cannot be."""
    WITHDRAWN = auto()
    ADMITTED = auto()
    DRAINED = auto()
    APPLIED = auto()
    VERIFIED = auto()
    FAILED = auto()
    TIMED_OUT = auto()
    RETRY = auto()


NEXT: Final[dict[tuple[Phase, Signal], Phase]] = {
    ("", Signal.REQUESTED): "Pending",
    ("", Signal.MATCHED): "Completed",
    ("", Signal.FAULTY): "Error",
    ("Pending", Signal.MATCHED): "Completed",
    ("Pending", Signal.WITHDRAWN): "",
    ("Pending", Signal.FAULTY): "Error",
    ("Pending", Signal.PRESENT): "WaitingForResourceUpdate",
    ("Pending", Signal.TIMED_OUT): "Error",
    ("Pending", Signal.ADMITTED): "DrainingUntoleratedPods",
    ("DrainingUntoleratedPods", Signal.WITHDRAWN): "",
    ("DrainingUntoleratedPods", Signal.REQUESTED): "Pending",
    ("DrainingUntoleratedPods", Signal.TIMED_OUT): "Error",
    ("DrainingUntoleratedPods", Signal.DRAINED): "ApplyingPartitions",
    ("ApplyingPartitions", Signal.APPLIED): "WaitingForResourceUpdate",
    ("ApplyingPartitions", Signal.FAILED): "Error",
    ("ApplyingPartitions", Signal.TIMED_OUT): "Error",
    ("WaitingForResourceUpdate", Signal.VERIFIED): "Completed",
    ("WaitingForResourceUpdate", Signal.FAILED): "Error",
    ("WaitingForResourceUpdate", Signal.TIMED_OUT): "Error",
    ("Completed", Signal.REQUESTED): "Pending",
    ("Completed", Signal.MATCHED): "Completed",
    ("Completed", Signal.FAULTY): "Error",
    ("Error", Signal.MATCHED): "Completed",
    ("Error", Signal.WITHDRAWN): "",
    ("Error", Signal.REQUESTED): "Pending",
    ("Error", Signal.RETRY): "Pending",
}
"""Every transition there is. A signal that is not here for a phase changes nothing."""


@dataclass(frozen=True, slots=True)
class Sensed:
    signal: Signal
    message: str = ""
    """One sentence for people."""
    modes: tuple[str, ...] = ()
    """What is asked for, by GPU; `-` for one that stays as it is."""
    is_limited: bool = False
    """It may not wait so for ever."""


def effective_spec(node: Node, kaiwo: KaiwoNode) -> PartitioningSpec:
    """What is asked for: each label beats its field of the spec."""
    spec = kaiwo.spec.partitioning
    enabled, profile = node.labels.get(ENABLED_LABEL), node.labels.get(PROFILE_LABEL)
    return PartitioningSpec(
        enabled=spec.enabled if enabled is None else enabled == "true",
        profile=spec.profile if profile is None else profile,
    )


def find_label_fault(node: Node) -> str:
    """Why the label that enables does not; empty where nothing is wrong with it."""
    value = node.labels.get(ENABLED_LABEL, "true")
    return "" if value in ("true", "false") else f"label {ENABLED_LABEL} is {value!r}; right would be true or false"


def prepare_objects(seen: Observation, settings: Settings) -> Plan | None:
    """What has to be there before a phase can be decided on; None when all is."""
    node, kaiwo = seen.node, seen.kaiwo
    if kaiwo is None:
        return Plan((EnsureKaiwoNode(node.name, node.uid),))
    actions: list[Action] = []
    wanted, spec = effective_spec(node, kaiwo), kaiwo.spec.partitioning
    if wanted != spec:
        enabled = wanted.enabled if wanted.enabled != spec.enabled else None
        profile = wanted.profile if wanted.profile != spec.profile else None
        actions.append(SetSpec(node.name, enabled, profile))
    if wanted.enabled and seen.profiles is None and not seen.profiles_fault:
        actions.append(EnsureConfigMap())
    return Plan(tuple(actions)) if actions else None
