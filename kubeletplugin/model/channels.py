"""The devices of `compute-domain.nvidia.com` and what is decided about claims of them: IMEX channels and daemons.

Device names, attributes and classes are those of NVIDIA's DRA driver; `cliqueID`, `nvlinkDomain` and the daemon's
public key are additions.

Channel 0 is one device that several claims may hold (DRAConsumableCapacity), so several pods of a ComputeDomain can be
on one node. An API server that drops that field leaves one claim a node, as in NVIDIA's driver. That all of them are of
one domain is not the scheduler's to know: the node's one daemon is of one domain, and claims of another wait until
nothing of that domain is prepared here any more.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol

from api.clique import FAILED_CONDITION, FORMED_CONDITION, KEY_ATTRIBUTE
from api.errors import ClaimError
from api.names import CDI_CLAIM_CLASS, COMPUTE_DOMAIN_CDI_VENDOR, COMPUTE_DOMAIN_DRIVER
from kubeletplugin.model.cdi import (
    CDI_VERSION,
    DeviceNode,
    DriverTree,
    cdi_file_name,
    driver_program_edits,
    node_edit,
)
from kubeletplugin.model.claims import ClaimRequest
from kubeletplugin.model.devices import ApiDevice, DeviceGroup, DeviceSet, Features
from kubeletplugin.model.inventory import Gpu, Inventory

CHANNEL_DEVICE: Final = "channel-0"
DAEMON_DEVICE: Final = "daemon-0"
CHANNELS: Final = 2048  # per node; NVIDIA's IMEX guide, "IMEX Channels"
CHANNEL_FOLDER: Final = "/dev/nvidia-caps-imex-channels"
DOMAIN_ANNOTATION: Final = "partita/compute-domain"
"""Annotation of a CDI spec: UID of the ComputeDomain that the claim is of."""
CLAIM_ANNOTATION: Final = "partita/claim"
"""Annotation of a CDI spec: `<namespace>/<name>` of the claim."""
PODS_ANNOTATION: Final = "partita/pods"
"""Annotation of a CDI spec: UIDs of the pods that the claim is reserved for, with commas between them."""
UNKNOWN_DOMAIN: Final = "?"
"""In the place of a domain's UID: the claim's CDI spec cannot be parsed, so it may be of any."""
STATUS_FOLDER: Final = "/run/partita/compute-domain"
"""In a workload's container: `status.json` of its node's daemon, which says who is connected."""
DAEMON_FOLDER: Final = "/imexd"
"""In a daemon's container, as in NVIDIA's DRA driver: the domain's directory on this node."""
DOMAIN_FOLDERS: Final = {"work": "rw", "status": "rw", "membership": "ro"}
"""Of a domain's directory on the node, and how its daemon sees them.

A daemon gets the three, never the directory itself: what the node plugin and other containers are led to through it
must not be a daemon's to replace by a link.
"""

NAMED: Final = 3
"""Of the claims that hold a node so many are named."""

_NO_CLUSTER: Final = "00000000-0000-0000-0000-000000000000"


@dataclass(frozen=True, slots=True)
class Attached:
    """Every GPU of the node is in this NVLink clique (`Fabric.clique`)."""

    clique: str
    cluster: str


@dataclass(frozen=True, slots=True)
class NoFabric:
    """No GPU can share memory with another node's."""


@dataclass(frozen=True, slots=True)
class Unsettled:
    """There is a fabric, but which clique the node is in cannot be said now."""

    reason: str


NodeFabric = Attached | NoFabric | Unsettled


@dataclass(frozen=True, slots=True)
class ImexNodes:
    """Device numbers that the driver gave to IMEX; None where it offers none."""

    channel_major: int | None = None
    management: DeviceNode | None = None
    """The capability that lets a process be the node's IMEX daemon."""
    programs: tuple[str, ...] = ()
    """Of nvidia-imex and nvidia-imex-ctl those that exist, as paths under the driver root."""


@dataclass(frozen=True, slots=True)
class DomainUse:
    """What a claim wants of a ComputeDomain on this node."""

    kind: Literal["channel", "daemon"]
    domain_uid: str
    all_channels: bool = False
    release_policy: str | None = None
    """The ComputeDomain's, where the claim's config repeats it."""


class ClaimName(Protocol):
    """Whose CDI spec it is."""

    @property
    def uid(self) -> str: ...
    @property
    def claim(self) -> str: ...


@dataclass(frozen=True, slots=True)
class PreparedClaim:
    """What a CDI spec says about the claim that it was written for."""

    uid: str
    claim: str
    kind: str
    """`channel` or `daemon`."""
    domain_uid: str
    pods: tuple[str, ...] = ()
    """UIDs of those that it was reserved for; none in a spec of an earlier version, or where it is not for pods."""
    driver: str = COMPUTE_DOMAIN_DRIVER
    is_complete: bool = True
    """There is a CDI spec for no other."""

    @property
    def namespace(self) -> str:
        return self.claim.partition("/")[0]

    @property
    def name(self) -> str:
        return self.claim.partition("/")[2]

    @property
    def device_names(self) -> tuple[str, ...]:
        return (CHANNEL_DEVICE if self.kind == "channel" else DAEMON_DEVICE,)


