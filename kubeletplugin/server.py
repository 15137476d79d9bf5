"""The kubelet's side: registration, prepare and unprepare in both versions, device health.

Sources: k8s.io/kubelet pluginregistration v1, dra v1 and v1beta1, dra-health v1 and v1alpha1.
"""

import asyncio
import contextlib
import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Final, Protocol

import grpc
import watchfiles

from kubeletplugin.proto import (
    dra_v1_pb2,
    dra_v1beta1_pb2,
    grpc_health_pb2,
    health_v1_pb2,
    health_v1alpha1_pb2,
    pluginregistration_pb2,
)
from kubeletplugin.sockets import (
    SocketServer,
    choose_socket_path,
    dra_socket_names,
    registration_socket_names,
    remove_stale_dra_sockets,
    remove_stale_registrations,
)

log = logging.getLogger(__name__)

HEALTH_RESEND_S: Final = 10.0  # the kubelet holds a device for unknown when 30 s pass without a report
STOP_GRACE_S: Final = 5.0
_WATCH_STEP_MS: Final = 500  # the watcher wakes up as often as this, so not the default of 50
_WATCH_TICK_MS: Final = 5000
_MESSAGE_LIMIT: Final = 1024  # DeviceHealth.message

# The kubelet takes the first of the list that it knows.
SUPPORTED_VERSIONS: Final = (
    "v1.DRAPlugin",
    "v1beta1.DRAPlugin",
    "v1.DRAResourceHealth",
    "v1alpha1.DRAResourceHealth",
)


@dataclass(frozen=True, slots=True)
class ClaimRef:
    """A claim as the kubelet names it."""

    namespace: str
    name: str
    uid: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class ReadyDevice:
    """One device of a prepared claim, for the kubelet. `requests` are main request names."""

    requests: tuple[str, ...]
    pool: str
    device: str
    cdi_ids: tuple[str, ...]
    share_id: str | None = None


@dataclass(frozen=True, slots=True)
class DeviceHealth:
    """Health of one published device. `status`: 0 unknown, 1 healthy, 2 unhealthy."""

    pool: str
    device: str
    status: int
    message: str = ""


class Claims(Protocol):
    """What the kubelet may ask of one driver. Neither method raises: a failure is the claim's own, as a sentence."""

    async def prepare(self, ref: ClaimRef) -> tuple[ReadyDevice, ...] | str: ...

    async def unprepare(self, ref: ClaimRef) -> str | None: ...


class HealthBoard:
    """The driver's latest device health, and a bell for those who stream it."""

    def __init__(self) -> None:
        self._devices: tuple[DeviceHealth, ...] = ()
        self._changed = asyncio.Event()

    def show(self, devices: Sequence[DeviceHealth]) -> None:
        if tuple(devices) != self._devices:
            self._devices = tuple(devices)
            self._changed.set()
            self._changed = asyncio.Event()

    async def stream(self) -> AsyncIterator[tuple[DeviceHealth, ...]]:
        """The complete list: at once, at every change, and every ten seconds."""
        while True:
            changed = self._changed
            yield self._devices
            try:
                async with asyncio.timeout(HEALTH_RESEND_S):
                    await changed.wait()
            except TimeoutError:
                continue


