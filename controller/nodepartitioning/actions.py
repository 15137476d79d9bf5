"""The vocabulary of plans for partitioning nodes: what can be done to the cluster. Each is safe to repeat."""

from dataclasses import dataclass
from typing import Literal

from api.kaiwo import KaiwoNodeStatus, Target
from controller.nodepartitioning.state import Taint


@dataclass(frozen=True, slots=True)
class EnsureKaiwoNode:
    """Create the KaiwoNode of a Node, owned by it."""

    node: str
    uid: str


@dataclass(frozen=True, slots=True)
class SetSpec:
    """Copy what the Node's labels say into the spec. None: leave the field."""

    node: str
    enabled: bool | None
    profile: str | None


@dataclass(frozen=True, slots=True)
class EnsureConfigMap:
    """Create the ConfigMap with the default profiles; one that exists is left alone."""


@dataclass(frozen=True, slots=True)
class AddTolerations:
    kind: str
    namespace: str
    name: str


@dataclass(frozen=True, slots=True)
class SetTaints:
    """`remove` and `add` taints of ours; all others stay. With `amd-dcm` goes the mark that it is ours."""

    node: str
    add: frozenset[Taint] = frozenset()
    remove: frozenset[Taint] = frozenset()


@dataclass(frozen=True, slots=True)
class EvictPod:
    """Through the eviction API, which respects PodDisruptionBudgets; the next plan tries again what is refused."""

    namespace: str
    name: str
    uid: str


@dataclass(frozen=True, slots=True)
class SetTarget:
    """Tell our node plugin; None takes the target away."""

    node: str
    target: Target | None


@dataclass(frozen=True, slots=True)
class StartDcm:
    """Take DCM's state label away, and set its profile label; an unchanged label value would start nothing."""

    node: str
    profile: str


@dataclass(frozen=True, slots=True)
class StopDcm:
    """Take DCM's profile label and state label away."""

    node: str


@dataclass(frozen=True, slots=True)
class WriteStatus:
    node: str
    status: KaiwoNodeStatus


Action = (
    EnsureKaiwoNode
    | SetSpec
    | EnsureConfigMap
    | AddTolerations
    | SetTaints
    | EvictPod
    | SetTarget
    | StartDcm
    | StopDcm
    | WriteStatus
)


@dataclass(frozen=True, slots=True)
class Report:
    """An Event for people, on the Node."""

    kind: Literal["Normal", "Warning"]
    reason: str
    note: str


@dataclass(frozen=True, slots=True)
class Plan:
    """Do `actions` in order; an action whose turn comes after a failed one waits for the next plan."""

    actions: tuple[Action, ...] = ()
    reports: tuple[Report, ...] = ()
    wake_after_s: float | None = None
