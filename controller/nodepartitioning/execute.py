"""Each action of a plan, as requests to the API server. Repeating any of them is harmless."""

from collections.abc import Callable
from typing import Any, Final, assert_never

from api.client import MERGE_PATCH, ApiError, Client, Conflict, NotFound, path
from api.kaiwo import (
    CONFIG_MAP_NAMESPACE,
    DCM_ANNOTATION,
    DCM_PROFILE_LABEL,
    DCM_STATE_LABEL,
    DCM_TAINT_KEY,
    REPORT_ANNOTATION,
    TAINTED_ANNOTATION,
    TARGET_ANNOTATION,
    TOLERATIONS,
    KaiwoNodeStatus,
    Target,
    build_default_config_map,
)
from api.names import KAIWO_API_VERSION
from controller.nodepartitioning.actions import (
    Action,
    AddTolerations,
    EnsureConfigMap,
    EnsureKaiwoNode,
    EvictPod,
    SetSpec,
    SetTaints,
    SetTarget,
    StartDcm,
    StopDcm,
    WriteStatus,
)
from controller.nodepartitioning.parse import tolerates_fully
from controller.nodepartitioning.state import Taint

Json = dict[str, Any]

WORKLOADS: Final = {"Deployment": "deployments", "DaemonSet": "daemonsets"}
_REMEMBERED: Final = 1000


class Executor:
    """`record` gets what the API server answered to a write, by kind, before any watch tells of it."""

    def __init__(self, client: Client, record: Callable[[str, Json], None]) -> None:
        self._client = client
        self._record = record
        self.refused: dict[str, str] = {}
        """Why the last eviction of a pod was refused, by UID."""

    async def execute(self, action: Action) -> None:
        """Raises ApiError; NotFound and Conflict only where they do not mean that the work is done."""
        match action:
            case EnsureKaiwoNode():
                await self._ensure_kaiwo_node(action)
            case SetSpec(node=node):
                fields = {"enabled": action.enabled, "profile": action.profile}
                changed = {key: value for key, value in fields.items() if value is not None}
                await self._patch_kaiwo(node, {"spec": {"partitioning": changed}})
            case WriteStatus(node=node, status=status):
                await self._patch_kaiwo(node, {"status": _dump(status)}, "status")
            case EnsureConfigMap():
                await self._ensure_config_map()
            case AddTolerations():
                await self._add_tolerations(action)
            case EvictPod():
                await self._evict(action)
            case SetTaints():
                await self._set_taints(action)
            case SetTarget(node=node, target=target):
                await self._patch_node(node, {"annotations": _annotations(target)})
            case StartDcm(node=node, profile=profile):
                await self._patch_node(node, _dcm(profile))
            case StopDcm(node=node):
                await self._patch_node(node, _dcm(None))
            case _:
                assert_never(action)

    async def _ensure_kaiwo_node(self, action: EnsureKaiwoNode) -> None:
        """One that somebody made before, or that an earlier Node of this name left, keeps its spec."""
        owner = {"apiVersion": "v1", "kind": "Node", "name": action.node, "uid": action.uid}
        metadata = {"name": action.node, "ownerReferences": [owner]}
        body = {"apiVersion": KAIWO_API_VERSION, "kind": "KaiwoNode", "metadata": metadata, "spec": {}}
        try:
            made = await self._client.create(path(KAIWO_API_VERSION, "kaiwonodes"), body)
        except Conflict as error:
            if not error.already_exists:
                raise
            await self._patch_kaiwo(action.node, {"metadata": {"ownerReferences": [owner]}})
        else:
            self._record("KaiwoNode", made)

    async def _patch_kaiwo(self, node: str, body: Json, subresource: str | None = None) -> None:
        where = path(KAIWO_API_VERSION, "kaiwonodes", name=node, subresource=subresource)
        self._record("KaiwoNode", await self._client.patch(where, body, MERGE_PATCH))

    async def _ensure_config_map(self) -> None:
        where = path("v1", "configmaps", namespace=CONFIG_MAP_NAMESPACE)
        try:
            self._record("ConfigMap", await self._client.create(where, build_default_config_map()))
        except Conflict as error:
            if not error.already_exists:
                raise

    async def _add_tolerations(self, action: AddTolerations) -> None:
        """Conditional on the resource version: tolerations are a list that others write too."""
        where = path("apps/v1", WORKLOADS[action.kind], namespace=action.namespace, name=action.name)
        try:
            raw = await self._client.get(where)
        except NotFound:
            return
        present = list(raw["spec"]["template"]["spec"].get("tolerations") or [])
        missing = [toleration for toleration in TOLERATIONS if toleration not in present]
        if tolerates_fully(present) or not missing:
            return
        spec = {"template": {"spec": {"tolerations": [*present, *missing]}}}
        version = {"resourceVersion": raw["metadata"]["resourceVersion"]}
        await self._client.patch(where, {"metadata": version, "spec": spec}, MERGE_PATCH)

    async def _evict(self, action: EvictPod) -> None:
        where = path("v1", "pods", namespace=action.namespace, name=action.name, subresource="eviction")
        body = {
            "apiVersion": "policy/v1",
            "kind": "Eviction",
            "metadata": {"namespace": action.namespace, "name": action.name},
            "deleteOptions": {"preconditions": {"uid": action.uid}},
        }
        self.refused.pop(action.uid, None)
        try:
            await self._client.create(where, body)
        except (NotFound, Conflict):
            return  # gone, or another one of this name
        except ApiError as error:
            if not error.status:
                raise  # nobody has answered
            if len(self.refused) >= _REMEMBERED:
                self.refused.clear()
            # A disruption budget, two of them, or no right: told in the status, and asked again by the next plan.
            self.refused[action.uid] = str(error.body.get("message") or error)

    async def _set_taints(self, action: SetTaints) -> None:
        """Conditional on the resource version: taints are a list that others write too.

        Whose `amd-dcm` is, is written with it.
        """
        where = path("v1", "nodes", name=action.node)
        raw = await self._client.get(where)
        present = list((raw.get("spec") or {}).get("taints") or [])
        kept = [each for each in present if _taint(each) not in action.remove]
        there = {_taint(each) for each in kept}
        added = [_build_taint(taint) for taint in sorted(action.add) if taint not in there]
        marks = _mark(action, added, raw["metadata"].get("annotations") or {})
        if kept + added == present and not marks:
            self._record("Node", raw)
            return
        metadata = {"resourceVersion": raw["metadata"]["resourceVersion"], "annotations": marks}
        body = {"metadata": metadata, "spec": {"taints": kept + added}}
        self._record("Node", await self._client.patch(where, body, MERGE_PATCH))

    async def _patch_node(self, node: str, metadata: Json) -> None:
        self._record(
            "Node", await self._client.patch(path("v1", "nodes", name=node), {"metadata": metadata}, MERGE_PATCH)
        )


