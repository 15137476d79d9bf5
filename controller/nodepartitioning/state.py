"""What is known about one node that is to be partitioned, as values."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from api.kaiwo import KAIWO_TAINT_KEY, KaiwoNodeSpec, KaiwoNodeStatus, TargetReport


@dataclass(frozen=True, slots=True, order=True)
class Taint:
    key: str
    value: str
    effect: str


@dataclass(frozen=True, slots=True)
class Node:
    name: str
    uid: str
    labels: Mapping[str, str] = field(default_factory=dict)
    taints: frozenset[Taint] = frozenset()
    is_control_plane: bool = False
    is_ready: bool = True
    is_unschedulable: bool = False
    cpu: str = "0"
    memory: str = "0"
    """Allocatable, as quantities."""
    target_id: str = ""
    """Of the target that stands on the Node for our plugin."""
    report: TargetReport | None = None
    owns_dcm_taint: bool = False
    """The taint `amd-dcm` was set by us, not by an administrator."""
    asked_dcm: bool = False
    """DCM's labels were set by us."""

    @property
    def is_touched(self) -> bool:
        """Something of ours is on it, whatever became of its KaiwoNode."""
        has_taint = any(taint.key == KAIWO_TAINT_KEY for taint in self.taints)
        return bool(self.target_id) or self.owns_dcm_taint or self.asked_dcm or has_taint


@dataclass(frozen=True, slots=True)
class KaiwoNode:
    spec: KaiwoNodeSpec = field(default_factory=KaiwoNodeSpec)
    status: KaiwoNodeStatus = field(default_factory=KaiwoNodeStatus)


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod on the node that has not ended."""

    namespace: str
    name: str
    uid: str
    tolerates: bool
    """Both NoExecute taints of partitioning, or it is the Device Config Manager itself."""
    is_static: bool = False
    """Run by the kubelet itself: cannot be evicted, is not affected by taints."""
    is_terminating: bool = False
    is_replaceable: bool = False
    """A pod of a Deployment or DaemonSet."""
    claims: tuple[str, ...] = ()
    """`<namespace>/<name>` of the claims with AMD GPUs of this node that are reserved for it."""

    @property
    def label(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class Workload:
    """A Deployment or DaemonSet in kube-system."""

    kind: str
    namespace: str
    name: str
    tolerates: bool
    """All taints of partitioning: its pods stay, and new ones may come."""


@dataclass(frozen=True, slots=True, order=True)
class Device:
    """One that the node's ResourceSlices offer."""

    gpu: str
    """PCI address of the GPU that it is, or is a part of."""
    profile: str
    """Empty where the GPU cannot be partitioned."""
    product: str = ""
    memory_bytes: int = 0
    partitions: int = 1
    """That it stands for, each with so much memory."""
    is_present: bool = False
    """Of several modes that claims may choose from, this is the one that the GPU is in."""


@dataclass(frozen=True, slots=True)
class Observation:
    """`now` in seconds since 1970."""

    now: float
    node: Node
    kaiwo: KaiwoNode | None = None
    profiles: Mapping[str, Any] | None = None
    """By name, as they stand in the ConfigMap. None: there is none."""
    profiles_fault: str = ""
    """Why the ConfigMap cannot be read."""
    pods: tuple[Pod, ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict)
    """Why the last eviction of a pod was refused, by UID."""
    kube_system: tuple[Workload, ...] = ()
    published: tuple[Device, ...] | None = None
    """In order of GPUs. None: no slices, or not complete."""
    dcm_present: bool = False
    """A Device Config Manager is ready on this node."""
    dcm_unready: str = ""
    """Its pod, where there is one that is not ready."""
    is_admitted: bool = True
    """Fewer nodes than allowed are being partitioned; see `admission.admit`."""
    unavailable: tuple[str, ...] = ()
    """The nodes that count against that limit, each with its reason."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds. A phase that lasts longer ends in Error."""

    drain_s: float
    plugin_apply_s: float
    dcm_apply_s: float
    """DCM tries again each minute for 30 minutes, so that `failure` may become `success`."""
    begin_s: float = 300.0
    """For ResourceSlices to show the node's GPUs, DCM to be ready, and pods of kube-system to tolerate the taints."""
    verify_s: float = 120.0
    retry_after_s: tuple[float, ...] = (120.0, 300.0, 600.0, 1200.0, 1800.0)
    """After the first, second ... failure. After the last one only a change of the request starts anew."""


@dataclass(frozen=True, slots=True)
class Settings:
    limits: Limits
    max_unavailable: int
    """Nodes that are partitioned at a time."""
    tolerate_kube_system: bool
    """Add tolerations to the Deployments and DaemonSets in kube-system before the first node is tainted."""
    poll_s: float = 2.0
