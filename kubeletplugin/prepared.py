"""What is prepared on this node for ComputeDomains. The CDI files say so, whichever instance of the plugin wrote them.

A node's channels are of one IMEX domain at a time: whoever still has channel 0 when the daemon of another domain starts
is in that domain. So nothing is prepared for a domain before the last claim of another has been given back, which the
kubelet does when its containers have ended, however long a pod that was deleted by force, or whose domain was, goes on.
"""

import asyncio
import errno
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Iterator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Final

from api.client import Client, Json
from api.errors import Busy
from api.names import COMPUTE_DOMAIN_CDI_VENDOR, COMPUTE_DOMAIN_DRIVER
from kubeletplugin.cdi_files import CdiFiles
from kubeletplugin.disk import disk_errors, locked
from kubeletplugin.model.cdi import cdi_file_name
from kubeletplugin.model.channels import (
    DAEMON_FOLDER,
    STATUS_FOLDER,
    UNKNOWN_DOMAIN,
    ClaimName,
    PreparedClaim,
    describe_holders,
    is_mounted,
    read_prepared,
    with_pods,
)
from kubeletplugin.model.occupation import is_of_pods
from kubeletplugin.occupants import ASK_AGAIN_S
from kubeletplugin.stale import SWEEP_INTERVAL_S, StaleClaims
from kubeletplugin.watch import watch_folder

log = logging.getLogger(__name__)

_ENDED: Final = (errno.ENOENT, errno.ESRCH, errno.EINVAL)  # EINVAL: mountinfo of one that its parent has yet to reap


class PreparedClaims:
    """The claims that have a CDI file of this driver, and which of them are gone from the API server."""

    def __init__(
        self, client: Client, node: str, cdi: CdiFiles, lock_path: Path, grace_s: float, proc: Path = Path("/proc")
    ) -> None:
        self._cdi = cdi
        self._lock_path = lock_path
        self._stale = StaleClaims(client, node, grace_s)
        self._proc = proc
        self._told: set[str] = set()
        """UIDs of the claims whose file cannot be parsed, which is logged once."""

    def read(self) -> Iterator[tuple[PreparedClaim, Json]]:
        """Every claim, with its CDI spec. Raises DiskFailed."""
        for uid, spec in self._cdi.read_all():
            prepared = read_prepared(uid, spec)
            if prepared.domain_uid == UNKNOWN_DOMAIN and uid not in self._told:
                self._told.add(uid)
                path = self._cdi.path(cdi_file_name(COMPUTE_DOMAIN_CDI_VENDOR, uid))
                note = "until it is gone, nothing is prepared for any ComputeDomain, and folders and key stay"
                log.error("cdi_file_unreadable", extra={"claim_uid": uid, "path": str(path), "note": note})
            yield prepared, spec or {}

    def exists(self, uid: str) -> bool:
        return self._cdi.exists(cdi_file_name(COMPUTE_DOMAIN_CDI_VENDOR, uid))

    async def add(self, claim: ClaimName, domain_uid: str, build_spec: Callable[[], Json]) -> None:
        """Raises Busy while the node is another domain's; DiskFull, DiskFailed, and what `build_spec` raises.

        Of two instances of the program, at a rolling update, one looks and writes at a time.
        """
        async with locked(self._lock_path):
            others = self.find_others(domain_uid)
            if others:
                raise busy(claim, others)
            self.write(claim, build_spec())

    def write(self, claim: ClaimName, spec: Json) -> None:
        """Raises DiskFull, DiskFailed."""
        self._cdi.write(cdi_file_name(COMPUTE_DOMAIN_CDI_VENDOR, claim.uid), spec)

    def renew(self, claim: ClaimName, pods: Collection[str]) -> None:
        """It is asked for again, so that it is not gone: perhaps for other pods, or an earlier version noted none.

        Raises DiskFull, DiskFailed.
        """
        self._stale.forget(claim.uid)
        for prepared, spec in list(self.read()):
            if prepared.uid == claim.uid and prepared.domain_uid != UNKNOWN_DOMAIN:
                every = {*prepared.pods, *pods}
                if len(every) > len(prepared.pods):
                    self.write(claim, with_pods(spec, every))

    def remove(self, uid: str) -> None:
        self._stale.forget(uid)
        self._cdi.remove(cdi_file_name(COMPUTE_DOMAIN_CDI_VENDOR, uid))

    def find_others(self, domain_uid: str) -> tuple[PreparedClaim, ...]:
        """The claims of other domains, and those that may be. Raises DiskFailed.

        A file that NVIDIA's driver has left says nothing of a domain, and does not count.
        """
        return tuple(each for each, _ in self.read() if each.domain_uid not in ("", domain_uid))

    async def follow_others(self, domain_uid: str) -> AsyncGenerator[tuple[PreparedClaim, ...], None]:
        """The claims of other domains, at every change until there are none; `add` sees who comes after that.

        One that is gone from the API server is looked into.
        """
        before = self.find_others(domain_uid)
        yield before
        if not before:
            return
        self._stale.ask()
        async with aclosing(watch_folder(self._cdi.directory)) as looks:
            async for _ in looks:
                others = self.find_others(domain_uid)
                if others != before:
                    before = others
                    self._stale.ask()
                    yield others
                if not others:
                    return

    async def sweep_regularly(self, unprepare: Callable[[PreparedClaim], Awaitable[None]]) -> None:
        """Give back, until cancelled, what is gone from the API server for long and what no container has."""

        seen: set[str] = set()  # a failed look forgets nothing

        async def give_back(claim: PreparedClaim) -> bool:
            pids = await asyncio.to_thread(_find_users, self._proc, claim)
            if pids:
                extra = {"claim": claim.claim, "claim_uid": claim.uid, "pids": pids[:8]}
                log.warning("stale_claim_in_use", extra=extra)
                self._stale.postpone(claim.uid, ASK_AGAIN_S)
                return False
            if not self._stale.is_gone(claim.uid):
                return False
            await unprepare(claim)
            return True

        async def sweep() -> float:
            nonlocal seen
            claims = [each for each, _ in self.read()]
            seen = {each.uid for each in claims}
            await self._stale.sweep([each for each in claims if each.name], give_back)
            return SWEEP_INTERVAL_S

        await self._stale.run(COMPUTE_DOMAIN_DRIVER, sweep, lambda: seen)


def busy(claim: ClaimName, others: Sequence[PreparedClaim]) -> Busy:
    return Busy(f"claim {claim.claim}: {describe_holders(others)}", tuple(each.uid for each in others))


def _find_users(proc: Path, claim: PreparedClaim) -> list[int]:
    """Processes of the claim's pods, and of containers that show what they were given with it. Raises DiskFailed.

    A container can hide its mounts and go on with an open file, but does not leave its pod's cgroup.
    """
    place = STATUS_FOLDER if claim.kind == "channel" else DAEMON_FOLDER
    with disk_errors(proc):
        return sorted(
            int(folder.name)
            for folder in proc.iterdir()
            if folder.name.isdigit()
            and (
                is_of_pods(_read(folder / "cgroup"), claim.pods)
                or is_mounted(_read(folder / "mountinfo"), claim.domain_uid, place)
            )
        )


def _read(file: Path) -> str:
    """Of a process; empty when it has ended. Raises OSError."""
    try:
        return file.read_text(errors="replace")  # a container may have given its mounts any name
    except OSError as error:
        if error.errno in _ENDED:
            return ""
        raise
