"""What the world says about a node, seen from the phase that it is in. Pure."""

from collections.abc import Sequence
from typing import Final

from api.errors import InvalidObject
from api.kaiwo import (
    CONFIG_MAP_NAME,
    CONFIG_MAP_NAMESPACE,
    DCM_PROFILE_LABEL,
    DCM_STATE_LABEL,
    PartitioningSpec,
    PartitioningStatus,
    assign_modes,
    parse_profile,
)
from controller.nodepartitioning.plan import Sensed, Signal, effective_spec, find_label_fault
from controller.nodepartitioning.resources import group_by_gpu
from controller.nodepartitioning.state import Device, KaiwoNode, Observation, Pod, Settings

KUBE_SYSTEM: Final = "kube-system"
_NAMED: Final = 5  # in one message


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
        return _sense_withdrawn(seen, status)
    lacking = _sense_lack(seen, spec, status, settings)
    if lacking is not None:
        return lacking
    published = seen.published or ()
    try:
        modes = _wanted_modes(seen, spec.profile, len(group_by_gpu(published)))
    except InvalidObject as error:
        return Sensed(Signal.FAULTY, str(error))
    if _is_published(modes, published) and not _is_disproved(seen, status, modes):
        is_known = status.phase == "Completed" and (spec.profile, modes) == (
            status.applied_profile,
            status.target_modes,
        )
        return Sensed(Signal.NOTHING if is_known else Signal.MATCHED, f"the node is in profile {spec.profile}", modes)
    if status.phase == "Pending":
        return _sense_pending(seen, status, settings, modes)
    is_new = (spec.profile, modes) != (status.target_profile, status.target_modes)
    if status.phase == "Error" and not is_new and status.attempts:
        return _sense_retry(seen, status, settings, modes)
    return Sensed(Signal.REQUESTED, f"profile {spec.profile} is asked for", modes)


def _sense_withdrawn(seen: Observation, status: PartitioningStatus) -> Sensed:
    fault = find_label_fault(seen.node)
    if status.phase == "Completed":
        return Sensed(Signal.NOTHING, fault or f"nothing is asked for; profile {status.applied_profile} stays")
    if status.phase == "":
        return Sensed(Signal.NOTHING, fault)
    return Sensed(Signal.WITHDRAWN)


def _sense_lack(
    seen: Observation, spec: PartitioningSpec, status: PartitioningStatus, settings: Settings
) -> Sensed | None:
    """What GPUs that are not shown mean; None where all are, or where waiting for them has no point."""
    count, known = len(group_by_gpu(seen.published or ())), len(status.target_modes)
    if count and count >= known:
        return None
    message = f"the node shows {count} of its {known} GPUs; the others cannot be read, or claims from before hold them"
    if not count:
        message = "waiting for the node's ResourceSlices of gpu.amd.com"
    if spec.profile == status.target_profile and status.phase == "Completed":
        return Sensed(Signal.NOTHING, message)
    if spec.profile == status.target_profile and status.phase == "Error":
        return Sensed(Signal.NOTHING)
    if not _is_over(seen, status, settings):
        return Sensed(Signal.NOTHING, message, is_limited=True)
    return None if count else Sensed(Signal.FAULTY, "cannot partition a node without AMD GPUs")


def _is_over(seen: Observation, status: PartitioningStatus, settings: Settings) -> bool:
    return bool(status.waiting_since) and seen.now - status.waiting_since >= settings.limits.begin_s


def _sense_pending(seen: Observation, status: PartitioningStatus, settings: Settings, modes: tuple[str, ...]) -> Sensed:
    if _is_present(modes, seen.published or ()):
        return Sensed(Signal.PRESENT, "the GPUs are in that mode; from now on claims do not change it", modes)
    if not seen.is_admitted:
        who = ", ".join(seen.unavailable[:_NAMED]) or "other nodes come first"
        limit = f"{settings.max_unavailable} nodes may be unavailable at a time"
        return Sensed(Signal.NOTHING, f"waiting, since {limit}: {who}", modes)
    reason = _find_hindrance(seen, settings)
    if not reason:
        return Sensed(Signal.ADMITTED, "draining", modes)
    if _is_over(seen, status, settings):
        return Sensed(Signal.TIMED_OUT, f"not begun after {settings.limits.begin_s:.0f} s: {reason}", modes)
    return Sensed(Signal.NOTHING, reason, modes, is_limited=True)


def _find_hindrance(seen: Observation, settings: Settings) -> str:
    """What has to be there before the first taint; empty for nothing."""
    if seen.dcm_unready:
        return f"the Device Config Manager's pod {seen.dcm_unready} is not ready"
    if not settings.tolerate_kube_system:
        return ""
    rigid = [f"{each.kind} {each.name}" for each in seen.kube_system if not each.tolerates]
    if rigid:
        return f"adding tolerations to workloads in {KUBE_SYSTEM}: {', '.join(rigid[:_NAMED])}"
    old = [each.label for each in seen.pods if each.namespace == KUBE_SYSTEM and _is_outdated(each)]
    return f"waiting for pods that tolerate the taints to replace {', '.join(old[:_NAMED])}" if old else ""


