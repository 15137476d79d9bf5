"""Brings the membership of a ComputeDomain to the daemon on this node: from the API server into one file.

So a daemon needs no access to the API server: it sees the one ComputeDomainClique that is its own, and nothing else.
"""

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, cast

from api.client import Client, Forbidden, Json, NotFound, back_off_s
from api.clique import MEMBERSHIP_FILE, MEMBERSHIP_FILE_VERSION
from api.errors import Retryable
from kubeletplugin.disk import disk_error, write_whole

log = logging.getLogger(__name__)

_NOT_FOR_DAEMONS: Final = frozenset({"apiVersion", "kind", "metadata", "abandonedClaims"})


class Cliques:
    """The ComputeDomainCliques that somebody on this node follows: one watch for each, however many follow it."""

    def __init__(self, client: Client, where: str) -> None:
        """`where` is the collection of ComputeDomainCliques in the driver's namespace."""
        self._client = client
        self._where = where
        self._watched: dict[str, _Watched] = {}

    async def follow(self, name: str) -> AsyncGenerator[Json | None, None]:
        """The object, and again at every change; None while there is none. Raises Forbidden, NotFound."""
        watched = self._watched.get(name)
        if watched is None:
            watched = self._watched[name] = _Watched()
            watched.task = asyncio.create_task(self._watch(name, watched))
        watched.followers += 1
        last: object = _UNKNOWN
        try:
            while True:
                changed = watched.changed
                if watched.error is not None:
                    raise watched.error
                if watched.found is not last:
                    last = watched.found
                    yield watched.found
                else:
                    await changed.wait()
        finally:
            watched.followers -= 1
            if watched.followers == 0 and watched.task is not None:
                watched.task.cancel()
                self._forget(name, watched)

    async def _watch(self, name: str, watched: "_Watched") -> None:
        watch = cast(
            AsyncGenerator[tuple[str, Any], None],
            self._client.list_watch(self._where, field_selector=f"metadata.name={name}"),
        )
        try:
            async with aclosing(watch) as events:
                async for kind, found in events:
                    objects = found if kind == "SYNC" else () if kind == "DELETED" else (found,)
                    watched.show(objects[0] if objects else None)
        except Exception as error:  # noqa: BLE001  raised where it is waited for
            self._forget(name, watched)  # whoever comes next begins anew
            watched.fail(error)

    def _forget(self, name: str, watched: "_Watched") -> None:
        if self._watched.get(name) is watched:
            del self._watched[name]


_UNKNOWN: Final = {"": "the API server has not answered yet"}


@dataclass(slots=True, eq=False)
class _Watched:
    found: Json | None = field(default_factory=lambda: _UNKNOWN)
    error: Exception | None = None
    followers: int = 0
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None

    def show(self, found: Json | None) -> None:
        self.found = found
        self._ring()

    def fail(self, error: Exception) -> None:
        self.error = error
        self._ring()

    def _ring(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()


def write_membership(folder: Path, clique: Json | None) -> None:
    """Replace the file as a whole. Raises DiskFull, DiskFailed."""
    path = folder / MEMBERSHIP_FILE
    content: Json = {"version": MEMBERSHIP_FILE_VERSION}
    if clique is not None:
        content["metadata"] = {"name": clique["metadata"]["name"]}
        content |= {name: value for name, value in clique.items() if name not in _NOT_FOR_DAEMONS}
    data = json.dumps(content, separators=(",", ":")).encode()
    try:
        temporary = path.with_name(f".{path.name}.new")
        write_whole(temporary, data, durable=False)
        temporary.replace(path)
    except OSError as error:
        raise disk_error(error, path) from error


def provide_membership(folder: Path) -> None:
    """Make sure that there is a file: by that a daemon knows that somebody writes it. Raises DiskFull, DiskFailed."""
    if not (folder / MEMBERSHIP_FILE).exists():
        write_membership(folder, None)


class Memberships:
    """Keeps the file of each domain that has a daemon on this node."""

    def __init__(self, cliques: Cliques) -> None:
        self._cliques = cliques
        self._wanted: dict[str, Path] = {}
        self._running: dict[str, asyncio.Task[None]] = {}
        self._tasks: asyncio.TaskGroup | None = None

    async def run(self) -> None:
        """Follow what is wanted, until cancelled."""
        async with asyncio.TaskGroup() as self._tasks:
            self.want(self._wanted)
            await asyncio.Event().wait()

    def want(self, wanted: Mapping[str, Path]) -> None:
        """Follow exactly these from now on: folders by name of the ComputeDomainClique."""
        self._wanted = dict(wanted)
        for name in [name for name in self._running if name not in wanted]:
            self._running.pop(name).cancel()
        if self._tasks is not None:
            for name, folder in self._wanted.items():
                if name not in self._running:
                    self._running[name] = self._tasks.create_task(self._follow(name, folder))

    async def _follow(self, name: str, folder: Path) -> None:
        """For ever: neither a full disk nor an API server that does not know its roles yet ends it."""
        delays = back_off_s()
        while True:
            try:
                async with aclosing(self._cliques.follow(name)) as found:
                    async for clique in found:
                        write_membership(folder, clique)
                        delays = back_off_s()
            except (Forbidden, NotFound, Retryable) as error:
                delay_s = next(delays)
                log.warning("membership_not_followed", extra={"object": name, "error": str(error), "in_s": delay_s})
                await asyncio.sleep(delay_s)
