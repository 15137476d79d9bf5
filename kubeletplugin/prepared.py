"""What is prepared on this node for ComputeDomains. The CDI files say so, whichever instance of the plugin wrote them.

A node's channels are of one IMEX domain at a time: whoever still has channel 0 when the daemon of another domain starts
is in that domain. So nothing is prepared for a domain before the last claim of another has been given back, which the
kubelet does when its containers have ended, however long a pod that was deleted by force, or whose domain was, goes on.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing
from pathlib import Path

from api.client import Client, Json
from api.errors import Busy
from api.names import COMPUTE_DOMAIN_CDI_VENDOR, COMPUTE_DOMAIN_DRIVER
from kubeletplugin.cdi_files import CdiFiles
from kubeletplugin.disk import locked
from kubeletplugin.model.cdi import cdi_file_name
from kubeletplugin.model.channels import (
    DAEMON_FOLDER,
    STATUS_FOLDER,
    ClaimName,
    PreparedClaim,
    describe_holders,
    is_mounted,
    read_prepared,
)
from kubeletplugin.occupants import ASK_AGAIN_S
from kubeletplugin.stale import SWEEP_INTERVAL_S, StaleClaims
from kubeletplugin.watch import watch_folder

log = logging.getLogger(__name__)


class PreparedClaims:
    """The claims that have a CDI file of this driver, and which of them are gone from the API server."""

    def __init__(
        self, client: Client, node: str, cdi: CdiFiles, lock_path: Path, grace_s: float, proc: Path = Path("/proc")
    ) -> None:
        self._cdi = cdi
        self._lock_path = lock_path
        self._stale = StaleClaims(client, node, grace_s)
        self._proc = proc

    def read(self) -> Iterator[tuple[PreparedClaim, Json]]:
        """Every claim, with its CDI spec."""
        for uid, spec in self._cdi.read_all():
            prepared = read_prepared(uid, spec)
            if prepared is not None and spec is not None:
                yield prepared, spec

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

    def remove(self, uid: str) -> None:
        self._stale.forget(uid)
        self._cdi.remove(cdi_file_name(COMPUTE_DOMAIN_CDI_VENDOR, uid))

    def find_others(self, domain_uid: str) -> tuple[PreparedClaim, ...]:
        """The claims of other domains. Of a file that NVIDIA's driver has left nobody knows the domain."""
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

        async def give_back(claim: PreparedClaim) -> bool:
            pids = await asyncio.to_thread(_find_users, self._proc, claim)
            if pids:
                extra = {"claim": claim.claim, "claim_uid": claim.uid, "pids": pids[:8]}
                log.warning("stale_claim_in_use", extra=extra)
                self._stale.postpone(claim.uid, ASK_AGAIN_S)
                return False
            await unprepare(claim)
            return True

        async def sweep() -> float:
            await self._stale.sweep([each for each, _ in self.read() if each.name], give_back)
            return SWEEP_INTERVAL_S

        await self._stale.run(COMPUTE_DOMAIN_DRIVER, sweep, lambda: {each.uid for each, _ in self.read()})


def busy(claim: ClaimName, others: Sequence[PreparedClaim]) -> Busy:
    return Busy(f"claim {claim.claim}: {describe_holders(others)}", tuple(each.uid for each in others))


def _find_users(proc: Path, claim: PreparedClaim) -> list[int]:
    """Processes of containers that were given what the claim is for."""
    found = []
    place = STATUS_FOLDER if claim.kind == "channel" else DAEMON_FOLDER
    for folder in proc.iterdir():
        if folder.name.isdigit():
            try:
                mounts = (folder / "mountinfo").read_text()
            except OSError:
                continue  # it has ended meanwhile
            if is_mounted(mounts, claim.domain_uid, place):
                found.append(int(folder.name))
    return sorted(found)
