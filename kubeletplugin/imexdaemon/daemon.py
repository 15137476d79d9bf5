"""The daemon: keeps nvidia-imex as the membership wants it, and says whether this node is connected to its peers."""

import asyncio
import logging
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, assert_never

from api.clique import MEMBERSHIP_FILE, MEMBERSHIP_FILE_VERSION, Membership, parse_membership
from api.errors import InvalidObject, PartitaError
from kubeletplugin.imexdaemon import files
from kubeletplugin.imexdaemon.config import NodeTable, Tls, TlsMissing, build_node_table, find_tls
from kubeletplugin.imexdaemon.plan import (
    ANSWER_S,
    HASTEN_AFTER_S,
    Keep,
    Reload,
    Restart,
    Running,
    Start,
    Stop,
    count_crashes,
    plan_imex,
    poll_interval_s,
    reload_delay_s,
    restart_delay_s,
)
from kubeletplugin.imexdaemon.probes import State
from kubeletplugin.imexdaemon.process import ImexProcess, is_answering, read_domain
from kubeletplugin.imexdaemon.readiness import Readiness, check_readiness
from kubeletplugin.imexdaemon.settings import Settings
from kubeletplugin.watch import watch_file

log = logging.getLogger(__name__)

FILE_LOOK_S: Final = 1.0
FILE_RETRY_S: Final = 5.0
"""After the disk refused one of our files."""


class PluginTooOld(PartitaError):
    """The node plugin that prepared this container's claim provides no membership."""

    reason = "PluginTooOld"