def find_fabric(inventory: Inventory) -> NodeFabric:
    """The node's clique. A fabric that is not in order is never taken for none: pods would start without a channel."""
    gpus = [gpu for gpu in inventory.gpus if not gpu.lost]
    if not gpus:
        return Unsettled("no GPU of this node answers")
    on_fabric = [gpu for gpu in gpus if _is_on_fabric(gpu)]
    if not on_fabric:
        return NoFabric()
    if len(on_fabric) < len(gpus):
        return Unsettled(f"{len(on_fabric)} of {len(gpus)} GPUs are on an NVLink fabric; right would be all")
    cliques = {}
    for gpu in on_fabric:
        fabric = gpu.fabric
        if fabric is None or fabric.state != "completed" or fabric.status != 0:
            state = f"{fabric.state}, status {fabric.status}" if fabric else "unknown"
            return Unsettled(f"GPU {gpu.uuid} has not joined its NVLink fabric yet (state {state})")
        cliques[fabric.clique] = fabric
    if len(cliques) > 1:
        return Unsettled(f"the GPUs are in different NVLink cliques: {', '.join(sorted(cliques))}")
    clique, fabric = cliques.popitem()
    return Attached(clique, fabric.cluster_uuid)


def _is_on_fabric(gpu: Gpu) -> bool:
    """A cluster UUID of zeros is the NVSwitch fabric inside one machine."""
    fabric = gpu.fabric
    if fabric is None or fabric.state == "not_supported":
        return False
    return fabric.state != "completed" or fabric.status != 0 or fabric.cluster_uuid != _NO_CLUSTER


def build_domain_devices(
    fabric: NodeFabric, features: Features, *, binding: bool = False, public_key: str = ""
) -> DeviceSet:
    """`channel-0` and `daemon-0`; nothing while the clique is not known, for the controller builds on it.

    `binding`: pods shall be bound only when their domain is formed. `public_key`: of the node's next or present daemon,
    "" where there is none.
    """
    if isinstance(fabric, Unsettled):
        return DeviceSet(notes=(fabric.reason,))
    where = {}
    if isinstance(fabric, Attached):
        where = {"cliqueID": {"string": fabric.clique}, "nvlinkDomain": {"string": fabric.cluster}}
    channel: ApiDevice = {
        "name": CHANNEL_DEVICE,
        "attributes": {"type": {"string": "channel"}, "id": {"int": 0}, **where},
    }
    if features.shared:
        channel["allowMultipleAllocations"] = True
    if binding and features.binding:
        channel["bindingConditions"] = [FORMED_CONDITION]
        channel["bindingFailureConditions"] = [FAILED_CONDITION]
    daemon: ApiDevice = {
        "name": DAEMON_DEVICE,
        "attributes": {"type": {"string": "daemon"}, "id": {"int": 0}, **where},
    }
    if public_key:
        daemon["attributes"][KEY_ATTRIBUTE] = {"string": public_key}
    return DeviceSet(groups=(DeviceGroup("compute-domain", (channel, daemon)),))


def read_use(request: ClaimRequest, driver_namespace: str) -> DomainUse:
    """What the claim is for. Raises ClaimError: no config, two domains at once, or a daemon in a user's namespace."""
    # Here, for the reason in `kubeletplugin.model.claims.parse_config`.
    from api.device_config import ComputeDomainChannelConfig, ComputeDomainDaemonConfig

    uses = set()
    for device, config in zip(request.devices, request.configs, strict=True):
        match config:
            case ComputeDomainChannelConfig():
                all_channels = config.allocationMode == "All"
                uses.add(DomainUse("channel", config.domainID, all_channels, config.releasePolicy))
            case ComputeDomainDaemonConfig():
                uses.add(DomainUse("daemon", config.domainID))
            case _:
                raise ClaimError(
                    request.claim,
                    f"request {device.request}: there is no config of kind ComputeDomainChannelConfig; right would be "
                    "the ResourceClaimTemplate that the ComputeDomain names in spec.channel.resourceClaimTemplate",
                    reason="InvalidConfig",
                )
    if len(uses) != 1:
        raise ClaimError(
            request.claim, "all its devices must be for one ComputeDomain, in one way", reason="InvalidConfig"
        )
    use = uses.pop()
    if use.kind == "daemon" and request.namespace != driver_namespace:
        raise ClaimError(
            request.claim,
            f"IMEX daemons are the controller's: a claim of class compute-domain-daemon.nvidia.com is served in "
            f"namespace {driver_namespace} only, not in {request.namespace}",
            reason="WrongNamespace",
        )
    return use


def read_pods(claim: Mapping[str, Any]) -> tuple[str, ...]:
    """UIDs of the pods that a ResourceClaim is reserved for; it may also be for something else, a PodGroup say."""
    consumers = (claim.get("status") or {}).get("reservedFor") or ()
    return tuple(each["uid"] for each in consumers if each.get("resource") == "pods")


