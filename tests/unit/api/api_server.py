"""A small API server that says what real ones say, and whatever else a test wants."""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import yaml
from aiohttp import web

from api.client import Client

PODS = "/api/v1/pods"
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def status(code: int, reason: str = "", **details: Any) -> web.Response:
    body = {"kind": "Status", "code": code, "reason": reason, "message": f"it is {reason}", "details": details}
    return web.json_response(body, status=code)


def pod(name: str, version: int) -> dict[str, Any]:
    return {"metadata": {"name": name, "resourceVersion": str(version)}}


def pods(version: int, *items: dict[str, Any], token: str = "") -> web.Response:
    metadata = {"resourceVersion": str(version), "continue": token}
    return web.json_response({"apiVersion": "v1", "kind": "PodList", "metadata": metadata, "items": list(items)})


async def stream(request: web.Request, *events: tuple[str, dict[str, Any]], hold_s: float = 0.0) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    for kind, obj in events:
        await response.write(json.dumps({"type": kind, "object": obj}).encode() + b"\n")
    await asyncio.sleep(hold_s)
    return response


@asynccontextmanager
async def serving(handler: Handler, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """`handler` for every path; the port on 127.0.0.1."""
    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", handler)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls).start()
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


def talk(
    tmp_path: Path, handler: Handler, scenario: Callable[[Client], Awaitable[None]], token: str = "secret"
) -> None:
    """Serve `handler` for every path while `scenario` runs."""

    async def run() -> None:
        async with serving(handler) as port:
            file = kubeconfig(tmp_path, f"http://127.0.0.1:{port}", {"token": token})
            async with await Client.connect(str(file)) as client:
                await scenario(client)

    asyncio.run(run())


def kubeconfig(directory: Path, address: str, user: dict[str, Any], **cluster: str) -> Path:
    file = directory / "kubeconfig"
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": {"server": address, **cluster}}],
        "users": [{"name": "u", "user": user}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }
    file.write_text(yaml.safe_dump(config))
    return file


async def take(client: Client, count: int, **selectors: str) -> list[tuple[str, Any]]:
    """The first events of a watch on pods, objects by name."""
    found: list[tuple[str, Any]] = []
    async for kind, obj in client.list_watch(PODS, **selectors):
        found.append((kind, [o["metadata"]["name"] for o in obj] if kind == "SYNC" else obj["metadata"]["name"]))
        if len(found) == count:
            return found
    raise AssertionError("a watch never ends by itself")
