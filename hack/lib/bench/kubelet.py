"""Plays the kubelet towards a node plugin: registration, prepare and unprepare over its unix sockets."""

import asyncio
import time
from pathlib import Path
from typing import Any, Self

import grpc.aio

from bench.objects import Claim
from kubeletplugin.proto import dra_v1_pb2, health_v1_pb2, pluginregistration_pb2


class PrepareFailed(Exception):
    """The plugin answered with an error for a claim."""


class Kubelet:
    """One kubelet that knows one driver."""

    def __init__(self, endpoint: str) -> None:
        self._channel = grpc.aio.insecure_channel(f"unix:{endpoint}")
        service = "/k8s.io.kubelet.pkg.apis.dra.v1.DRAPlugin"
        self._prepare = self._method(f"{service}/NodePrepareResources", dra_v1_pb2.NodePrepareResourcesResponse)
        self._unprepare = self._method(f"{service}/NodeUnprepareResources", dra_v1_pb2.NodeUnprepareResourcesResponse)

    def _method(self, path: str, response: Any) -> Any:
        return self._channel.unary_unary(
            path, request_serializer=lambda m: m.SerializeToString(), response_deserializer=response.FromString
        )

    @classmethod
    async def register(cls, registration_socket: Path) -> Self:
        """Ask who is there, acknowledge, and connect to the endpoint that it names."""
        messages = pluginregistration_pb2
        async with grpc.aio.insecure_channel(f"unix:{registration_socket}") as channel:
            get_info = channel.unary_unary(
                "/pluginregistration.Registration/GetInfo",
                request_serializer=lambda m: m.SerializeToString(),
                response_deserializer=messages.PluginInfo.FromString,
            )
            notify = channel.unary_unary(
                "/pluginregistration.Registration/NotifyRegistrationStatus",
                request_serializer=lambda m: m.SerializeToString(),
                response_deserializer=messages.RegistrationStatusResponse.FromString,
            )
            info = await _insist(get_info, messages.InfoRequest())
            await notify(messages.RegistrationStatus(plugin_registered=True), timeout=5.0)
        return cls(info.endpoint)

    async def close(self) -> None:
        await self._channel.close(None)

    async def prepare(self, *claims: Claim) -> dict[str, list[Any]]:
        """Devices by claim UID. Raises PrepareFailed."""
        request = dra_v1_pb2.NodePrepareResourcesRequest(claims=[_claim(claim) for claim in claims])
        response = await self._prepare(request, timeout=45.0)
        return {uid: list(entry.devices) for uid, entry in _checked(response, claims).items()}

    async def unprepare(self, *claims: Claim) -> None:
        request = dra_v1_pb2.NodeUnprepareResourcesRequest(claims=[_claim(claim) for claim in claims])
        _checked(await self._unprepare(request, timeout=45.0), claims)

    async def empty_call(self) -> None:
        await self._prepare(dra_v1_pb2.NodePrepareResourcesRequest(), timeout=45.0)

    def watch_health(self) -> Any:
        """The stream of complete health reports."""
        watch = self._channel.unary_stream(
            "/v1.DRAResourceHealth/NodeWatchResources",
            request_serializer=lambda m: m.SerializeToString(),
            response_deserializer=health_v1_pb2.NodeWatchResourcesResponse.FromString,
        )
        return watch(health_v1_pb2.NodeWatchResourcesRequest())


async def _insist(get_info: Any, request: Any) -> Any:
    """A kubelet waits a second for the answer, and asks again later when there is none; here for 20 s."""
    deadline = time.monotonic() + 20.0
    while True:
        try:
            return await get_info(request, timeout=1.0)
        except grpc.aio.AioRpcError:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.2)


def _claim(claim: Claim) -> Any:
    return dra_v1_pb2.Claim(namespace=claim.namespace, name=claim.name, uid=claim.uid)


def _checked(response: Any, claims: tuple[Claim, ...]) -> Any:
    for claim in claims:
        if claim.uid not in response.claims:
            raise PrepareFailed(f"claim {claim.namespace}/{claim.name} is missing in the response")
        if response.claims[claim.uid].error:
            raise PrepareFailed(response.claims[claim.uid].error)
    return response.claims