class KubeletServer:
    """One driver's sockets: DRA and health on one, registration on the other."""

    def __init__(
        self, driver: str, claims: Claims, health: HealthBoard, registry: Path, data_directory: Path, pod_uid: str
    ) -> None:
        self._driver = driver
        self._claims = claims
        self._health = health
        handlers = (
            *(self._dra_handler(version, module) for version, module in _DRA),
            *(self._health_handler(version, module) for version, module in _HEALTH),
            grpc_health_handler(),
        )
        self._dra = SocketServer(choose_socket_path(data_directory, dra_socket_names(pod_uid)), handlers)
        names = registration_socket_names(driver, pod_uid, secrets.token_hex(3))
        registration = (self._registration_handler(), grpc_health_handler())
        self._registration = SocketServer(choose_socket_path(registry, names), registration)
        self._registered = asyncio.Event()

    @property
    def registered(self) -> bool:
        return self._registered.is_set()

    async def wait_until_registered(self, patience_s: float) -> None:
        """Return once the kubelet has taken us in, at the latest after `patience_s`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                await self._registered.wait()

    async def start(self) -> None:
        """Serve, and only then let the kubelet find us. Raises OSError."""
        stale = remove_stale_registrations(self._registration.path.parent, self._driver)
        stale += remove_stale_dra_sockets(self._dra.path.parent)
        if stale:
            log.warning("stale_sockets_removed", extra={"driver": self._driver, "sockets": ", ".join(stale)})
        await self._dra.start()
        await self._registration.start()
        log.info("serving", extra={"driver": self._driver, "socket": str(self._dra.path)})

    async def stop(self) -> None:
        """Registration first, so that the kubelet asks another instance, if there is one."""
        await self._registration.stop(0)
        await self._dra.stop(STOP_GRACE_S)

    async def watch(self) -> None:
        """Put our sockets back whenever somebody removes them, such as a kubelet whose directories are made anew."""
        registry = self._registration.path.parent
        while True:
            registry.mkdir(parents=True, exist_ok=True)
            watched = registry.stat().st_ino
            await self._restore()
            # Looks at least every few seconds, for a removed directory takes its watch with it.
            async for _ in watchfiles.awatch(
                registry, recursive=False, step=_WATCH_STEP_MS, rust_timeout=_WATCH_TICK_MS, yield_on_timeout=True
            ):
                await self._restore()
                if not registry.is_dir() or registry.stat().st_ino != watched:
                    break

    async def _restore(self) -> None:
        for server in (self._dra, self._registration):
            if not server.is_present():
                log.warning("socket_removed", extra={"driver": self._driver, "socket": str(server.path)})
                await server.restart()

    # Registration

    def _registration_handler(self) -> "grpc.GenericRpcHandler[Any, Any]":
        messages = pluginregistration_pb2
        info = messages.PluginInfo(
            type="DRAPlugin",
            name=self._driver,
            endpoint=str(self._dra.path),
            supported_versions=SUPPORTED_VERSIONS,
        )

        async def get_info(request: Any, context: Any) -> Any:
            return info

        async def notify(request: Any, context: Any) -> Any:
            if request.plugin_registered:
                log.info("registered", extra={"driver": self._driver})
                self._registered.set()
            else:
                log.error("registration_refused", extra={"driver": self._driver, "error": request.error})
                self._registered.clear()
            return messages.RegistrationStatusResponse()

        return grpc.method_handlers_generic_handler(
            "pluginregistration.Registration",
            {
                "GetInfo": _unary(get_info, messages.InfoRequest),
                "NotifyRegistrationStatus": _unary(notify, messages.RegistrationStatus),
            },
        )

    # Prepare and unprepare

    def _dra_handler(self, version: str, messages: ModuleType) -> "grpc.GenericRpcHandler[Any, Any]":
        shares = version == "v1"

        async def prepare(request: Any, context: Any) -> Any:
            response = messages.NodePrepareResourcesResponse()
            results = await _each(request.claims, self._claims.prepare)
            for claim, result in zip(request.claims, results, strict=True):
                entry = response.claims[claim.uid]
                if isinstance(result, str):
                    entry.error = result
                    continue
                for device in result:
                    message = entry.devices.add(
                        request_names=device.requests,
                        pool_name=device.pool,
                        device_name=device.device,
                        cdi_device_ids=device.cdi_ids,
                    )
                    if shares and device.share_id is not None:
                        message.share_id = device.share_id
            return response

        async def unprepare(request: Any, context: Any) -> Any:
            response = messages.NodeUnprepareResourcesResponse()
            results = await _each(request.claims, self._claims.unprepare)
            for claim, error in zip(request.claims, results, strict=True):
                response.claims[claim.uid].error = error or ""
            return response

        return grpc.method_handlers_generic_handler(
            f"k8s.io.kubelet.pkg.apis.dra.{version}.DRAPlugin",
            {
                "NodePrepareResources": _unary(prepare, messages.NodePrepareResourcesRequest),
                "NodeUnprepareResources": _unary(unprepare, messages.NodeUnprepareResourcesRequest),
            },
        )

    # Health

    def _health_handler(self, version: str, messages: ModuleType) -> "grpc.GenericRpcHandler[Any, Any]":
        async def watch(request: Any, context: Any) -> AsyncIterator[Any]:
            async for devices in self._health.stream():
                response = messages.NodeWatchResourcesResponse()
                for device in devices:
                    response.devices.add(
                        device={"pool_name": device.pool, "device_name": device.device},
                        health=device.status,
                        message=device.message[:_MESSAGE_LIMIT],
                    )
                yield response

        handler = grpc.unary_stream_rpc_method_handler(
            watch,
            request_deserializer=messages.NodeWatchResourcesRequest.FromString,
            response_serializer=_serialize,
        )
        return grpc.method_handlers_generic_handler(f"{version}.DRAResourceHealth", {"NodeWatchResources": handler})


_DRA: Final = (("v1", dra_v1_pb2), ("v1beta1", dra_v1beta1_pb2))
_HEALTH: Final = (("v1", health_v1_pb2), ("v1alpha1", health_v1alpha1_pb2))


def grpc_health_handler() -> "grpc.GenericRpcHandler[Any, Any]":
    """The standard health service (grpc.health.v1), services "" and "liveness": whoever answers is alive."""
    messages = grpc_health_pb2
    statuses = messages.HealthCheckResponse

    async def check(request: Any, context: Any) -> Any:
        if request.service not in ("", "liveness"):
            await context.abort(grpc.StatusCode.NOT_FOUND, f"unknown service {request.service}")
        return statuses(status=statuses.SERVING)

    handlers = {"Check": _unary(check, messages.HealthCheckRequest)}
    return grpc.method_handlers_generic_handler("grpc.health.v1.Health", handlers)


def _serialize(message: Any) -> bytes:
    data: bytes = message.SerializeToString()
    return data


def _unary(method: Callable[[Any, Any], Awaitable[Any]], request: Any) -> Any:
    return grpc.unary_unary_rpc_method_handler(
        method, request_deserializer=request.FromString, response_serializer=_serialize
    )


async def _each(claims: Sequence[Any], method: Callable[[ClaimRef], Awaitable[Any]]) -> list[Any]:
    refs = [ClaimRef(claim.namespace, claim.name, claim.uid) for claim in claims]
    if len(refs) == 1:
        return [await method(refs[0])]
    return list(await asyncio.gather(*(method(ref) for ref in refs)))
