"""From objects of the API server to the values that plans are made from. Pure.

What is not ours, or not (yet) of a kind that matters, is None. Malformed configs in other people's claims are no error
of ours: such a claim names no domain.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Final, cast

from api.clique import FAILED_CONDITION, FORMED_CONDITION, KEY_ATTRIBUTE, parse_membership, parse_moment, parse_time
from api.compute_domain import FORCE_DELETE_ANNOTATION
from api.device_config import ComputeDomainChannelConfig, parse_device_config
from api.errors import InvalidObject
from api.names import (
    COMPUTE_DOMAIN_CLIQUE_LABEL,
    COMPUTE_DOMAIN_DRIVER,
    COMPUTE_DOMAIN_FINALIZER,
    COMPUTE_DOMAIN_LABEL,
)
from api.ref import Ref
from controller.computedomain.objects import NODE_ANNOTATION
from controller.computedomain.state import (
    Binding,
    ChannelClaim,
    Clique,
    DaemonClaim,
    DaemonPod,
    Domain,
    NodeFabric,
    Phase,
    Template,
)

Json = Mapping[str, Any]

_CLIQUE_ATTRIBUTE: Final = "cliqueID"


def parse_domain(raw: Json) -> Domain:
    """Not validated again: the CRD's schema admits nothing that this could not read."""
    metadata, spec = raw["metadata"], raw["spec"]
    channel = spec["channel"]
    deleted = metadata.get("deletionTimestamp")
    return Domain(
        ref=_ref("ComputeDomain", raw),
        generation=int(metadata.get("generation", 0)),
        num_nodes=int(spec.get("numNodes") or 0),
        template_name=channel["resourceClaimTemplate"]["name"],
        allocation_mode=channel.get("allocationMode") or "Single",
        wait_for_all=channel.get("releasePolicy") == "AllNodes",
        has_finalizer=COMPUTE_DOMAIN_FINALIZER in (metadata.get("finalizers") or []),
        deleted_at=parse_time(deleted) if deleted else None,
        force=(metadata.get("annotations") or {}).get(FORCE_DELETE_ANNOTATION) == "true",
        status=raw.get("status") or {},
    )


def parse_claim(raw: Json) -> ChannelClaim | DaemonClaim | None:
    """A channel claim that is allocated and in use, or the claim of one of our daemons."""
    metadata = raw["metadata"]
    node, own_uid = _label_and_node(metadata)
    if node and own_uid:
        return DaemonClaim(_ref("ResourceClaim", raw), own_uid, node, _owner_uid(metadata), _is_terminating(metadata))
    status = raw.get("status") or {}
    consumers = status.get("reservedFor") or []
    pods = tuple(
        Ref("Pod", metadata["namespace"], consumer["name"], consumer.get("uid", ""))
        for consumer in consumers
        if consumer.get("resource") == "pods"
    )
    allocation = status.get("allocation") or {}
    results = (allocation.get("devices") or {}).get("results") or []
    channel = next((result for result in results if _is_channel(result)), None)
    if channel is None or not consumers:
        return None
    uid = _find_domain(allocation, channel["request"])
    if uid is None:
        return None
    binding = _parse_binding(channel, status.get("devices") or [])
    return ChannelClaim(_ref("ResourceClaim", raw), uid, channel["pool"], parse_moment(raw), pods, binding)


def _parse_binding(channel: Json, statuses: Iterable[Json]) -> Binding | None:
    """None for a channel that was allocated without conditions of ours."""
    if FORMED_CONDITION not in (channel.get("bindingConditions") or []):
        return None
    key = (channel["device"], channel["pool"], channel.get("shareID") or "")
    mine = (each for each in statuses if each.get("driver") == COMPUTE_DOMAIN_DRIVER)
    stored = next((each for each in mine if (each["device"], each["pool"], each.get("shareID") or "") == key), {})
    formed, failed = (_has_condition(stored, kind, "True") for kind in (FORMED_CONDITION, FAILED_CONDITION))
    return Binding(*key, formed, failed)


def _is_channel(result: Json) -> bool:
    return result.get("driver") == COMPUTE_DOMAIN_DRIVER and str(result.get("device", "")).startswith("channel-")


def _find_domain(allocation: Json, request: str) -> str | None:
    """The domainID that applies to the channel: a claim's config beats its class's, a later one an earlier one.

    A config for `gpu` is for `gpu/large` too, which is what `firstAvailable` results are called.
    """
    names = {request, request.partition("/")[0]}
    found: dict[bool, str] = {}
    for entry in (allocation.get("devices") or {}).get("config") or []:
        opaque = entry.get("opaque") or {}
        requests = entry.get("requests") or []
        if opaque.get("driver") != COMPUTE_DOMAIN_DRIVER or (requests and names.isdisjoint(requests)):
            continue
        try:
            config = parse_device_config(opaque.get("parameters") or {})
        except InvalidObject:
            continue
        if isinstance(config, ComputeDomainChannelConfig):
            found[entry.get("source") == "FromClaim"] = config.domainID
    return found.get(True, found.get(False))