def _is_outdated(pod: Pod) -> bool:
    """Its workload tolerates the taints, or will; this pod is from before."""
    return pod.is_replaceable and not pod.tolerates and not pod.is_static


def _sense_retry(seen: Observation, status: PartitioningStatus, settings: Settings, modes: tuple[str, ...]) -> Sensed:
    delays = settings.limits.retry_after_s
    if status.attempts > len(delays):
        return Sensed(Signal.NOTHING)
    if seen.now - status.phase_since < delays[status.attempts - 1]:
        return Sensed(Signal.NOTHING)
    return Sensed(Signal.RETRY, f"trying again, attempt {status.attempts + 1}", modes)


def _wanted_modes(seen: Observation, name: str, gpu_count: int) -> tuple[str, ...]:
    if seen.profiles_fault:
        raise InvalidObject(seen.profiles_fault)
    profiles = seen.profiles or {}
    if name not in profiles:
        raise InvalidObject(
            f"profile {name!r} is not in ConfigMap {CONFIG_MAP_NAMESPACE}/{CONFIG_MAP_NAME}; "
            f"there are: {', '.join(sorted(profiles)) or 'none'}"
        )
    return tuple(
        mode.profile if mode else "-" for mode in assign_modes(name, parse_profile(name, profiles[name]), gpu_count)
    )


def _is_published(modes: Sequence[str], published: Sequence[Device] | None) -> bool:
    """Every GPU shows devices of its mode, and of no other."""
    shown = group_by_gpu(published or ())
    if len(shown) != len(modes):
        return False
    return all(
        mode == "-" or {device.profile for device in devices} == {mode}
        for mode, devices in zip(modes, shown, strict=True)
    )


def _is_present(modes: Sequence[str], published: Sequence[Device]) -> bool:
    """Of the modes that every GPU offers it is in the right one."""
    return all(
        mode == "-" or any(device.is_present and device.profile == mode for device in devices)
        for mode, devices in zip(modes, group_by_gpu(published), strict=True)
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
    names = ", ".join(sorted(_describe(pod, seen) for pod in (*pods, *statics))[:_NAMED])
    if pods or statics:
        waiting = f"waiting for {len(pods) + len(statics)} pods to leave: {names}"
        if seen.now - status.phase_since >= settings.limits.drain_s:
            return Sensed(Signal.TIMED_OUT, f"not drained after {settings.limits.drain_s:.0f} s: {waiting}")
        return Sensed(Signal.NOTHING, waiting)
    labels = seen.node.labels
    if status.applier == "dcm" and (DCM_PROFILE_LABEL in labels or DCM_STATE_LABEL in labels):
        return Sensed(Signal.NOTHING, "taking away what an earlier run of the Device Config Manager left")
    return Sensed(Signal.DRAINED, "applying")


def _describe(pod: Pod, seen: Observation) -> str:
    refused = seen.refused.get(pod.uid)
    return f"{pod.label} ({refused})" if refused else pod.label


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
    report = seen.node.report
    if status.applier != "plugin":
        message = ""
    elif report is None or report.id != status.attempt_id or report.state == "working":
        message = "the node plugin has not answered yet"
    elif report.state == "failure":
        return Sensed(Signal.FAILED, f"the node plugin could not apply it: {report.message}")
    else:
        message = _compare(status.target_modes, report.modes)
    if not message and _is_shown(seen, status):
        return Sensed(Signal.VERIFIED, f"the node is in profile {status.target_profile}")
    message = message or "the ResourceSlices do not show it yet"
    if seen.now - status.phase_since >= settings.limits.verify_s:
        return Sensed(Signal.TIMED_OUT, f"not seen after {settings.limits.verify_s:.0f} s: {message}")
    return Sensed(Signal.NOTHING, message)


def _is_disproved(seen: Observation, status: PartitioningStatus, modes: tuple[str, ...]) -> bool:
    """A node that failed since the hardware is not what the ResourceSlices show stays so."""
    report = seen.node.report
    if status.phase != "Error" or status.applier != "plugin" or modes != status.target_modes or report is None:
        return False
    return report.id == status.attempt_id and report.state == "success" and bool(_compare(modes, report.modes))


def _compare(wanted: Sequence[str], read: Sequence[str | None]) -> str:
    """How the hardware differs; empty where it does not."""
    if len(read) != len(wanted):
        return f"the node plugin has read the modes of {len(read)} GPUs, not of {len(wanted)}"
    pairs = enumerate(zip(wanted, read, strict=True))
    return "; ".join(f"GPU {index} is in {now or 'no mode'}" for index, (mode, now) in pairs if mode not in ("-", now))


def _is_shown(seen: Observation, status: PartitioningStatus) -> bool:
    """Of a node that is not drained, devices may be missing: those that claims hold under names from before."""
    if not status.in_place:
        return _is_published(status.target_modes, seen.published)
    return "-" in status.target_modes or {each.profile for each in seen.published or ()} <= set(status.target_modes)