def _dump(status: KaiwoNodeStatus) -> Json:
    """Without what is Kaiwo's."""
    return status.model_dump(mode="json", by_alias=True, exclude={"kueue_flavor_name"})


def _annotations(target: Target | None) -> Json:
    """The answer to an earlier target goes with it."""
    if target is None:
        return {TARGET_ANNOTATION: None, REPORT_ANNOTATION: None}
    return {TARGET_ANNOTATION: target.model_dump_json(by_alias=True)}


def _dcm(profile: str | None) -> Json:
    return {
        "labels": {DCM_STATE_LABEL: None, DCM_PROFILE_LABEL: profile},
        "annotations": {DCM_ANNOTATION: profile},
    }


def _mark(action: SetTaints, added: list[Json], annotations: Json) -> Json:
    """What is to change in the annotations."""
    if any(taint["key"] == DCM_TAINT_KEY for taint in added):
        return {TAINTED_ANNOTATION: "true"}
    is_removed = any(taint.key == DCM_TAINT_KEY for taint in action.remove)
    return {TAINTED_ANNOTATION: None} if is_removed and TAINTED_ANNOTATION in annotations else {}


def _taint(raw: Json) -> Taint:
    return Taint(raw["key"], raw.get("value") or "", raw["effect"])


def _build_taint(taint: Taint) -> Json:
    return {"key": taint.key, "effect": taint.effect, **({"value": taint.value} if taint.value else {})}