def parse_pod(raw: Json) -> DaemonPod | None:
    metadata, status = raw["metadata"], raw.get("status") or {}
    node, uid = _label_and_node(metadata)
    if not node or not uid:
        return None
    return DaemonPod(
        ref=_ref("Pod", raw),
        domain_uid=uid,
        node=node,
        clique_id=(metadata.get("labels") or {}).get(COMPUTE_DOMAIN_CLIQUE_LABEL, ""),
        owner_uid=_owner_uid(metadata),
        phase=_phase(status),
        address=status.get("podIP") or "",
        created_at=parse_time(metadata.get("creationTimestamp")),
        terminating=_is_terminating(metadata),
        grace_s=float(metadata.get("deletionGracePeriodSeconds") or 0),
        message=_pod_message(status),
        lost_at=_lost_at(status),
    )


def _phase(status: Json) -> Phase:
    if status.get("phase") in ("Failed", "Succeeded"):
        return Phase.FINISHED
    if _has_condition(status, "Ready", "True"):
        return Phase.READY
    running = [entry for entry in status.get("containerStatuses") or [] if "running" in (entry.get("state") or {})]
    return Phase.RUNNING if running else Phase.PENDING


def _lost_at(status: Json) -> float | None:
    """A kubelet never says that a pod is not ready while its containers are: the node lifecycle controller did."""
    containers = status.get("containerStatuses") or []
    if not containers or not all(entry.get("ready") for entry in containers):
        return None
    conditions = status.get("conditions") or []
    unready = [c for c in conditions if (c.get("type"), c.get("status")) == ("Ready", "False")]
    return parse_time(unready[0].get("lastTransitionTime")) if unready else None


_ORDINARY_WAITS: Final = frozenset({"ContainerCreating", "PodInitializing"})


def _pod_message(status: Json) -> str:
    """What keeps it from running, in few and steady words: every new wording would be written to the membership."""
    for condition in status.get("conditions") or []:
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            return "no node fits it; `kubectl describe pod` tells what the scheduler says"
    for entry in status.get("containerStatuses") or []:
        waiting = (entry.get("state") or {}).get("waiting") or {}
        if waiting and waiting.get("reason") not in _ORDINARY_WAITS:
            said = ((entry.get("lastState") or {}).get("terminated") or {}).get("message") or ""
            return ": ".join(words for words in (str(waiting.get("reason", "")), said.strip()) if words)
    return ""


def _has_condition(status: Json, kind: str, value: str) -> bool:
    return any(c.get("type") == kind and c.get("status") == value for c in status.get("conditions") or [])


def parse_clique(raw: Json) -> Clique | None:
    metadata = raw["metadata"]
    if COMPUTE_DOMAIN_LABEL not in (metadata.get("labels") or {}):
        return None
    try:
        membership = parse_membership(raw)
    except InvalidObject:
        return None
    ref = _ref("ComputeDomainClique", raw)
    return Clique(ref, metadata["resourceVersion"], membership, _is_terminating(metadata))


def parse_template(raw: Json) -> Template:
    metadata = raw["metadata"]
    uid = (metadata.get("labels") or {}).get(COMPUTE_DOMAIN_LABEL, "")
    is_owned = any(owner.get("uid") == uid for owner in metadata.get("ownerReferences") or [])
    has_finalizer = COMPUTE_DOMAIN_FINALIZER in (metadata.get("finalizers") or [])
    return Template(_ref("ResourceClaimTemplate", raw), uid, _is_terminating(metadata), is_owned, has_finalizer)


def parse_fabric(raw: Json) -> NodeFabric | None:
    """What a slice of compute-domain.nvidia.com says about its node; None for a slice without channels."""
    spec = raw.get("spec") or {}
    node = spec.get("nodeName")
    devices = {str(device.get("name", "")): device.get("attributes") or {} for device in spec.get("devices") or []}
    channel = next((attributes for name, attributes in devices.items() if name.startswith("channel-")), None)
    if not node or channel is None:
        return None
    keys = [attributes[KEY_ATTRIBUTE] for attributes in devices.values() if KEY_ATTRIBUTE in attributes]
    clique = channel.get(_CLIQUE_ATTRIBUTE) or {}
    return NodeFabric(node, str(clique.get("string", "")), str(keys[0].get("string", "")) if keys else "")


def _ref(kind: str, raw: Json) -> Ref:
    metadata = raw["metadata"]
    return Ref(kind, metadata.get("namespace", ""), metadata["name"], metadata["uid"])


def _label_and_node(metadata: Json) -> tuple[str, str]:
    """The node that one of our daemons' objects is for, and the domain; "" where it is none."""
    uid = (metadata.get("labels") or {}).get(COMPUTE_DOMAIN_LABEL, "")
    return (metadata.get("annotations") or {}).get(NODE_ANNOTATION, ""), uid


def _owner_uid(metadata: Json) -> str:
    owners = metadata.get("ownerReferences") or []
    return cast(str, owners[0]["uid"]) if owners else ""


def _is_terminating(metadata: Json) -> bool:
    return bool(metadata.get("deletionTimestamp"))
