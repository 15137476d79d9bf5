"""The actions of a plan: what a phase asks for, and what changing it writes."""

import json
import zlib
from datetime import UTC, datetime
from typing import Final

from api.kaiwo import (
    DCM_PROFILE_LABEL,
    DCM_STATE_LABEL,
    KaiwoCondition,
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
    NEXT,
    Sensed,
    Signal,
    blocking_pods,
    effective_spec,
    prepare_objects,
    sense,
)
from controller.nodepartitioning.resources import build_resources
from controller.nodepartitioning.state import KaiwoNode, Observation, Settings, Taint

CONDITION: Final = "PartitioningCompleted"
_RESTING: Final = frozenset({"Completed", "Error"})
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
    if phase is None:
        status = _build_status(seen, kaiwo, old, sensed)
        actions = _phase_actions(seen, old, settings)
        return Plan((*actions, *_write(seen, status)), (), _wake_after(old, settings))
    new = _enter(phase, old, sensed, seen, kaiwo)
    status = _build_status(seen, kaiwo, new, sensed)
    # The status first: it is what a restart goes by. Then the taints that the new phase asks for, or asks away.
    actions = (*_write(seen, status), *_phase_actions(seen, new, settings))
    return Plan(actions, _reports(phase, new, sensed), 0.0 if phase in ACTIVE else _wake_after(new, settings))


def _enter(
    phase: Phase, old: PartitioningStatus, sensed: Sensed, seen: Observation, kaiwo: KaiwoNode
) -> PartitioningStatus:
    profile = effective_spec(seen.node, kaiwo).profile
    new = old.model_copy(update={"phase": phase, "phase_since": seen.now})
    if phase == "Pending" and profile != old.target_profile:
        new = new.model_copy(update={"target_profile": profile, "attempts": 0})
    if phase == "DrainingUntoleratedPods":
        new = new.model_copy(
            update={
                "target_profile": profile,
                "target_modes": sensed.modes,
                "attempt_id": build_attempt_id(seen, profile, old.attempts),
                "applier": "dcm" if seen.dcm_present else "plugin",
            }
        )
    if phase == "Completed":
        new = new.model_copy(
            update={
                "applied_profile": profile if sensed.modes else old.target_profile,
                "target_profile": profile if sensed.modes else old.target_profile,
                "attempts": 0,
            }
        )
    if phase == "Error":
        failed = sensed.signal in _FAILURES
        new = new.model_copy(update={"attempts": old.attempts + 1 if failed else 0})
    if phase == "":
        new = new.model_copy(update={"target_profile": "", "target_modes": (), "attempts": 0})
    return new


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
    elif status.phase in ACTIVE:
        # DCM's own pod tolerates its own taint only, and must be able to start again meanwhile.
        wanted = DCM_TAINTS if status.applier == "dcm" else APPLY_TAINTS
    ours = seen.node.taints & APPLY_TAINTS
    if ours == wanted:
        return []
    return [SetTaints(seen.node.name, add=wanted - ours, remove=ours - wanted)]


def _apply(seen: Observation, status: PartitioningStatus) -> list[Action]:
    node, labels = seen.node, seen.node.labels
    if status.applier == "dcm":
        if status.phase == "ApplyingPartitions" and labels.get(DCM_PROFILE_LABEL) != status.target_profile:
            return [StartDcm(node.name, status.target_profile)]
        is_left = DCM_PROFILE_LABEL in labels or DCM_STATE_LABEL in labels
        if status.phase in ("DrainingUntoleratedPods", "Error") and is_left:
            return [StopDcm(node.name)]
    if status.applier == "plugin" and status.phase == "ApplyingPartitions" and node.target_id != status.attempt_id:
        modes = tuple(None if mode == "-" else mode for mode in status.target_modes)
        return [SetTarget(node.name, Target(id=status.attempt_id, modes=modes))]
    if status.phase == "" and node.target_id:  # left by a KaiwoNode that was deleted, too
        return [SetTarget(node.name, None)]
    return []


def _build_status(seen: Observation, kaiwo: KaiwoNode, status: PartitioningStatus, sensed: Sensed) -> KaiwoNodeStatus:
    overall: Overall = "Ready" if seen.node.is_ready else "NotReady"
    if status.phase == "Error":
        overall = "Error"
    elif status.phase in ACTIVE:
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
        conditions=_build_conditions(seen, kaiwo, status, sensed),
    )


def _build_conditions(
    seen: Observation, kaiwo: KaiwoNode, status: PartitioningStatus, sensed: Sensed
) -> list[KaiwoCondition]:
    if status.phase == "":
        return []
    old = next((condition for condition in kaiwo.status.conditions if condition.type == CONDITION), None)
    reason = {"Completed": "Complete", "Error": "Failed"}.get(status.phase, "InProgress")
    keeps = old is not None and old.reason == reason
    message = sensed.message
    if old is not None and keeps and (not message or (sensed.signal is Signal.NOTHING and status.phase in _RESTING)):
        message = old.message  # why it failed stays to be read
    return [
        KaiwoCondition(
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
    if status.phase in ("", "Completed"):
        return None
    return settings.poll_s


_EVENTS: Final[dict[Phase, tuple[str, str]]] = {
    "DrainingUntoleratedPods": ("Normal", "PartitioningStarted"),
    "ApplyingPartitions": ("Normal", "NodeDrained"),
    "WaitingForResourceUpdate": ("Normal", "PartitionsApplied"),
    "Completed": ("Normal", "PartitioningCompleted"),
    "Error": ("Warning", "PartitioningFailed"),
}


def _reports(phase: Phase, status: PartitioningStatus, sensed: Sensed) -> tuple[Report, ...]:
    if phase not in _EVENTS:
        return ()
    kind, reason = _EVENTS[phase]
    return (Report(kind, reason, f"{status.target_profile or 'partitioning'}: {sensed.message}"),)
