"""The driver `compute-domain.nvidia.com`: IMEX channels for workloads, and the node's part of IMEX daemons.

Nothing on the hardware changes for a claim, so its CDI file is all the state there is: written whole before the reply,
removed before the answer to unprepare. A channel is given out when the controller says so in the ComputeDomainClique,
and a node is one domain's at a time (`kubeletplugin.prepared`); the call waits for both by watches, inside the
kubelet's deadline.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Collection
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Final

from api.client import Client, Json, path
from api.clique import (
    CLIQUE_PLURAL,
    DAEMON_LOCK_FILE,
    DAEMON_STATUS_FILE,
    Membership,
    clique_object_name,
    parse_membership,
)
from api.errors import HardwareError, PartitaError, Retryable, StateUnreadable
from api.names import COMPUTE_DOMAIN_DRIVER, RESOURCE_API_VERSION
from kubeletplugin.cdi_files import CdiFiles
from kubeletplugin.disk import DiskFailed, is_locked
from kubeletplugin.domain_folders import DomainFolders
from kubeletplugin.driver import RETRY_FOR_S
from kubeletplugin.executor import Executor
from kubeletplugin.hardware.imex import read_imex_nodes
from kubeletplugin.hardware.tree import DriverRoot, read_driver_tree
from kubeletplugin.membership import Cliques, Memberships, Seen, provide_membership
from kubeletplugin.merge import merge
from kubeletplugin.metrics import show_prepared
from kubeletplugin.model.channels import (
    CHANNEL_DEVICE,
    DAEMON_DEVICE,
    UNKNOWN_DOMAIN,
    Attached,
    ClaimName,
    DomainUse,
    NodeFabric,
    NoFabric,
    PreparedClaim,
    Unsettled,
    build_channel_spec,
    build_daemon_spec,
    build_domain_devices,
    describe_holders,
    domain_cdi_id,
    find_fabric,
    read_pods,
    read_use,
)
from kubeletplugin.model.claims import ClaimRequest, parse_claim, parse_config
from kubeletplugin.model.devices import DeviceSet, Features
from kubeletplugin.model.health import HealthStatus
from kubeletplugin.model.release import DaemonReport, Here, Release, UnreadableReport, check_release, parse_report
from kubeletplugin.node_key import MakeKey, NodeKey, make_key_apart
from kubeletplugin.prepared import PreparedClaims, busy
from kubeletplugin.server import ClaimRef, DeviceHealth, ReadyDevice
from kubeletplugin.watch import read_json, watch_folder

log = logging.getLogger(__name__)

KEY_FILE: Final = "imex-key.json"
_MISSING_RETRY_S: Final = 5.0
_RESCAN_INTERVAL_S: Final = 10.0


class NotConnectedYet(Retryable):
    """The ComputeDomain is not formed on this node yet; the message says what is missing."""

    reason = "ComputeDomainNotReady"


class ComputeDomainDriver:
    """`kubeletplugin.driver.NodeDriver` for ComputeDomains."""

    name = COMPUTE_DOMAIN_DRIVER
    interruptible = True

    def __init__(
        self,
        node: str,
        namespace: str,
        client: Client,
        executor: Executor,
        cdi: CdiFiles,
        root: DriverRoot,
        directory: Path,
        wait_s: float = RETRY_FOR_S,
        binding: bool = False,
        stale_grace_s: float = 300.0,
        make_key: MakeKey = make_key_apart,
    ) -> None:
        """`namespace` is the driver's own; `directory` has `domains/<uid>` of every domain on this node, and its key.

        `binding`: let the scheduler bind pods only when their domain is formed, where it can.
        """
        self._node = node
        self._namespace = namespace
        self._client = client
        self._executor = executor
        self._prepared = PreparedClaims(client, node, cdi, directory / "prepared.lock", stale_grace_s)
        self._root = root
        self._folders = DomainFolders(directory / "domains")
        self._wait_s = wait_s
        self._binding = binding
        self._fabric: NodeFabric = Unsettled("the hardware has not been read yet")
        self._cliques = Cliques(client, path(RESOURCE_API_VERSION, CLIQUE_PLURAL, namespace=namespace))
        self._key = NodeKey(directory / KEY_FILE, make_key, self._serving)
        self._key_maybe_due = asyncio.Event()
        self._memberships = Memberships(self._cliques, node, self._key)
        self._awaited: Counter[str] = Counter()
        """Domains that claims wait for: how many."""
        self._known: Attached | NoFabric | None = None
        """The last answer that was certain: a fabric that is unwell for a while does not undo running domains."""

    # Start and hardware

    async def recover(self) -> None:
        while True:
            try:
                await self._look()
                break
            except HardwareError as error:
                log.warning("waiting_for_hardware", extra={"driver": self.name, "error": str(error)})
                await asyncio.sleep(_MISSING_RETRY_S)
        self._tidy()
        with suppress(DiskFailed):  # which `_tidy` has told
            self._renew_daemon_specs()
        await self._renew_key()

    async def _look(self) -> bool:
        """Read the fabric; whether anything about it changed. Raises HardwareError."""
        before = self._fabric
        self._fabric = find_fabric(await self._executor.rescan())
        if not isinstance(self._fabric, Unsettled):
            self._known = self._fabric
        if self._fabric != before:
            log.info("fabric", extra={"driver": self.name, "fabric": str(self._fabric)})
        return self._fabric != before

    async def run(self, changed: Callable[[], None]) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._rescan(changed))
            tasks.create_task(self._keep_key(changed))
            tasks.create_task(self._prepared.sweep_regularly(self._give_back))
            tasks.create_task(self._cliques.run())
            tasks.create_task(self._memberships.run())

    async def _rescan(self, changed: Callable[[], None]) -> None:
        while True:
            await asyncio.sleep(_RESCAN_INTERVAL_S)
            try:
                if await self._look():
                    changed()
                self._follow_memberships()  # also what could not be read before
            except PartitaError as error:
                log.error("rescan_failed", extra={"driver": self.name, "error": str(error)})
            self._key_maybe_due.set()

    async def _keep_key(self, changed: Callable[[], None]) -> None:
        while True:
            await self._key_maybe_due.wait()
            self._key_maybe_due.clear()
            if await self._renew_key():
                changed()

    async def _renew_key(self) -> bool:
        """Whether the key is another one now. Where none can be made, the daemons of this node wait, and say so."""
        if not isinstance(self._known, Attached):
            return False
        try:
            return await self._key.renew()
        except PartitaError as error:
            log.error("key_not_made", extra={"driver": self.name, "error": str(error)})
            return False

    def _serving(self) -> set[str]:
        """UIDs of the domains that have a daemon on this node; the CDI files say which. Raises DiskFailed."""
        claims = [prepared for prepared, _ in self._prepared.read()]
        if any(each.domain_uid == UNKNOWN_DOMAIN for each in claims):
            return self._folders.list_domains()
        return {each.domain_uid for each in claims if each.kind == "daemon"} - {""}

    # Publishing

    def offer(self, features: Features) -> DeviceSet:
        fabric = self._known if isinstance(self._fabric, Unsettled) and self._known is not None else self._fabric
        public_key = self._key.read_public() if isinstance(fabric, Attached) else ""
        return build_domain_devices(fabric, features, binding=self._binding, public_key=public_key)

    def health(self) -> tuple[DeviceHealth, ...]:
        if self._known is None:
            return ()
        unwell = self._fabric.reason if isinstance(self._fabric, Unsettled) else ""
        status = HealthStatus.UNHEALTHY if unwell else HealthStatus.HEALTHY
        return tuple(DeviceHealth(self._node, device, status, unwell) for device in (CHANNEL_DEVICE, DAEMON_DEVICE))

    # Claims

    async def prepare(self, claim: Json, ref: ClaimRef) -> tuple[ReadyDevice, ...]:
        request = parse_claim(claim, self.name, self._node, ref.uid, parse_config)
        use = read_use(request, self._namespace)
        if self._prepared.exists(request.uid):
            self._prepared.renew(request, read_pods(claim))
            return _ready_devices(request, (domain_cdi_id(request, use),))
        fabric = self._known
        if fabric is None:
            raise NotConnectedYet(f"claim {request.claim}: {self._unsettled()}")
        if isinstance(fabric, NoFabric):
            log.info("no_fabric", extra={"note": "this node has no NVLink fabric: the pod runs without a channel"})
            return _ready_devices(request, ())
        self._awaited[use.domain_uid] += 1
        try:
            if use.kind == "daemon":
                await self._wait_for_node(request, use)
            else:
                await self._wait_for_release(request, use, fabric)
            await self._prepared.add(request, use.domain_uid, lambda: self._build_spec(request, use, read_pods(claim)))
        finally:
            self._awaited -= Counter((use.domain_uid,))
            self._tidy()
        return _ready_devices(request, (domain_cdi_id(request, use),))

    def _unsettled(self) -> str:
        return self._fabric.reason if isinstance(self._fabric, Unsettled) else "the hardware has not been read yet"

    async def _wait_for_node(self, request: ClaimRequest, use: DomainUse) -> None:
        """Until nothing of another domain is prepared here. Raises Busy in the end."""
        others: tuple[PreparedClaim, ...] = ()
        try:
            async with (
                asyncio.timeout(self._wait_s),
                aclosing(self._prepared.follow_others(use.domain_uid)) as found,
            ):
                async for others in found:
                    if not others:
                        return
                    log.info("waiting", extra={"reason": describe_holders(others)})
        except TimeoutError as error:
            raise busy(request, others) from error

    async def _wait_for_release(self, request: ClaimRequest, use: DomainUse, fabric: Attached) -> None:
        """Until the channel is released. Raises ClaimError at once, NotConnectedYet in the end."""
        reason = f"claim {request.claim}: the API server has not answered yet"
        try:
            async with asyncio.timeout(self._wait_s), aclosing(self._follow(use, fabric)) as found:
                async for membership, here, refusal in found:
                    decision = check_release(request, use, membership, self._node, here)
                    if isinstance(decision, Release):
                        return
                    before, reason = reason, f"claim {request.claim}: {refusal}" if refusal else decision.reason
                    if reason != before:
                        log.info("waiting", extra={"reason": reason})
        except TimeoutError as error:
            raise NotConnectedYet(reason) from error

    async def _follow(
        self, use: DomainUse, fabric: Attached
    ) -> AsyncGenerator[tuple[Membership | None, Here, str], None]:
        """What the controller, this node's daemon and its CDI files say, at every change; after the controller's word.

        The last of three: what the API server says instead of telling the controller's word, "" while it tells it.
        """
        name = clique_object_name(use.domain_uid, fabric.clique)
        is_member = asyncio.Event()
        status = self._follow_status(use.domain_uid, is_member)
        membership: Membership | None = None
        others: tuple[PreparedClaim, ...] | None = None
        asked, refusal = False, ""
        held = self._prepared.follow_others(use.domain_uid)
        async with aclosing(merge(self._cliques.follow(name), status, held)) as news:
            async for found in news:
                if isinstance(found, Seen):
                    membership = parse_membership(found.clique) if found.clique else None
                    asked, refusal = True, found.refusal
                elif found is not None:
                    others = found
                if asked and others is not None:
                    folder = self._folders.find(use.domain_uid)
                    # The lock first: a daemon that has it has taken back what the one before it said.
                    alive = is_locked(folder / DAEMON_LOCK_FILE)
                    yield membership, Here(_read_report(folder / DAEMON_STATUS_FILE), alive, others), refusal
                if membership is not None and membership.member(self._node) is not None:
                    is_member.set()

    async def _follow_status(self, domain_uid: str, is_member: asyncio.Event) -> AsyncGenerator[None, None]:
        """Whenever the daemon says something: another one's words may be the same.

        Nothing is made on this node for a domain that it is no member of.
        """
        await is_member.wait()
        file = self._folders.make(domain_uid) / DAEMON_STATUS_FILE
        async with aclosing(watch_folder(file.parent)) as looks:
            async for _ in looks:
                yield

    def _build_spec(self, request: ClaimName, use: DomainUse, pods: Collection[str]) -> Json:
        if use.kind == "daemon":
            return self._build_daemon_spec(request, use.domain_uid, pods)
        major = read_imex_nodes(self._root).channel_major
        if major is None:
            raise HardwareError(
                "/proc/devices lists no nvidia-caps-imex-channels: this node's NVIDIA driver offers no IMEX channels"
            )
        status = self._folders.make(use.domain_uid) / "status"
        return build_channel_spec(request, use, major, str(status), pods)

    def _build_daemon_spec(self, request: ClaimName, domain_uid: str, pods: Collection[str]) -> Json:
        imex = read_imex_nodes(self._root)
        if imex.management is None:
            raise HardwareError("the NVIDIA driver of this node has no capability fabric-imex-mgmt")
        if len(imex.programs) < 2:
            raise HardwareError(
                f"{self._root.host} has no nvidia-imex and nvidia-imex-ctl: install the driver's IMEX package there"
            )
        tree = read_driver_tree(self._root, self._executor.inventory.driver_version)
        folder = self._folders.make(domain_uid)
        provide_membership(folder)
        return build_daemon_spec(request, DomainUse("daemon", domain_uid), imex, tree, str(folder), pods)

    def _renew_daemon_specs(self) -> None:
        """An earlier version of this program, or of the NVIDIA driver, may have given daemons other files.

        A container gets them when the kubelet starts it again.
        """
        for prepared, spec in list(self._prepared.read()):
            if prepared.kind != "daemon":
                continue
            try:
                renewed = self._build_daemon_spec(prepared, prepared.domain_uid, prepared.pods)
                if renewed != spec:
                    log.info("daemon_spec_renewed", extra={"claim": prepared.claim, "claim_uid": prepared.uid})
                    self._prepared.write(prepared, renewed)
            except PartitaError as error:
                log.error("daemon_spec_not_renewed", extra={"claim": prepared.claim, "error": str(error)})

    def _follow_memberships(self) -> None:
        wanted = {}
        if isinstance(self._known, Attached):
            for uid in self._serving():
                wanted[clique_object_name(uid, self._known.clique)] = self._folders.make(uid)
        self._memberships.want(wanted)

    async def unprepare(self, ref: ClaimRef) -> None:
        self._prepared.remove(ref.uid)
        self._key_maybe_due.set()
        self._tidy()

    # What is left over

    def _tidy(self) -> None:
        """What follows from which claims are prepared. Where that cannot be read, all stays as it is."""
        try:
            self._follow_memberships()
            claims = [prepared for prepared, _ in self._prepared.read()]
            kinds = Counter(each.kind for each in claims)
            show_prepared(self._node, self.name, {kind: kinds[kind] for kind in ("channel", "daemon")})
            used = {each.domain_uid for each in claims} | set(self._awaited)
            if UNKNOWN_DOMAIN not in used:
                self._folders.remove_others(used)
        except PartitaError as error:
            log.error("not_tidied", extra={"driver": self.name, "error": str(error)})

    async def _give_back(self, claim: PreparedClaim) -> None:
        """What a claim has that is gone, without the kubelet's telling us."""
        await self.unprepare(ClaimRef(claim.namespace, claim.name, claim.uid))


def _read_report(file: Path) -> DaemonReport | UnreadableReport | None:
    try:
        return parse_report(read_json(file))
    except StateUnreadable as error:
        log.error("file_unreadable", extra={"path": str(file), "error": str(error)})
        return UnreadableReport(str(error))


def _ready_devices(request: ClaimRequest, cdi_ids: tuple[str, ...]) -> tuple[ReadyDevice, ...]:
    return tuple(
        ReadyDevice((device.request,), device.pool, device.device, cdi_ids, device.share_id)
        for device in request.devices
    )
