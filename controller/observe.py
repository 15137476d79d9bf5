"""Caches of what the API server says, kept by list-watch, and the keys that each change concerns.

An event never carries its object to the one who acts: it puts keys into the work queue, and who takes a key looks at
the caches as they are by then. Objects are parsed on arrival and dropped; a cache holds only what plans are made from.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from api.client import Client, Forbidden, NotFound, back_off_s

log = logging.getLogger(__name__)

Json = dict[str, Any]
T = TypeVar("T")
Name = tuple[str, str]
"""Namespace and name."""
_Reduced = tuple[Name, int, T | None]
"""Name, version and value, None for what is of no interest."""


@dataclass(frozen=True, slots=True)
class _Entry(Generic[T]):
    version: int
    value: T


class Cache(Generic[T]):
    """Objects of one collection. `parse` returns None for what is of no interest.

    `indexes` maps an index's name to a function from a value to the index keys under which it is found.
    """

    def __init__(
        self,
        path: str,
        parse: Callable[[Json], T | None],
        indexes: dict[str, Callable[[T], Iterable[str]]],
        *,
        label_selector: str | None = None,
        field_selector: str | None = None,
        metadata_only: bool = False,
    ) -> None:
        self.path = path
        self.synced = asyncio.Event()
        self._parse = parse
        self._label_selector = label_selector
        self._field_selector = field_selector
        self._metadata_only = metadata_only
        self._entries: dict[Name, _Entry[T]] = {}
        self._index_functions = indexes
        self._indexes: dict[str, dict[str, dict[Name, None]]] = {name: {} for name in indexes}
        self._gone: dict[Name, int] = {}

    def find(self, index: str, key: str) -> Iterator[T]:
        """In order of arrival."""
        for name in self._indexes[index].get(key, ()):
            yield self._entries[name].value

    def keys(self, index: str) -> list[str]:
        return list(self._indexes[index])

    def get(self, namespace: str, name: str) -> T | None:
        entry = self._entries.get((namespace, name))
        return entry.value if entry else None

    def values(self) -> Iterator[T]:
        return (entry.value for entry in self._entries.values())

    def __len__(self) -> int:
        return len(self._entries)

    async def run(self, client: Client, changed: Callable[[T], None]) -> None:
        """Follow the collection for ever; `changed` gets the value before and the value after each change.

        An API server that has just started refuses what it will allow once it knows its roles and custom resources; so
        a refusal is told and tried again, and what is cached stays.
        """
        delays = back_off_s()
        while True:
            try:
                await self._follow(client, changed)
            except (Forbidden, NotFound) as error:
                delay_s = next(delays)
                log.warning("watch_refused", extra={"path": self.path, "error": str(error), "retry_in_s": delay_s})
                await asyncio.sleep(delay_s)

    async def _follow(self, client: Client, changed: Callable[[T], None]) -> None:
        events = client.list_watch(
            self.path,
            label_selector=self._label_selector,
            field_selector=self._field_selector,
            metadata_only=self._metadata_only,
            keep=self._reduce,
        )
        async for kind, payload in events:
            if kind == "SYNC":
                self._replace(payload, changed)
                self.synced.set()
            elif kind == "DELETED":
                self.forget(payload, changed)
            else:
                self.record(payload, changed)

    def _replace(self, listed: list[_Reduced[T]], changed: Callable[[T], None]) -> None:
        names = {name for name, _, _ in listed}
        for name in [name for name in self._entries if name not in names]:
            self._remove(name, changed)
        for each in listed:
            self._take(*each, changed)
        self._gone.clear()

    def record(self, obj: Json, changed: Callable[[T], None]) -> None:
        """Take over an object from a watch, or from the answer to a write of ours; an older one changes nothing."""
        self._take(*self._reduce(obj), changed)

    def _reduce(self, obj: Json) -> _Reduced[T]:
        """An object that will change nothing is not parsed."""
        name, version = _name(obj), int(obj["metadata"]["resourceVersion"])
        return name, version, self._read(obj) if self._is_news(name, version) else None

    def _is_news(self, name: Name, version: int) -> bool:
        entry = self._entries.get(name)
        return (entry is None or entry.version < version) and self._gone.get(name, -1) < version

    def _take(self, name: Name, version: int, value: T | None, changed: Callable[[T], None]) -> None:
        if not self._is_news(name, version):
            return
        entry = self._entries.get(name)
        if value is None:
            self._remove(name, changed)
            return
        if entry is not None and entry.value == value:
            self._entries[name] = _Entry(version, value)
            return
        self._remove(name, changed)
        self._entries[name] = _Entry(version, value)
        for index, function in self._index_functions.items():
            for key in function(value):
                self._indexes[index].setdefault(key, {})[name] = None
        changed(value)

    def _read(self, obj: Json) -> T | None:
        """What is in an object may be anybody's to write: one that `parse` fails on is of no interest, and logged."""
        try:
            return self._parse(obj)
        except Exception:
            log.exception("object_not_read", extra={"path": self.path, "object": "/".join(_name(obj))})
            return None

    def forget(self, obj: Json, changed: Callable[[T], None]) -> None:
        """The object is gone; what a late event says of this incarnation is ignored."""
        name, version = _name(obj), int(obj["metadata"]["resourceVersion"])
        entry = self._entries.get(name)
        if entry is not None and entry.version > version:
            return
        self._gone[name] = version
        while len(self._gone) > GONE_KEPT:
            del self._gone[next(iter(self._gone))]
        self._remove(name, changed)

    def drop(self, namespace: str, name: str, changed: Callable[[T], None]) -> None:
        """A delete of ours succeeded at once: do not wait for the watch to say so."""
        entry = self._entries.get((namespace, name))
        if entry is not None:
            self._gone[(namespace, name)] = entry.version
            self._remove((namespace, name), changed)

    def _remove(self, name: Name, changed: Callable[[T], None]) -> None:
        entry = self._entries.pop(name, None)
        if entry is None:
            return
        for index, function in self._index_functions.items():
            for key in function(entry.value):
                names = self._indexes[index].get(key)
                if names is not None:
                    names.pop(name, None)
                    if not names:
                        del self._indexes[index][key]
        changed(entry.value)


class Caches(dict[str, tuple[Cache[Any], Callable[[Any], None]]]):
    """Of one reconciler: each cache by the kind it holds, and what a change in it concerns."""

    def record(self, kind: str, obj: Json) -> None:
        """What the API server answered to a write of ours."""
        cache, changed = self[kind]
        cache.record(obj, changed)

    @property
    def synced(self) -> bool:
        return all(cache.synced.is_set() for cache, _ in self.values())

    async def run(self, client: Client, work: Callable[[], Awaitable[None]]) -> None:
        """Follow all of them, and `work` once each has been filled, until cancelled."""
        async with asyncio.TaskGroup() as group:
            for cache, changed in self.values():
                group.create_task(cache.run(client, changed))
            for cache, _ in self.values():
                await cache.synced.wait()
            log.info("caches_filled", extra={kind: len(cache) for kind, (cache, _) in self.items()})
            await work()


GONE_KEPT = 1000
"""Deletions remembered, so that the answer to an older write of ours does not bring an object back."""


def _name(obj: Json) -> Name:
    metadata = obj["metadata"]
    return metadata.get("namespace", ""), metadata["name"]
