"""Tokens and certificates of the API client: what is renewed is used, what cannot be read is told."""

import asyncio
import json
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from cluster.pki import Authority, create_authority, issue

from api import client as client_module
from api import connection as connection_module
from api.client import Client, Unauthorized, Unavailable
from tests.unit.api.api_server import PODS, Handler, kubeconfig, pod, pods, serving, status, stream


@dataclass(frozen=True)
class Files:
    """`authority`: who signs for server and clients."""

    authority: Authority
    server: ssl.SSLContext

    def issue(self, user: str) -> tuple[Path, Path]:
        issue(self.authority, user, user)
        return self.authority.folder / f"{user}.crt", self.authority.folder / f"{user}.key"


@pytest.fixture
def files(tmp_path: Path) -> Files:
    authority = create_authority(tmp_path / "pki")
    issue(authority, "server", "server", names=("127.0.0.1",))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=authority.certificate_path)
    context.load_cert_chain(authority.folder / "server.crt", authority.folder / "server.key")
    context.verify_mode = ssl.CERT_OPTIONAL
    return Files(authority, context)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "back_off_s", lambda **_: iter(lambda: 0.01, None))
    monkeypatch.setattr(connection_module, "_RELOAD_INTERVAL_S", -1.0)


WriteToken = Callable[[bytes | None], None]


@pytest.fixture
def write_token(tmp_path: Path, files: Files, monkeypatch: pytest.MonkeyPatch) -> WriteToken:
    """Replaces, or removes, the token of the service account of this pod: for the test is in one."""
    connection_module._enter_packages()
    from kubernetes.aio.config import incluster_config

    file = tmp_path / "token"
    file.write_text("old")
    monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(file))
    monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(files.authority.certificate_path))
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")

    def write(content: bytes | None) -> None:
        file.unlink(missing_ok=True)
        if content is not None:
            file.write_bytes(content)

    return write


def talk_in_a_pod(
    files: Files, monkeypatch: pytest.MonkeyPatch, handler: Handler, scenario: Callable[[Client], Awaitable[None]]
) -> None:
    async def run() -> None:
        async with serving(handler, files.server) as port:
            monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(port))
            async with await Client.connect(None) as client:
                await scenario(client)

    asyncio.run(run())


async def say_token(request: web.Request) -> web.Response:
    return web.json_response({"token": request.headers["Authorization"]})