def build_channel_spec(
    request: ClaimName, use: DomainUse, major: int, status_folder: str, pods: Collection[str]
) -> dict[str, Any]:
    """CDI: the channels' device nodes, by number so that no node need exist on the host, and the daemon's status."""
    numbers = range(CHANNELS if use.all_channels else 1)
    nodes = [
        {"path": f"{CHANNEL_FOLDER}/channel{n}", "type": "c", "major": major, "minor": n, "fileMode": 0o666}
        for n in numbers
    ]
    status = {"hostPath": status_folder, "containerPath": STATUS_FOLDER, "options": ["ro", "nosuid", "nodev", "rbind"]}
    return _spec(request, use, {"deviceNodes": nodes, "mounts": [status]}, pods)


def build_daemon_spec(
    request: ClaimName, use: DomainUse, imex: ImexNodes, tree: DriverTree, folder: str, pods: Collection[str]
) -> dict[str, Any]:
    """CDI: the right to be the node's IMEX daemon, the driver's libraries and programs, and the domain's directory."""
    edits = driver_program_edits(tree, imex.programs)
    gpus = [node for minor in sorted(tree.gpu_nodes) for node in tree.gpu_nodes[minor]]
    management = [] if imex.management is None else [imex.management]
    nodes = [*edits.get("deviceNodes", ()), *(node_edit(node) for node in (*gpus, *management))]
    folders = [
        {
            "hostPath": f"{folder}/{name}",
            "containerPath": DAEMON_FOLDER if name == "work" else f"{DAEMON_FOLDER}/{name}",
            "options": [mode, "nosuid", "nodev", "rbind"],
        }
        for name, mode in DOMAIN_FOLDERS.items()
    ]
    return _spec(request, use, {**edits, "deviceNodes": nodes, "mounts": [*edits["mounts"], *folders]}, pods)


def _spec(request: ClaimName, use: DomainUse, edits: dict[str, Any], pods: Collection[str]) -> dict[str, Any]:
    """One CDI device for the whole claim: whichever of its requests a container uses, it gets the same once."""
    spec = {
        "cdiVersion": CDI_VERSION,
        "kind": f"{COMPUTE_DOMAIN_CDI_VENDOR}/{CDI_CLAIM_CLASS}",
        "annotations": {DOMAIN_ANNOTATION: use.domain_uid, CLAIM_ANNOTATION: request.claim},
        "devices": [{"name": f"{request.uid}-{use.kind}", "containerEdits": edits}],
    }
    return with_pods(spec, pods)


def with_pods(spec: dict[str, Any], pods: Collection[str]) -> dict[str, Any]:
    """The spec, for these pods."""
    noted = {PODS_ANNOTATION: ",".join(sorted(pods))} if pods else {}
    return {**spec, "annotations": {**(spec.get("annotations") or {}), **noted}}


def domain_cdi_id(request: ClaimRequest, use: DomainUse) -> str:
    return f"{COMPUTE_DOMAIN_CDI_VENDOR}/{CDI_CLAIM_CLASS}={request.uid}-{use.kind}"


def read_prepared(uid: str, spec: Mapping[str, Any] | None) -> PreparedClaim:
    """The inverse of `_spec`. `spec`: None for one that cannot be parsed."""
    if not spec or not spec.get("devices"):
        return PreparedClaim(uid, "", "", UNKNOWN_DOMAIN)
    annotations = spec.get("annotations") or {}
    claim, domain_uid, pods = (
        str(annotations.get(name, "")) for name in (CLAIM_ANNOTATION, DOMAIN_ANNOTATION, PODS_ANNOTATION)
    )
    kind = str(spec["devices"][0].get("name", "")).rpartition("-")[2]
    return PreparedClaim(uid, claim, kind, domain_uid, tuple(filter(None, pods.split(","))))


def describe_holders(others: Sequence[PreparedClaim]) -> str:
    """Why nothing can be prepared here for a domain, while these claims of others are."""
    named = ", ".join(sorted(map(_name, others))[:NAMED])
    more = f" and {len(others) - NAMED} more" if len(others) > NAMED else ""
    return f"this node's IMEX channels are another ComputeDomain's until its containers here have ended: {named}{more}"


def _name(each: PreparedClaim) -> str:
    if each.domain_uid == UNKNOWN_DOMAIN:
        return f"a claim whose CDI file {cdi_file_name(COMPUTE_DOMAIN_CDI_VENDOR, each.uid)} cannot be parsed"
    return f"claim {each.claim} ({each.kind})"


def is_mounted(mountinfo: str, domain_uid: str, place: str) -> bool:
    """Whether a process has a folder of this domain at this place. `mountinfo`: its /proc/PID/mountinfo."""
    marked = f"/domains/{domain_uid}/"
    mounts = (line.split(" ", 5) for line in mountinfo.splitlines())
    return any(len(mount) > 4 and marked in mount[3] and mount[4] == place for mount in mounts)
