"""Which of the pods that wait for a channel are being deleted: a watch for each namespace while pods wait there.

It tells of pods that have not started, and nothing but their metadata.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from api.client import Client, path
from controller.observe import Cache

Json = dict[str, Any]


def parse_leaving(raw: Json) -> str | None:
    """The pod's UID, when it is being deleted."""
    metadata = raw["metadata"]
    return str(metadata["uid"]) if metadata.get("deletionTimestamp") else None


@dataclass(slots=True)
class _Followed:
    """One namespace: the domains whose pods wait there."""

    cache: Cache[str]
    task: asyncio.Task[None]
    domains: set[str] = field(default_factory=set)


class LeavingPods:
    """`changed` gets the UID of every domain that a change may concern."""

    def __init__(self, client: Client, changed: Callable[[str], None]) -> None:
        self._client = client
        self._changed = changed
        self._followed: dict[str, _Followed] = {}
        self._where: dict[str, str] = {}
        self._tasks: asyncio.TaskGroup | None = None

    async def run(self) -> None:
        """Watch what is to be followed, until cancelled."""
        async with asyncio.TaskGroup() as self._tasks:
            await asyncio.Event().wait()

    def follow(self, domain_uid: str, namespace: str | None) -> None:
        """Pods of this domain wait in this namespace; None: none waits any more."""
        before = self._where.get(domain_uid)
        if before == namespace:
            return
        if before is not None:
            del self._where[domain_uid]
            self._release(before, domain_uid)
        if namespace is not None and self._tasks is not None:
            self._where[domain_uid] = namespace
            self._hold(self._tasks, namespace, domain_uid)

    def known(self, domain_uid: str) -> frozenset[str]:
        """UIDs of the pods in the domain's namespace that are being deleted; empty while it is not followed."""
        followed = self._followed.get(self._where.get(domain_uid, ""))
        return frozenset(followed.cache.values()) if followed else frozenset()

    def _hold(self, tasks: asyncio.TaskGroup, namespace: str, domain_uid: str) -> None:
        followed = self._followed.get(namespace)
        if followed is None:
            where = path("v1", "pods", namespace=namespace)
            cache: Cache[str] = Cache(
                where, parse_leaving, {}, field_selector="status.phase=Pending", metadata_only=True
            )
            task = tasks.create_task(cache.run(self._client, lambda _: self._tell(namespace)))
            followed = self._followed[namespace] = _Followed(cache, task)
        followed.domains.add(domain_uid)

    def _release(self, namespace: str, domain_uid: str) -> None:
        followed = self._followed[namespace]
        followed.domains.discard(domain_uid)
        if not followed.domains:
            followed.task.cancel()
            del self._followed[namespace]

    def _tell(self, namespace: str) -> None:
        followed = self._followed.get(namespace)
        for domain_uid in sorted(followed.domains) if followed else ():
            self._changed(domain_uid)
