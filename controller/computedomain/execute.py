"""Each action of a plan, as requests to the API server. Repeating any of them is harmless."""

from collections.abc import Callable
from typing import Any, assert_never

from api.client import MERGE_PATCH, Client, Conflict, NotFound, path
from api.names import COMPUTE_DOMAIN_DRIVER, COMPUTE_DOMAIN_FINALIZER
from api.ref import COLLECTIONS, Ref
from controller.computedomain.actions import (
    Action,
    AddFinalizer,
    Create,
    Delete,
    DropFinalizer,
    WriteBinding,
    WriteMembership,
    WriteStatus,
)
from controller.computedomain.tls import Authorities

Json = dict[str, Any]


def object_path(ref: Ref, subresource: str | None = None) -> str:
    version, plural = COLLECTIONS[ref.kind]
    return path(version, plural, namespace=ref.namespace, name=ref.name, subresource=subresource)


def collection_path(ref: Ref) -> str:
    version, plural = COLLECTIONS[ref.kind]
    return path(version, plural, namespace=ref.namespace)


class Executor:
    """`record` gets what the API server answered to a write, `drop` what is gone, before any watch tells of it."""

    def __init__(self, client: Client, record: Callable[[str, Json], None], drop: Callable[[Ref], None]) -> None:
        self._client = client
        self._record = record
        self._drop = drop
        self._authorities = Authorities()

    async def execute(self, action: Action) -> None:
        """Raises ApiError; NotFound and Conflict only where they do not mean that the work is done."""
        match action:
            case AddFinalizer(ref=ref):
                await self._finalizers(ref, add=True)
            case DropFinalizer(ref=ref):
                await self._finalizers(ref, add=False)
            case Create(ref=ref, body=body):
                await self._create(ref, body)
            case Delete(ref=ref, at_once=at_once):
                await self._delete(ref, at_once=at_once)
            case WriteMembership(ref=ref, resource_version=version, fields=fields):
                certified = self._authorities.certify(ref.name, fields)
                await self._patch(ref, {"metadata": {"resourceVersion": version}, **certified})
            case WriteStatus(ref=ref, status=status):
                # A merge patch takes away what is null (RFC 7396): NVIDIA's has no `nodes` where there are none.
                written = {**status, "nodes": status["nodes"] or None}
                await self._patch(ref, {"metadata": {"uid": ref.uid}, "status": written}, "status")
            case WriteBinding():
                await self._write_binding(action)
            case _:
                assert_never(action)

    async def _create(self, ref: Ref, body: Json) -> None:
        if ref.kind == "ComputeDomainClique":
            body = self._authorities.certify(ref.name, body)
        try:
            self._record(ref.kind, await self._client.create(collection_path(ref), body))
        except Conflict as error:
            if not error.already_exists:
                raise
            # It is there: made by an earlier attempt whose answer was lost, or somebody else's. The plan that sees it
            # knows which.
            self._record(ref.kind, await self._client.get(object_path(ref)))

    async def _delete(self, ref: Ref, *, at_once: bool) -> None:
        options: Json = {"propagationPolicy": "Background", **({"gracePeriodSeconds": 0} if at_once else {})}
        try:
            answer = await self._client.delete(object_path(ref), uid=ref.uid, **options)
        except (NotFound, Conflict):
            answer = {}
        metadata = answer.get("metadata") or {}
        # Where somebody else took it away between the API server's look and its deletion, the answer was never stored.
        is_stored = "resourceVersion" in metadata
        if is_stored and metadata.get("deletionTimestamp") and (not at_once or metadata.get("finalizers")):
            self._record(ref.kind, answer)
        else:
            self._drop(ref)
        if ref.kind == "ComputeDomainClique":
            self._authorities.forget(ref.name)

    async def _patch(self, ref: Ref, body: Json, subresource: str | None = None) -> None:
        try:
            self._record(ref.kind, await self._client.patch(object_path(ref, subresource), body, MERGE_PATCH))
        except NotFound:
            self._drop(ref)

    async def _write_binding(self, action: WriteBinding) -> None:
        """Conditional on the resource version: `status.devices` has entries of other drivers too."""
        ref, binding = action.ref, action.binding
        try:
            raw = await self._client.get(object_path(ref))
        except NotFound:
            self._drop(ref)
            return
        entry: Json = {"driver": COMPUTE_DOMAIN_DRIVER, "pool": binding.pool, "device": binding.device}
        if binding.share_id:
            entry["shareID"] = binding.share_id
        stored = (raw.get("status") or {}).get("devices") or []
        others = [each for each in stored if {key: each.get(key) for key in entry} != entry]
        seen = {"uid": ref.uid, "resourceVersion": raw["metadata"]["resourceVersion"]}
        devices = [*others, {**entry, "conditions": action.conditions}]
        await self._patch(ref, {"metadata": seen, "status": {"devices": devices}}, "status")

    async def _finalizers(self, ref: Ref, *, add: bool) -> None:
        """Conditional on the resource version: finalizers are a list that others write too."""
        try:
            raw = await self._client.get(object_path(ref))
        except NotFound:
            self._drop(ref)
            return
        metadata = raw["metadata"]
        before = list(metadata.get("finalizers") or [])
        others = [finalizer for finalizer in before if finalizer != COMPUTE_DOMAIN_FINALIZER]
        after = [*others, COMPUTE_DOMAIN_FINALIZER] if add else others
        if metadata["uid"] != ref.uid or after == before:
            return
        change = {"metadata": {"resourceVersion": metadata["resourceVersion"], "finalizers": after}}
        answer = await self._client.patch(object_path(ref), change, MERGE_PATCH)
        if answer["metadata"].get("deletionTimestamp") and not after:
            self._drop(ref)
        else:
            self._record(ref.kind, answer)