def test_the_token_of_a_pod_is_read_again_when_it_is_refused(
    files: Files, write_token: WriteToken, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def handler(request: web.Request) -> web.Response:
        if request.headers["Authorization"] == "bearer old":
            return status(401, "Unauthorized")
        return await say_token(request)

    async def scenario(client: Client) -> None:
        write_token(b"new")
        with pytest.raises(Unauthorized):
            await client.get(PODS)
        assert await client.get(PODS) == {"token": "bearer new"}

    talk_in_a_pod(files, monkeypatch, handler, scenario)


def test_the_token_of_a_pod_is_read_again_from_time_to_time_whatever_the_clock_on_the_wall_says(
    files: Files, write_token: WriteToken, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(client: Client) -> None:
        write_token(b"new")
        assert await client.get(PODS) == {"token": "bearer old"}
        monkeypatch.setattr(connection_module, "_TOKEN_AGE_S", -1.0)
        assert await client.get(PODS) == {"token": "bearer new"}

    talk_in_a_pod(files, monkeypatch, say_token, scenario)


@pytest.mark.parametrize("content", [b"", b"\xff", None], ids=["empty", "no text", "missing"])
def test_a_token_that_cannot_be_read_makes_the_api_unavailable_until_it_can(
    files: Files, write_token: WriteToken, monkeypatch: pytest.MonkeyPatch, content: bytes | None
) -> None:
    monkeypatch.setattr(connection_module, "_TOKEN_AGE_S", -1.0)

    async def handler(request: web.Request) -> web.StreamResponse:
        if "watch" in request.query:
            return await stream(request, ("ADDED", pod("b", 2)), hold_s=1)
        return pods(1, pod("a", 1))

    async def scenario(client: Client) -> None:
        events = client.list_watch(PODS)
        assert (await anext(events))[0] == "SYNC"
        write_token(content)
        for call in (client.get(PODS), client.get(PODS, limit="1"), client.list(PODS)):
            with pytest.raises(Unavailable, match=f"GET {PODS}: service account of this pod: "):
                await call
        with pytest.raises(Unavailable, match=f"POST {PODS}: service account of this pod: "):
            await client.create(PODS, {})
        event = asyncio.ensure_future(anext(events))
        await asyncio.sleep(0.05)
        write_token(b"new")
        assert (await event)[0] == "ADDED"

    talk_in_a_pod(files, monkeypatch, handler, scenario)


def as_files(files: Files, tmp_path: Path, user: str) -> dict[str, Any]:
    """A kubeconfig's user with certificate and key in files, which are replaced."""
    certificate, key = files.issue(user)
    certificate.replace(tmp_path / "client.crt")
    key.replace(tmp_path / "client.key")
    return {"client-certificate": str(tmp_path / "client.crt"), "client-key": str(tmp_path / "client.key")}


def from_a_program(files: Files, tmp_path: Path, user: str) -> dict[str, Any]:
    """... and with those that a program prints."""
    certificate, key = files.issue(user)
    api = "client.authentication.k8s.io/v1"
    credential = {"clientCertificateData": certificate.read_text(), "clientKeyData": key.read_text()}
    said = json.dumps({"apiVersion": api, "kind": "ExecCredential", "status": credential})
    (tmp_path / "credential.json").write_text(said)
    return {"exec": {"apiVersion": api, "command": "cat", "args": [str(tmp_path / "credential.json")]}}


@pytest.mark.parametrize("provide", [as_files, from_a_program])
def test_a_renewed_client_certificate_is_used_and_a_watch_under_the_old_one_goes_on(
    files: Files, tmp_path: Path, provide: Callable[[Files, Path, str], dict[str, Any]]
) -> None:
    expired: set[str] = set()
    watched, renewed = asyncio.Event(), asyncio.Event()

    async def handler(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        ((_, user),) = [part[0] for part in request.transport.get_extra_info("peercert")["subject"]]
        if user in expired:
            return status(401, "Unauthorized")
        if "watch" in request.query:
            watched.set()
            await renewed.wait()
            return await stream(request, ("ADDED", pod(f"watched by {user}", 2)), hold_s=1)
        return pods(1, pod(user, 1)) if request.query else web.json_response({"user": user})

    async def scenario(client: Client) -> None:
        assert await client.get(PODS) == {"user": "old"}
        events = client.list_watch(PODS)
        await anext(events)
        event = asyncio.ensure_future(anext(events))
        await watched.wait()
        expired.add("old")
        provide(files, tmp_path, "new")
        with pytest.raises(Unauthorized):
            await client.get(PODS)
        assert await client.get(PODS) == {"user": "new"}
        assert [each["metadata"]["name"] for each in await client.list(PODS)] == ["new"]
        renewed.set()
        assert (await event)[1]["metadata"]["name"] == "watched by old"

    async def run() -> None:
        async with serving(handler, files.server) as port:
            user = provide(files, tmp_path, "old")
            authority = {"certificate-authority": str(files.authority.certificate_path)}
            file = kubeconfig(tmp_path, f"https://127.0.0.1:{port}", user, **authority)
            async with await Client.connect(str(file)) as client:
                await scenario(client)

    asyncio.run(run())


def test_credentials_that_cannot_be_renewed_make_the_api_unavailable(files: Files, tmp_path: Path) -> None:
    async def handler(request: web.Request) -> web.Response:
        return status(401, "Unauthorized")

    async def run() -> None:
        async with serving(handler) as port:
            file = kubeconfig(tmp_path, f"http://127.0.0.1:{port}", {"token": "old"})
            async with await Client.connect(str(file)) as client:
                file.write_text("users: [half of a file")
                for query in ({}, {"limit": "1"}):
                    with pytest.raises(Unavailable, match=f"GET {PODS}: kubeconfig {file}: "):
                        await client.get(PODS, **query)

    asyncio.run(run())
