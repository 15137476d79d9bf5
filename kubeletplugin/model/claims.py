"""One ResourceClaim as one driver on one node sees it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from api.clique import Moment, parse_moment
from api.errors import ClaimError, InvalidObject
from kubeletplugin.model.checkpoint import ClaimRecord, PreparedDevice

if TYPE_CHECKING:
    from api.device_config import DeviceConfig

NEVER: Final = Moment(0.0, is_known=False)
ParseConfig = Callable[[Mapping[str, Any]], "DeviceConfig"]


def parse_config(parameters: Mapping[str, Any]) -> "DeviceConfig":
    """`api.device_config.parse_device_config`. Raises InvalidObject.

    Loaded by the first claim that has a config: with pydantic it takes 13 MiB, and most claims of GPUs have none.
    """
    from api.device_config import parse_device_config

    return parse_device_config(parameters)


@dataclass(frozen=True, slots=True)
class AllocatedDevice:
    """One entry of `status.allocation.devices.results` of our driver."""

    request: str
    """Main request name: `gpu`, also where the result says `gpu/large`."""
    pool: str
    device: str
    admin_access: bool = False
    share_id: str | None = None


@dataclass(frozen=True, slots=True)
class ClaimRequest:
    """What is to be prepared for a claim."""

    driver: str
    uid: str
    namespace: str
    name: str
    devices: tuple[AllocatedDevice, ...]
    configs: "tuple[DeviceConfig | None, ...]"
    """The config that applies to each of `devices`; None where the claim and its classes say nothing."""
    allocated: Moment = NEVER

    @property
    def claim(self) -> str:
        """`<namespace>/<name>`, for messages."""
        return f"{self.namespace}/{self.name}"


AnyClaim = ClaimRequest | ClaimRecord
"""A claim to prepare: asked for, or to be prepared again from its record alone."""
AnyDevice = AllocatedDevice | PreparedDevice


def parse_claim(
    raw: Mapping[str, Any], driver: str, node: str, expected_uid: str, parse_config: ParseConfig
) -> ClaimRequest:
    """Read a ResourceClaim (resource.k8s.io/v1). `node` is also the name of its pool. Raises ClaimError."""
    metadata = raw["metadata"]
    claim = f"{metadata['namespace']}/{metadata['name']}"
    if metadata["uid"] != expected_uid:
        raise ClaimError(
            claim,
            f"it was replaced: its UID is {metadata['uid']}, asked for was {expected_uid}",
            reason="ClaimReplaced",
        )
    status = raw.get("status") or {}
    allocation = status.get("allocation")
    if allocation is None:
        raise ClaimError(
            claim, "it has no status.allocation; the scheduler must allocate it first", reason="NotAllocated"
        )
    devices = allocation.get("devices") or {}
    results = [result for result in devices.get("results") or () if result["driver"] == driver]
    if not results:
        raise ClaimError(claim, f"status.allocation.devices.results has no device of {driver}", reason="NotAllocated")
    for result in results:
        _check_pool(claim, result, node)
    configs = _parse_configs(claim, devices.get("config") or (), driver, parse_config)
    return ClaimRequest(
        driver=driver,
        uid=expected_uid,
        namespace=metadata["namespace"],
        name=metadata["name"],
        devices=tuple(_parse_result(result) for result in results),
        configs=tuple(_select_config(claim, result, configs) for result in results),
        allocated=parse_moment(raw),
    )


def _check_pool(claim: str, result: Mapping[str, Any], node: str) -> None:
    """Device names are the same on every node, and of all who let a pod start only the scheduler looks at the node."""
    if result["pool"] != node:
        raise ClaimError(
            claim,
            f"request {result['request']}: device {result['device']} was allocated from pool {result['pool']}, and the "
            f"pod is on node {node}; leave the choice of the node to the scheduler (no spec.nodeName in the pod)",
            reason="WrongNode",
        )


def _parse_result(result: Mapping[str, Any]) -> AllocatedDevice:
    return AllocatedDevice(
        request=result["request"].partition("/")[0],
        pool=result["pool"],
        device=result["device"],
        admin_access=bool(result.get("adminAccess")),
        share_id=result.get("shareID"),
    )


@dataclass(frozen=True, slots=True)
class _ScopedConfig:
    requests: frozenset[str]
    config: "DeviceConfig"


def _parse_configs(
    claim: str, entries: Sequence[Mapping[str, Any]], driver: str, parse_config: ParseConfig
) -> list[_ScopedConfig]:
    """Configs of our driver, strongest first: the claim's before the class's, later before earlier."""
    parsed: list[tuple[bool, int, _ScopedConfig]] = []
    for index, entry in enumerate(entries):
        where = f"status.allocation.devices.config[{index}]"
        opaque = entry.get("opaque")
        if opaque is None:
            raise ClaimError(
                claim, f"{where}: only opaque parameters are supported by this driver", reason="InvalidConfig"
            )
        if opaque.get("driver") != driver:
            continue
        try:
            config = parse_config(opaque.get("parameters") or {})
        except InvalidObject as error:
            raise ClaimError(claim, f"{where}.opaque.parameters: {error}", reason="InvalidConfig") from error
        scoped = _ScopedConfig(frozenset(entry.get("requests") or ()), config)
        parsed.append((entry.get("source") == "FromClaim", index, scoped))
    parsed.sort(key=lambda item: item[:2], reverse=True)
    return [scoped for _, _, scoped in parsed]


def _select_config(claim: str, result: Mapping[str, Any], configs: Sequence[_ScopedConfig]) -> "DeviceConfig | None":
    if not configs:
        return None
    request, device = result["request"], result["device"]
    for scoped in configs:
        fits = scoped.config.applies_to(device)
        if not scoped.requests and fits:
            return scoped.config
        if scoped.requests & {request, request.partition("/")[0]}:
            if not fits:
                raise ClaimError(
                    claim,
                    f"cannot apply {scoped.config.kind} to request {request}: its device {device} is of another kind",
                    reason="InvalidConfig",
                )
            return scoped.config
    return None
