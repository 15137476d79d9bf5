"""The kubelet's protocols over real sockets."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import grpc.aio
import pytest

from kubeletplugin.proto import (
    dra_v1_pb2,
    dra_v1beta1_pb2,
    grpc_health_pb2,
    health_v1_pb2,
    health_v1alpha1_pb2,
    pluginregistration_pb2,
)
from kubeletplugin.server import ClaimRef, DeviceHealth, HealthBoard, KubeletServer, ReadyDevice


class Shelf:
    """Claims named `bad` fail; others get one device."""

    async def prepare(self, ref: ClaimRef) -> tuple[ReadyDevice, ...] | str:
        if ref.name == "bad":
            return f"claim {ref} is bad"
        return (ReadyDevice(("gpu",), "n1", "gpu-0", (f"vendor/claim={ref.uid}",), "share-1"),)

    async def unprepare(self, ref: ClaimRef) -> str | None:
        return f"claim {ref} is bad" if ref.name == "bad" else None


@asynccontextmanager
async def serving(directory: Path) -> AsyncIterator[tuple[KubeletServer, HealthBoard]]:
    board = HealthBoard()
    server = KubeletServer("gpu.nvidia.com", Shelf(), board, directory / "reg", directory / "data", "")
    await server.start()
    try:
        yield server, board
    finally:
        await server.stop()


async def call(socket: Path, method: str, request: Any, response: Any) -> Any:
    async with grpc.aio.insecure_channel(f"unix:{socket}") as channel:
        remote = channel.unary_unary(
            method, request_serializer=lambda m: m.SerializeToString(), response_deserializer=response.FromString
        )
        return await remote(request, timeout=10)


def test_registration_names_the_driver_its_socket_and_the_newest_version_first(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(tmp_path) as (server, _):
            messages, (socket,) = pluginregistration_pb2, (tmp_path / "reg").iterdir()
            service = "/pluginregistration.Registration"
            info = await call(socket, f"{service}/GetInfo", messages.InfoRequest(), messages.PluginInfo)
            assert (info.type, info.name) == ("DRAPlugin", "gpu.nvidia.com")
            assert info.endpoint == str(tmp_path / "data" / "dra.sock")
            assert list(info.supported_versions)[:2] == ["v1.DRAPlugin", "v1beta1.DRAPlugin"]
            for registered in (True, False):
                status = messages.RegistrationStatus(plugin_registered=registered, error="no")
                answer = messages.RegistrationStatusResponse
                await call(socket, f"{service}/NotifyRegistrationStatus", status, answer)
                assert server.registered is registered

    asyncio.run(scenario())


@pytest.mark.parametrize(("version", "messages"), [("v1", dra_v1_pb2), ("v1beta1", dra_v1beta1_pb2)])
def test_every_claim_is_answered_for_itself_in_both_versions(
    tmp_path: Path, version: str, messages: ModuleType
) -> None:
    async def scenario() -> None:
        async with serving(tmp_path):
            socket, service = tmp_path / "data" / "dra.sock", f"/k8s.io.kubelet.pkg.apis.dra.{version}.DRAPlugin"
            claims = [messages.Claim(namespace="x", uid=f"u{n}", name=name) for n, name in enumerate(("good", "bad"))]
            request = messages.NodePrepareResourcesRequest(claims=claims)
            response = messages.NodePrepareResourcesResponse
            answer = (await call(socket, f"{service}/NodePrepareResources", request, response)).claims
            assert set(answer) == {"u0", "u1"}
            (device,) = answer["u0"].devices
            assert (list(device.request_names), device.pool_name, device.device_name) == (["gpu"], "n1", "gpu-0")
            assert list(device.cdi_device_ids) == ["vendor/claim=u0"]
            assert getattr(device, "share_id", "absent") == ("share-1" if version == "v1" else "absent")
            assert answer["u1"].error == "claim x/bad is bad"
            gone = messages.NodeUnprepareResourcesRequest(claims=claims)
            response = messages.NodeUnprepareResourcesResponse
            freed = (await call(socket, f"{service}/NodeUnprepareResources", gone, response)).claims
            assert {uid: entry.error for uid, entry in freed.items()} == {"u0": "", "u1": "claim x/bad is bad"}

    asyncio.run(scenario())


@pytest.mark.parametrize(("version", "messages"), [("v1", health_v1_pb2), ("v1alpha1", health_v1alpha1_pb2)])
def test_health_is_streamed_whole_and_again_at_every_change(tmp_path: Path, version: str, messages: ModuleType) -> None:
    async def scenario() -> None:
        async with serving(tmp_path) as (_, board):
            board.show([DeviceHealth("n1", "gpu-0", 1), DeviceHealth("n1", "gpu-1", 1)])
            async with grpc.aio.insecure_channel(f"unix:{tmp_path}/data/dra.sock") as channel:
                watch = channel.unary_stream(
                    f"/{version}.DRAResourceHealth/NodeWatchResources",
                    request_serializer=lambda m: m.SerializeToString(),
                    response_deserializer=messages.NodeWatchResourcesResponse.FromString,
                )
                stream = watch(messages.NodeWatchResourcesRequest())
                first = await stream.read()
                board.show([DeviceHealth("n1", "gpu-0", 2, "x" * 2000), DeviceHealth("n1", "gpu-1", 1)])
                second = await stream.read()
                stream.cancel()
            assert [(d.device.device_name, d.health) for d in first.devices] == [("gpu-0", 1), ("gpu-1", 1)]
            assert [(d.device.device_name, d.health) for d in second.devices] == [("gpu-0", 2), ("gpu-1", 1)]
            assert len(second.devices[0].message) == 1024

    asyncio.run(scenario())


def test_health_that_does_not_change_is_told_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or the kubelet would hold every device for unknown after 30 s."""
    monkeypatch.setattr("kubeletplugin.server.HEALTH_RESEND_S", 0.01)

    async def scenario() -> None:
        board = HealthBoard()
        board.show([DeviceHealth("n1", "gpu-0", 1)])
        stream = board.stream()
        async with asyncio.timeout(20):
            assert [await anext(stream) for _ in range(3)] == [(DeviceHealth("n1", "gpu-0", 1),)] * 3

    asyncio.run(scenario())


def test_the_grpc_health_service_knows_two_names(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(tmp_path):
            messages, socket = grpc_health_pb2, tmp_path / "data" / "dra.sock"
            for name in ("", "liveness"):
                request = messages.HealthCheckRequest(service=name)
                answer = await call(socket, "/grpc.health.v1.Health/Check", request, messages.HealthCheckResponse)
                assert answer.status == messages.HealthCheckResponse.SERVING
            with pytest.raises(grpc.aio.AioRpcError, match="unknown service other"):
                request = messages.HealthCheckRequest(service="other")
                await call(socket, "/grpc.health.v1.Health/Check", request, messages.HealthCheckResponse)

    asyncio.run(scenario())


def test_sockets_are_gone_after_stop(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(tmp_path):
            assert [file.suffix for file in (tmp_path / "reg").iterdir()] == [".sock"]
        assert [file.name for folder in ("reg", "data") for file in (tmp_path / folder).iterdir()] == []

    asyncio.run(scenario())
