"""The actions of a plan: what a phase asks for, and what changing it writes."""

import json
import zlib
from datetime import UTC, datetime
from typing import Any, Final, Literal

from api.crd import Condition
from api.kaiwo import (
    DCM_PROFILE_LABEL,
    DCM_STATE_LABEL,
    KaiwoNodeStatus,
    NodeType,
    Overall,
    PartitioningStatus,
    Phase,
    Target,
)
from controller.nodepartitioning.actions import (
    Action,
    AddTolerations,
    EvictPod,
    Plan,
    Report,
    SetTaints,
    SetTarget,
    StartDcm,
    StopDcm,
    WriteStatus,
)
from controller.nodepartitioning.plan import (
    ACTIVE,
    APPLY_TAINTS,
    DCM_TAINTS,
    DRAIN_TAINTS,
    KAIWO_TAINTS,
    NEXT,
    Sensed,
    Signal,
    effective_spec,
    find_label_fault,
    prepare_objects,
)
from controller.nodepartitioning.resources import build_resources
from controller.nodepartitioning.sense import blocking_pods, sense
from controller.nodepartitioning.state import KaiwoNode, Observation, Settings, Taint

CONDITION: Final = "PartitioningCompleted"
_FAILURES: Final = frozenset({Signal.FAILED, Signal.TIMED_OUT})


def plan_node(seen: Observation, settings: Settings) -> Plan:
    """One step for one node; nothing to do once the world is as asked for."""
    before = prepare_objects(seen, settings)
    if before is not None or seen.kaiwo is None:
        return before or Plan()
    kaiwo = seen.kaiwo
    sensed = sense(seen, kaiwo, settings)
    old = kaiwo.status.partitioning
    phase = NEXT.get((old.phase, sensed.signal))
    new = _stay(old, sensed, seen) if phase is None else _enter(phase, old, sensed, seen, kaiwo)
    status = _build_status(seen, kaiwo, new, sensed)
    # The status first: it is what a restart goes by, and what people read where something else is refused.
    actions = (*_write(seen, status), *_phase_actions(seen, new, settings))
    if phase is None:
        return Plan(actions, _label_reports(seen), _wake_after(new, settings))
    return Plan(actions, _reports(phase, new, sensed), 0.0 if phase in ACTIVE else _wake_after(new, settings))


def _stay(old: PartitioningStatus, sensed: Sensed, seen: Observation) -> PartitioningStatus:
    since = (old.waiting_since or seen.now) if sensed.is_limited else 0.0
    return old if since == old.waiting_since else old.model_copy(update={"waiting_since": since})


def _enter(
    phase: Phase, old: PartitioningStatus, sensed: Sensed, seen: Observation, kaiwo: KaiwoNode
) -> PartitioningStatus:
    profile = effective_spec(seen.node, kaiwo).profile
    changed: dict[str, Any] = {}
    match phase:
        case "Pending" if profile != old.target_profile or sensed.modes != old.target_modes:
            changed = {"target_profile": profile, "target_modes": sensed.modes, "attempts": 0}
        case "DrainingUntoleratedPods":
            applier = "dcm" if seen.dcm_present else "plugin"
            changed = _begin(seen, profile, sensed, old) | {"applier": applier, "in_place": False}
        case "WaitingForResourceUpdate" if sensed.signal is Signal.PRESENT:
            changed = _begin(seen, profile, sensed, old) | {"applier": "plugin", "in_place": True}
        case "Completed":
            done = profile if sensed.modes else old.target_profile
            modes = sensed.modes or old.target_modes
            changed = {"applied_profile": done, "target_profile": done, "target_modes": modes, "attempts": 0}
        case "Error" if sensed.signal in _FAILURES:
            changed = {"attempts": old.attempts + 1}
        case "Error":
            changed = {"target_profile": profile, "attempts": 0}
        case "":
            changed = {"target_profile": "", "target_modes": (), "attempts": 0}
    return old.model_copy(update={"phase": phase, "phase_since": seen.now, "waiting_since": 0.0, **changed})


def _begin(seen: Observation, profile: str, sensed: Sensed, old: PartitioningStatus) -> dict[str, Any]:
    attempt_id = build_attempt_id(seen, profile, old.attempts)
    return {"target_profile": profile, "target_modes": sensed.modes, "attempt_id": attempt_id}


def build_attempt_id(seen: Observation, profile: str, attempts: int) -> str:
    """New for every attempt, the same when the same attempt is planned again."""
    key = json.dumps([seen.node.uid, profile, attempts, seen.now])
    return f"{zlib.crc32(key.encode()):08x}"


def _phase_actions(seen: Observation, status: PartitioningStatus, settings: Settings) -> tuple[Action, ...]:
    actions: list[Action] = []
    if status.phase == "Pending" and settings.tolerate_kube_system and seen.is_admitted:
        actions += [AddTolerations(w.kind, w.namespace, w.name) for w in seen.kube_system if not w.tolerates]
    actions += _taints(seen, status)
    if status.phase == "DrainingUntoleratedPods":
        leaving = [pod for pod in blocking_pods(seen) if not pod.is_terminating]
        actions += [EvictPod(pod.namespace, pod.name, pod.uid) for pod in leaving]
    actions += _apply(seen, status)
    return tuple(actions)