class Daemon:
    """One nvidia-imex, for one node of one IMEX domain."""

    def __init__(self, settings: Settings, state: State) -> None:
        self._settings = settings
        self._state = state
        self._membership: Membership | None = None
        self._key = ""
        """PEM; "" while this node has none for its certificate."""
        self._tls: Tls | None = None
        """What was complete last."""
        self._obstacle = ""
        """Why the membership cannot be read; "" when there is none."""
        self._running: Running | None = None
        self._imex = ImexProcess(files.config_path(settings), self._on_exit)
        self._wake = asyncio.Event()
        self._poll_now = asyncio.Event()
        self._changed_at_s = self._started_at_s = self._answered_at_s = time.monotonic()
        self._last_reload_s: float | None = None
        self._dirty_since_s: float | None = None
        self._responding = self._formed = self._has_run = False
        self._all_up: NodeTable | None = None
        """The table whose peers were all up when nvidia-imex was last asked."""
        self._crashes = 0
        self._may_start_at_s = 0.0

    async def run(self) -> None:
        """Until cancelled; nvidia-imex is stopped before this returns."""
        self._show_that_we_live()
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._follow_membership())
                tasks.create_task(self._keep_imex())
                tasks.create_task(self._keep_readiness())
        finally:
            self._set(Readiness(False, "the daemon is stopping"))
            await self._imex.stop(self._settings.grace_s)

    def _show_that_we_live(self) -> None:
        """By a lock that ends with this process, which never gives it back."""
        self._set(self._state.value)  # first: what a daemon that was killed has said last is not ours
        try:
            files.hold_lock(self._settings)
        except OSError as error:  # then the node plugin goes by the controller's word
            log.error("not_locked", extra={"error": str(error)})

    async def _follow_membership(self) -> None:
        settings = self._settings
        if not settings.clique_id:
            self._set(Readiness(True, "this node has no NVLink fabric: there is nothing to connect"))
            return
        file = settings.directory / MEMBERSHIP_FILE
        await self._wait_for(file)
        async for obj in watch_file(file):
            if obj is None:  # whoever is connected stays so: only a file that says so means that we are no member
                self._obstacle = f"{file} cannot be read"
                log.error("membership_kept", extra={"object": settings.clique_name, "error": self._obstacle})
                continue
            try:
                membership = _parse_file(obj)
            except (InvalidObject, KeyError, TypeError, ValueError) as error:
                # Whoever is connected stays so: what was known last is better than nothing.
                self._obstacle = str(error)
                log.error("membership_unreadable", extra={"object": settings.clique_name, "error": str(error)})
                continue
            self._obstacle = ""
            # A node that moves to another rack has a daemon for each clique until the first one has ended.
            is_own = membership is not None and membership.name == settings.clique_name
            self._membership = membership if is_own else None
            self._key = str(obj.get("key") or "") if is_own else ""
            self._wake.set()

    async def _wait_for(self, file: Path) -> None:
        """The node plugin writes it before this container is made. Raises PluginTooOld, so that it is made anew."""
        given_up_at_s = time.monotonic() + self._settings.membership_wait_s
        while not files.is_there(file):
            told = (
                f"{file} is not there: the node plugin on {self._settings.node} is older than this daemon, and writes "
                "no such file; this daemon goes on when that plugin is upgraded"
            )
            if time.monotonic() > given_up_at_s:
                raise PluginTooOld(told)
            if self._obstacle != told:
                self._obstacle = told
                log.warning("membership_missing", extra={"error": told})
                self._poll_now.set()
            await asyncio.sleep(FILE_LOOK_S)

    async def _keep_imex(self) -> None:
        # Nowhere here asyncio.wait_for: in Python 3.11 it loses a cancellation that comes together with a result.
        while True:
            self._wake.clear()
            try:
                delay_s = await self._reconcile()
            except OSError as error:  # a full disk: whoever is connected stays so
                log.error("not_reconciled", extra={"error": str(error), "retry_in_s": FILE_RETRY_S})
                delay_s = FILE_RETRY_S
            try:
                async with asyncio.timeout(delay_s):
                    await self._wake.wait()
            except TimeoutError:
                continue

    def _wanted(self) -> NodeTable | None:
        settings, membership = self._settings, self._membership
        if membership is None:
            return None
        return build_node_table(
            membership, settings.node, settings.address, use_names=settings.use_names, has_run=self._has_run
        )

    def _find_tls(self) -> Tls | TlsMissing | None:
        """What is there now; where that is not complete, what was complete last: whoever is connected stays so."""
        found = None if self._membership is None else find_tls(self._membership, self._settings.node, self._key)
        if isinstance(found, Tls):
            self._tls = found
        return self._tls if isinstance(found, TlsMissing) and self._tls else found

    async def _reconcile(self) -> float | None:
        """Do what is to be done; the seconds after which to look again, None to wait for a change."""
        action = plan_imex(self._wanted(), self._running, self._find_tls())
        match action:
            case Keep():
                self._dirty_since_s = None
            case Stop():
                log.info("not_a_member", extra={"node": self._settings.node, "object": self._settings.clique_name})
                self._tls = None
                await self._stop()
            case Restart(reason):
                log.info("imex_restarting", extra={"reason": reason})
                await self._stop()
                return 0.0
            case Start(table=table, tls=tls):
                return await self._start(table, tls)
            case Reload(table=table, tls=tls):
                return self._reload(table, tls)
            case _:
                assert_never(action)
        return None

    async def _stop(self) -> None:
        self._running = None
        await self._imex.stop(self._settings.grace_s)
        self._changed()

    async def _start(self, table: NodeTable, tls: Tls | None) -> float | None:
        now_s = time.monotonic()
        if now_s < self._may_start_at_s:
            return self._may_start_at_s - now_s
        files.write_imex_files(self._settings, table, tls)
        await self._imex.start()
        self._running = Running(table, tls)
        self._has_run = True
        self._responding = self._formed = False
        self._started_at_s, self._last_reload_s = now_s, None
        self._changed()
        return None

    def _reload(self, table: NodeTable, tls: Tls | None) -> float | None:
        now_s = time.monotonic()
        files.write_changes(self._settings, table, tls)
        if self._dirty_since_s is None:
            self._dirty_since_s = self._changed_at_s = now_s
            self._poll_now.set()
        if not self._responding:
            # SIGUSR1 would end a process that has not installed its handlers; its first answer wakes us.
            return None
        delay_s = reload_delay_s(
            at_once=self._all_up == table,
            changed_at_s=self._dirty_since_s,
            last_reload_s=self._last_reload_s,
            now_s=now_s,
        )
        if delay_s > 0:
            return delay_s
        self._imex.reload()
        self._last_reload_s = now_s
        self._running = Running(table, tls)
        self._changed()
        return None

    def _changed(self) -> None:
        self._dirty_since_s = None
        self._changed_at_s = self._answered_at_s = time.monotonic()
        self._poll_now.set()

    async def _keep_readiness(self) -> None:
        while True:
            self._poll_now.clear()
            readiness = await self._check()
            self._set(readiness)
            wait_s = poll_interval_s(ready=readiness.ready, since_change_s=time.monotonic() - self._changed_at_s)
            try:
                async with asyncio.timeout(wait_s):
                    await self._poll_now.wait()
            except TimeoutError:
                continue
            await asyncio.sleep(ANSWER_S)

    async def _check(self) -> Readiness:
        settings, table = self._settings, self._wanted()
        if not settings.clique_id:
            return self._state.value
        if self._membership is None:
            absent = f"there is no ComputeDomainClique {settings.namespace}/{settings.clique_name}"
            return Readiness(False, self._obstacle or absent)
        if table is None:
            return Readiness(False, f"node {settings.node} is not among the members, or they have no addresses yet")
        tls = find_tls(self._membership, settings.node, self._key)
        missing = tls.reason if isinstance(tls, TlsMissing) else ""
        if self._running is None or self._running.table.own_index != table.own_index:
            return Readiness(False, missing or "nvidia-imex does not run")
        readiness = await self._ask(table, self._running)
        if readiness.ready or not missing:
            return readiness
        return replace(readiness, message=f"{readiness.message}; {missing}")

    async def _ask(self, table: NodeTable, asked: Running) -> Readiness:
        """What nvidia-imex says; one that says nothing for long is ended."""
        settings = self._settings
        config = files.config_path(settings)
        readiness = check_readiness(await read_domain(config), table, asked.table)
        # For the domain every node is asked, and one out of reach holds the answer up; -q asks this one alone.
        responding = readiness.responding or (self._imex.alive and await is_answering(config))
        if self._running is not asked:
            return readiness  # of a process that may be gone by now
        now_s = time.monotonic()
        self._all_up = table if readiness.lagging else None
        if (responding and not self._responding) or readiness.lagging:
            self._wake.set()
        self._responding = self._responding or responding
        self._hasten(readiness, now_s)
        if responding or not self._imex.alive:
            self._answered_at_s = now_s
        elif now_s - self._answered_at_s > settings.hang_limit_s:
            log.error("imex_hangs", extra={"silent_s": now_s - self._answered_at_s})
            await self._imex.stop(settings.grace_s)
            self._on_exit(-1)
        return readiness

    def _hasten(self, readiness: Readiness, now_s: float) -> None:
        """While the domain forms for the first time, do not leave a peer that came up to the next second's attempt."""
        if readiness.ready:
            self._formed = True
        if self._dirty_since_s is not None or now_s - self._changed_at_s < HASTEN_AFTER_S:
            return
        due_s = reload_delay_s(at_once=True, changed_at_s=now_s, last_reload_s=self._last_reload_s, now_s=now_s)
        if readiness.lagging and not self._formed and due_s == 0:
            self._imex.reload()
            self._last_reload_s = now_s

    def _set(self, readiness: Readiness) -> None:
        self._state.set(readiness)
        try:
            files.write_status(self._settings, self._wanted(), readiness)
        except OSError as error:  # a full disk is no reason to end nvidia-imex under running jobs
            log.error("status_not_written", extra={"error": str(error)})

    def _on_exit(self, status: int) -> None:
        """nvidia-imex ended without being told to."""
        now_s = time.monotonic()
        self._crashes = count_crashes(self._crashes, now_s - self._started_at_s)
        self._may_start_at_s = now_s + restart_delay_s(self._crashes)
        self._running = None
        log.error("imex_ended", extra={"status": status, "restart_in_s": self._may_start_at_s - now_s})
        self._set(Readiness(False, f"nvidia-imex ended with status {status}"))
        self._wake.set()


def _parse_file(content: dict[str, Any]) -> Membership | None:
    """None while there is no membership. Raises InvalidObject, also for a file that a newer plugin means otherwise."""
    version = content.get("version", 1)
    if version != MEMBERSHIP_FILE_VERSION:
        raise InvalidObject(
            f"the node plugin writes membership files of version {version}, and this daemon reads version "
            f"{MEMBERSHIP_FILE_VERSION}: delete this pod, and a daemon of the controller's version takes its place"
        )
    return parse_membership(content) if "metadata" in content else None
