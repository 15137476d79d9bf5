"""Brings the membership of a ComputeDomain to the daemon on this node: from the API server into one file.

So a daemon needs no access to the API server: it sees the one ComputeDomainClique that is its own, and nothing else.
The key of the certificate that it has there comes from this node (`kubeletplugin.node_key`).
"""

import asyncio
import json
import logging
import re
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, cast

from api.client import Client, Json, back_off_s
from api.clique import MEMBERSHIP_FILE, MEMBERSHIP_FILE_VERSION
from api.errors import InvalidObject, Retryable
from kubeletplugin.disk import disk_errors, replace_whole
from kubeletplugin.node_key import NodeKey

log = logging.getLogger(__name__)

_KEY: Final = "key"
_OBJECT_NAME: Final = re.compile("[A-Za-z0-9.-]+")
_NOT_FOR_DAEMONS: Final = frozenset({"apiVersion", "kind", "metadata", "abandonedClaims", _KEY})


@dataclass(frozen=True, slots=True)
class Seen:
    """What the API server says of one ComputeDomainClique."""

    clique: Json | None
    """None while there is none."""
    refusal: str = ""
    """Why nothing is told now; `clique` is then as it was told last, None if it never was."""


class Cliques:
    """The ComputeDomainCliques that somebody on this node follows: one watch for each, however many follow it."""

    def __init__(self, client: Client, where: str) -> None:
        """`where` is the collection of ComputeDomainCliques in the driver's namespace."""
        self._client = client
        self._where = where
        self._watched: dict[str, _Watched] = {}
        self._started = asyncio.Event()
        self._tasks: asyncio.TaskGroup

    async def run(self) -> None:
        """Until cancelled; who follows something before this waits for it."""
        async with asyncio.TaskGroup() as self._tasks:
            self._started.set()
            await asyncio.Event().wait()

    async def follow(self, name: str) -> AsyncGenerator[Seen, None]:
        """What is known as soon as something is, and again at every change, for ever."""
        await self._started.wait()
        watched = self._watched.get(name)
        if watched is None:
            watched = self._watched[name] = _Watched()
            watched.task = self._tasks.create_task(self._watch(name, watched))
        watched.followers += 1
        last: Seen | None = None
        try:
            while True:
                changed = watched.changed
                if watched.seen is not last and watched.seen is not None:
                    last = watched.seen
                    yield last
                else:
                    await changed.wait()
        finally:
            watched.followers -= 1
            if watched.followers == 0 and watched.task is not None:
                watched.task.cancel()
                del self._watched[name]

    async def _watch(self, name: str, watched: "_Watched") -> None:
        """Whatever goes wrong is told to those who wait, and tried again.

        An API server that has just started refuses what it will allow once it knows its roles and custom resources.
        """
        delays = back_off_s(most_s=WATCH_BACK_OFF_S)
        while True:
            try:
                async with aclosing(self._open(name)) as events:
                    async for kind, found in events:
                        objects = found if kind == "SYNC" else () if kind == "DELETED" else (found,)
                        watched.show(Seen(objects[0] if objects else None))
                        delays = back_off_s(most_s=WATCH_BACK_OFF_S)
            except Exception as error:  # noqa: BLE001  a defect here must not end every claim of the node
                delay_s = next(delays)
                told = str(error) or type(error).__name__
                log.warning("membership_refused", extra={"object": name, "error": told, "retry_in_s": delay_s})
                watched.show(Seen(watched.seen.clique if watched.seen else None, told))
                await asyncio.sleep(delay_s)

    def _open(self, name: str) -> AsyncGenerator[tuple[str, Any], None]:
        if not _OBJECT_NAME.fullmatch(name):  # in a field selector more than a name could ask for other objects
            raise InvalidObject(f"{name!r} is no name of a ComputeDomainClique")
        events = self._client.list_watch(
            self._where, field_selector=f"metadata.name={name}", most_back_off_s=WATCH_BACK_OFF_S
        )
        return cast(AsyncGenerator[tuple[str, Any], None], events)


WATCH_BACK_OFF_S: Final = 5.0
"""Claims wait for less than a minute, and their pods for one more when that was in vain."""


@dataclass(slots=True, eq=False)
class _Watched:
    seen: Seen | None = None
    """None until the API server has answered."""
    followers: int = 0
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None

    def show(self, seen: Seen) -> None:
        self.seen = seen
        self.changed.set()
        self.changed = asyncio.Event()


def write_membership(folder: Path, clique: Json | None, key: str = "") -> None:
    """Replace the file as a whole; `key`: PEM, "" for none. Raises DiskFull, DiskFailed."""
    path = folder / MEMBERSHIP_FILE
    content: Json = {"version": MEMBERSHIP_FILE_VERSION}
    if clique is not None:
        content["metadata"] = {"name": clique["metadata"]["name"]}
        content |= {name: value for name, value in clique.items() if name not in _NOT_FOR_DAEMONS}
        content |= {_KEY: key} if key else {}
    data = json.dumps(content, separators=(",", ":")).encode()
    with disk_errors(path):
        replace_whole(path, data, durable=False, private=True)


def provide_membership(folder: Path) -> None:
    """Make sure that there is a file: by that a daemon knows that somebody writes it. Raises DiskFull, DiskFailed."""
    if not (folder / MEMBERSHIP_FILE).exists():
        write_membership(folder, None)


class Memberships:
    """Keeps the file of each domain that has a daemon on this node."""

    def __init__(self, cliques: Cliques, node: str, key: NodeKey) -> None:
        self._cliques = cliques
        self._node = node
        self._key = key
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
        """For ever: a full disk does not end it, and what was told last stays while the API server tells nothing."""
        delays = back_off_s()
        while True:
            try:
                async with aclosing(self._cliques.follow(name)) as found:
                    async for seen in found:
                        if not seen.refusal:
                            write_membership(folder, seen.clique, await self._find_key(seen.clique))
                            delays = back_off_s()
            except Retryable as error:
                delay_s = next(delays)
                log.warning("membership_not_followed", extra={"object": name, "error": str(error), "in_s": delay_s})
                await asyncio.sleep(delay_s)

    async def _find_key(self, clique: Json | None) -> str:
        """PEM of the key that this node's certificate is for; "" where it is not for a key that this domain may have.

        Whichever of them is to change for that changes the ComputeDomainClique. Raises DiskFull, DiskFailed.
        """
        if clique is None:
            return ""
        entries = clique.get("daemons") or ()
        public = next((each.get("publicKey") for each in entries if each.get("nodeName") == self._node), None)
        if not public:
            return ""
        return await self._key.hand_out(clique["metadata"]["name"].partition(".")[0], public)