def _taints(seen: Observation, status: PartitioningStatus) -> list[Action]:
    wanted: frozenset[Taint] = frozenset()
    if status.phase == "DrainingUntoleratedPods":
        wanted = DRAIN_TAINTS
    elif status.phase in ACTIVE and not status.in_place:
        # DCM's own pod tolerates its own taint only, and must be able to start again meanwhile.
        wanted = DCM_TAINTS if status.applier == "dcm" else APPLY_TAINTS
    ours = seen.node.taints & KAIWO_TAINTS
    if seen.node.owns_dcm_taint:
        ours |= DCM_TAINTS  # whether it is still there or not: the mark goes with it
    add, remove = wanted - seen.node.taints, ours - wanted
    return [SetTaints(seen.node.name, add=add, remove=remove)] if add or remove else []


def _apply(seen: Observation, status: PartitioningStatus) -> list[Action]:
    node, labels = seen.node, seen.node.labels
    if status.phase == "":  # left by a KaiwoNode that was deleted, too
        stop: list[Action] = [StopDcm(node.name)] if node.asked_dcm else []
        return [*stop, SetTarget(node.name, None)] if node.target_id else stop
    if status.applier == "dcm":
        if status.phase == "ApplyingPartitions" and labels.get(DCM_PROFILE_LABEL) != status.target_profile:
            return [StartDcm(node.name, status.target_profile)]
        is_left = DCM_PROFILE_LABEL in labels or DCM_STATE_LABEL in labels
        if status.phase in ("DrainingUntoleratedPods", "Error") and is_left:
            return [StopDcm(node.name)]
    applies = status.phase == "ApplyingPartitions" or (status.phase in ACTIVE and status.in_place)
    if status.applier == "plugin" and applies and node.target_id != status.attempt_id:
        modes = tuple(None if mode == "-" else mode for mode in status.target_modes)
        return [SetTarget(node.name, Target(id=status.attempt_id, modes=modes))]
    return []


def _build_status(seen: Observation, kaiwo: KaiwoNode, status: PartitioningStatus, sensed: Sensed) -> KaiwoNodeStatus:
    overall: Overall = "Ready" if seen.node.is_ready else "NotReady"
    if status.phase == "Error":
        overall = "Error"
    elif status.phase in ACTIVE and not status.in_place:
        overall = "Partitioning"
    node_type: NodeType = kaiwo.status.node_type
    resources = kaiwo.status.resources
    if seen.published is not None:
        node_type = "gpu" if seen.published else "cpu-only"
        resources = build_resources(seen.node, seen.published)
    return KaiwoNodeStatus(
        status=overall,
        partitioning=status,
        node_type=node_type,
        resources=resources,
        is_control_plane=seen.node.is_control_plane,
        unschedulable=seen.node.is_unschedulable,
        kueue_flavor_name=kaiwo.status.kueue_flavor_name,
        conditions=_build_conditions(seen, kaiwo, status, sensed),
    )


def _build_conditions(
    seen: Observation, kaiwo: KaiwoNode, status: PartitioningStatus, sensed: Sensed
) -> list[Condition]:
    if status.phase == "" and not sensed.message:
        return []
    old = next((condition for condition in kaiwo.status.conditions if condition.type == CONDITION), None)
    reason = {"Completed": "Complete", "Error": "Failed"}.get(status.phase, "InProgress")
    if status.phase == "" and find_label_fault(seen.node):
        reason = "Failed"
    keeps = old is not None and old.reason == reason
    message = sensed.message
    if old is not None and keeps and not message:
        message = old.message  # why it failed stays to be read
    return [
        Condition(
            type=CONDITION,
            status="True" if reason == "Complete" else "False",
            reason=reason,
            message=message,
            last_transition_time=old.last_transition_time if old is not None and keeps else _timestamp(seen.now),
        )
    ]


def _timestamp(now: float) -> str:
    return datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _write(seen: Observation, status: KaiwoNodeStatus) -> tuple[Action, ...]:
    if seen.kaiwo is not None and seen.kaiwo.status == status:
        return ()
    return (WriteStatus(seen.node.name, status),)


def _wake_after(status: PartitioningStatus, settings: Settings) -> float | None:
    is_resting = status.phase in ("", "Completed") and not status.waiting_since
    return None if is_resting else settings.poll_s


_EVENTS: Final[dict[Phase, tuple[Literal["Normal", "Warning"], str]]] = {
    "DrainingUntoleratedPods": ("Normal", "PartitioningStarted"),
    "ApplyingPartitions": ("Normal", "NodeDrained"),
    "WaitingForResourceUpdate": ("Normal", "PartitionsApplied"),
    "Completed": ("Normal", "PartitioningCompleted"),
    "Error": ("Warning", "PartitioningFailed"),
}


def _label_reports(seen: Observation) -> tuple[Report, ...]:
    fault = find_label_fault(seen.node)
    return (Report("Warning", "LabelNotUnderstood", fault),) if fault else ()


def _reports(phase: Phase, status: PartitioningStatus, sensed: Sensed) -> tuple[Report, ...]:
    if phase not in _EVENTS:
        return ()
    kind, reason = _EVENTS[phase]
    return (Report(kind, reason, f"{status.target_profile or 'partitioning'}: {sensed.message}"),)
