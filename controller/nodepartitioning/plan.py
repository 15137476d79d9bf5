"""Partitioning of nodes, decided on values: one node, one step further.

    (none) -> Pending -> DrainingUntoleratedPods -> ApplyingPartitions -> WaitingForResourceUpdate -> Completed
                                                    any of them -> Error -> Pending again

First nothing new may come (NoSchedule) and pods are evicted as their PodDisruptionBudgets allow. Only when none is left
that could be hurt do the NoExecute taints follow, which the Device Config Manager asks for. Every phase has a limit; a
node that fails is untainted, and says why.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from api.errors import InvalidObject
from api.kaiwo import (
    CONFIG_MAP_NAME,
    CONFIG_MAP_NAMESPACE,
    DCM_PROFILE_LABEL,
    DCM_STATE_LABEL,
    DCM_TAINT_KEY,
    DCM_TAINT_VALUE,
    ENABLED_LABEL,
    KAIWO_TAINT_KEY,
    PROFILE_LABEL,
    PartitioningSpec,
    PartitioningStatus,
    Phase,
    assign_modes,
)
from controller.nodepartitioning.actions import Action, EnsureConfigMap, EnsureKaiwoNode, Plan, SetSpec
from controller.nodepartitioning.resources import group_by_gpu
from controller.nodepartitioning.state import Device, KaiwoNode, Node, Observation, Pod, Settings, Taint

DRAIN_TAINTS: Final = frozenset({Taint(KAIWO_TAINT_KEY, "", "NoSchedule")})
DCM_TAINTS: Final = frozenset({Taint(DCM_TAINT_KEY, DCM_TAINT_VALUE, "NoExecute")})
APPLY_TAINTS: Final = DRAIN_TAINTS | DCM_TAINTS | {Taint(KAIWO_TAINT_KEY, "", "NoExecute")}
ACTIVE: Final[frozenset[Phase]] = frozenset(
    {"DrainingUntoleratedPods", "ApplyingPartitions", "WaitingForResourceUpdate"}
)
"""A node in these phases is tainted."""


class Signal(Enum):
    """What the world says about a node, seen from its phase."""

    NOTHING = auto()
    REQUESTED = auto()
    """A mode is asked for that the node is not in, or not any more."""
    MATCHED = auto()
    """The node is in the mode that is asked for."""
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
    ("Pending", Signal.ADMITTED): "DrainingUntoleratedPods",
    ("DrainingUntoleratedPods", Signal.WITHDRAWN): "",
    ("DrainingUntoleratedPods", Signal.REQUESTED): "Pending",
    ("DrainingUntoleratedPods", Signal.TIMED_OUT): "Error",
    ("DrainingUntoleratedPods", Signal.DRAINED): "ApplyingPartitions",
    ("ApplyingPartitions", Signal.APPLIED): "WaitingForResourceUpdate",
    ("ApplyingPartitions", Signal.FAILED): "Error",
    ("ApplyingPartitions", Signal.TIMED_OUT): "Error",
    ("WaitingForResourceUpdate", Signal.VERIFIED): "Completed",
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


def effective_spec(node: Node, kaiwo: KaiwoNode) -> PartitioningSpec:
    """What is asked for: each label beats its field of the spec."""
    spec = kaiwo.spec.partitioning
    enabled, profile = node.labels.get(ENABLED_LABEL), node.labels.get(PROFILE_LABEL)
    return PartitioningSpec(
        enabled=spec.enabled if enabled is None else enabled == "true",
        profile=spec.profile if profile is None else profile,
    )


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


def sense(seen: Observation, kaiwo: KaiwoNode, settings: Settings) -> Sensed:
    """What the world says. For a phase that runs, the target is fixed: what is asked for meanwhile comes after."""
    status = kaiwo.status.partitioning
    match status.phase:
        case "DrainingUntoleratedPods":
            return _sense_draining(seen, kaiwo, status, settings)
        case "ApplyingPartitions":
            return _sense_applying(seen, status, settings)
        case "WaitingForResourceUpdate":
            return _sense_waiting(seen, status, settings)
        case _:
            return _sense_resting(seen, kaiwo, status, settings)


def _sense_resting(seen: Observation, kaiwo: KaiwoNode, status: PartitioningStatus, settings: Settings) -> Sensed:
    spec = effective_spec(seen.node, kaiwo)
    if not spec.enabled:
        return Sensed(Signal.NOTHING if status.phase == "Completed" else Signal.WITHDRAWN)
    if seen.published is None:
        return Sensed(Signal.NOTHING, "waiting for the node's ResourceSlices of gpu.amd.com")
    if not seen.published and status.phase in ("Completed", "Error"):
        return Sensed(Signal.NOTHING, "the node shows no AMD GPUs at the moment")
    try:
        modes = _wanted_modes(seen, spec.profile, len({device.gpu for device in seen.published}))
    except InvalidObject as error:
        return Sensed(Signal.FAULTY, str(error))
    is_new = spec.profile != status.target_profile
    if _is_published(modes, seen.published):
        is_known = status.phase == "Completed" and spec.profile == status.applied_profile
        return Sensed(Signal.NOTHING if is_known else Signal.MATCHED, f"the node is in profile {spec.profile}", modes)
    if status.phase == "Pending":
        return _sense_pending(seen, settings, modes)
    if status.phase == "Error" and not is_new and status.attempts:
        return _sense_retry(seen, status, settings, modes)
    return Sensed(Signal.REQUESTED, f"profile {spec.profile} is asked for", modes)


def _sense_pending(seen: Observation, settings: Settings, modes: tuple[str, ...]) -> Sensed:
    if not seen.is_admitted:
        return Sensed(Signal.NOTHING, f"waiting: {settings.max_unavailable} nodes may be partitioned at a time", modes)
    if settings.tolerate_kube_system and not all(workload.tolerates for workload in seen.kube_system):
        return Sensed(Signal.NOTHING, "adding tolerations to the workloads in kube-system", modes)
    return Sensed(Signal.ADMITTED, "draining", modes)


def _sense_retry(seen: Observation, status: PartitioningStatus, settings: Settings, modes: tuple[str, ...]) -> Sensed:
    delays = settings.limits.retry_after_s
    if status.attempts > len(delays):
        return Sensed(Signal.NOTHING)
    if seen.now - status.phase_since < delays[status.attempts - 1]:
        return Sensed(Signal.NOTHING)
    return Sensed(Signal.RETRY, f"trying again, attempt {status.attempts + 1}", modes)


def _wanted_modes(seen: Observation, name: str, gpu_count: int) -> tuple[str, ...]:
    if gpu_count == 0:
        raise InvalidObject("cannot partition a node without AMD GPUs")
    if seen.profiles_fault:
        raise InvalidObject(seen.profiles_fault)
    profiles = seen.profiles or {}
    profile = profiles.get(name)
    if profile is None:
        raise InvalidObject(
            f"profile {name!r} is not in ConfigMap {CONFIG_MAP_NAMESPACE}/{CONFIG_MAP_NAME}; "
            f"there are: {', '.join(sorted(profiles)) or 'none'}"
        )
    return tuple(mode.profile if mode else "-" for mode in assign_modes(name, profile, gpu_count))


def _is_published(modes: Sequence[str], published: Sequence[Device] | None) -> bool:
    """Every GPU shows devices of its mode, and of no other."""
    shown = group_by_gpu(published or ())
    if len(shown) != len(modes):
        return False
    return all(
        mode == "-" or {device.profile for device in devices} == {mode}
        for mode, devices in zip(modes, shown, strict=True)
    )


def blocking_pods(seen: Observation) -> tuple[Pod, ...]:
    """Pods that have to go: those that the taints would kill, and those that hold GPUs, whatever they tolerate."""
    return tuple(pod for pod in seen.pods if not pod.is_static and (not pod.tolerates or pod.claims))


def _sense_draining(seen: Observation, kaiwo: KaiwoNode, status: PartitioningStatus, settings: Settings) -> Sensed:
    spec = effective_spec(seen.node, kaiwo)
    if not spec.enabled:
        return Sensed(Signal.WITHDRAWN)
    if spec.profile != status.target_profile:
        return Sensed(Signal.REQUESTED, f"profile {spec.profile} is asked for instead of {status.target_profile}")
    pods = blocking_pods(seen)
    statics = [pod for pod in seen.pods if pod.is_static and pod.claims]
    names = ", ".join(sorted(pod.label for pod in (*pods, *statics))[:5])
    if pods or statics:
        waiting = f"waiting for {len(pods) + len(statics)} pods to leave: {names}"
        if seen.now - status.phase_since >= settings.limits.drain_s:
            return Sensed(Signal.TIMED_OUT, f"not drained after {settings.limits.drain_s:.0f} s: {waiting}")
        return Sensed(Signal.NOTHING, waiting)
    labels = seen.node.labels
    if status.applier == "dcm" and (DCM_PROFILE_LABEL in labels or DCM_STATE_LABEL in labels):
        return Sensed(Signal.NOTHING, "taking away what an earlier run of the Device Config Manager left")
    return Sensed(Signal.DRAINED, "applying")


def _sense_applying(seen: Observation, status: PartitioningStatus, settings: Settings) -> Sensed:
    is_dcm = status.applier == "dcm"
    limit_s = settings.limits.dcm_apply_s if is_dcm else settings.limits.plugin_apply_s
    message = "the node plugin has not answered yet"
    if is_dcm:
        state = seen.node.labels.get(DCM_STATE_LABEL, "")
        if state == "success" and seen.node.labels.get(DCM_PROFILE_LABEL) == status.target_profile:
            return Sensed(Signal.APPLIED, "waiting for the ResourceSlices to show it")
        message = f"the Device Config Manager says {state or 'nothing yet'}; it tries again each minute for 30 minutes"
    elif seen.node.report is not None and seen.node.report.id == status.attempt_id:
        report = seen.node.report
        if report.state == "success":
            return Sensed(Signal.APPLIED, "waiting for the ResourceSlices to show it")
        if report.state == "failure":
            return Sensed(Signal.FAILED, f"the node plugin could not apply it: {report.message}")
        message = report.message or "the node plugin is at work"
    if seen.now - status.phase_since >= limit_s:
        return Sensed(Signal.TIMED_OUT, f"not applied after {limit_s:.0f} s: {message}")
    return Sensed(Signal.NOTHING, message)


def _sense_waiting(seen: Observation, status: PartitioningStatus, settings: Settings) -> Sensed:
    """Both must agree: what is published, and what the plugin read from the hardware."""
    report = seen.node.report if status.applier == "plugin" else None
    read = report.modes if report is not None and report.id == status.attempt_id else ()
    differs = [
        f"GPU {index} is in {now or 'no mode'}"
        for index, (mode, now) in enumerate(zip(status.target_modes, read, strict=False))
        if mode not in ("-", now)
    ]
    if not differs and _is_published(status.target_modes, seen.published):
        return Sensed(Signal.VERIFIED, f"the node is in profile {status.target_profile}")
    message = "; ".join(differs) or "the ResourceSlices do not show it yet"
    if seen.now - status.phase_since >= settings.limits.verify_s:
        return Sensed(Signal.TIMED_OUT, f"not seen after {settings.limits.verify_s:.0f} s: {message}")
    return Sensed(Signal.NOTHING, message)


def admit(nodes: Sequence[tuple[Node, PartitioningStatus]], settings: Settings) -> frozenset[str]:
    """Names of the waiting nodes that may begin. `nodes`: all that have AMD GPUs.

    Nodes that are being partitioned, that failed, or that are not ready count as unavailable: a profile that breaks
    nodes stops at the limit. Control-plane nodes come last, and one at a time.
    """
    unavailable = [
        node
        for node, status in nodes
        if status.phase in ACTIVE or (status.phase == "Error" and status.attempts) or not node.is_ready
    ]
    free = settings.max_unavailable - len(unavailable)
    control_plane_busy = any(node.is_control_plane for node in unavailable)
    waiting = sorted(
        (node for node, status in nodes if status.phase == "Pending" and node.is_ready),
        key=lambda node: (node.is_control_plane, node.name),
    )
    admitted: list[str] = []
    for node in waiting[: max(0, free)]:
        if node.is_control_plane and (control_plane_busy or (len(waiting) > 1 and not waiting[0].is_control_plane)):
            continue
        control_plane_busy = control_plane_busy or node.is_control_plane
        admitted.append(node.name)
    return frozenset(admitted)
