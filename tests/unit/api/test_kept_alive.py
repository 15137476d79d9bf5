"""GETs of the API client: whatever a server or a network does, they are what the ordinary client's are."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from api import client as client_module
from api import connection as connection_module
from api import kept_alive
from api.client import Client, Json, NotFound, TooManyRequests, Unauthorized, Unavailable

PATH = "/api/v1/namespaces/x/pods/y"


class Server:
    """Answers by hand, so that it can do what no well-behaved server does. `connections`: how many there were."""

    def __init__(self, answer: Callable[[dict[str, str], asyncio.StreamWriter], Awaitable[None]]) -> None:
        self._answer = answer
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()
        self.port = 0
        self.connections = 0
        self.requests: list[dict[str, str]] = []

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        for writer in self._open:
            writer.transport.abort()
        await asyncio.sleep(0.01)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._open.add(writer)
        try:
            while not writer.is_closing():
                first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
                headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines if line)}
                request = {"target": first.split()[1], **headers}
                self.requests.append(request)
                await self._answer(request, writer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the client has gone, as clients do
        finally:
            self._open.discard(writer)
            writer.close()


def response(body: Json, status: str = "200 OK", *headers: str) -> bytes:
    data = json.dumps(body).encode()
    lines = [f"HTTP/1.1 {status}", "Content-Type: application/json", f"Content-Length: {len(data)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + data


def talk(
    tmp_path: Path,
    answer: Callable[[dict[str, str], asyncio.StreamWriter], Awaitable[None]],
    scenario: Callable[[Client, Server], Awaitable[None]],
    prefix: str = "",
    **user: Any,
) -> None:
    async def run() -> None:
        server = Server(answer)
        await server.start()
        file = tmp_path / "kubeconfig"
        config = {
            "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{server.port}{prefix}"}}],
            "users": [{"name": "u", "user": user or {"token": "secret"}}],
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
            "current-context": "x",
        }
        file.write_text(yaml.safe_dump(config))
        async with await Client.connect(str(file)) as client:
            await scenario(client, server)
        await server.stop()

    asyncio.run(run())


async def say_where(request: dict[str, str], writer: asyncio.StreamWriter) -> None:
    writer.write(response({"target": request["target"]}))


def test_gets_one_after_another_share_one_connection(tmp_path: Path) -> None:
    async def scenario(client: Client, server: Server) -> None:
        for number in range(5):
            assert await client.get(f"/api/v1/{number}") == {"target": f"/api/v1/{number}"}
        assert server.connections == 1
        assert {request["authorization"] for request in server.requests} == {"Bearer secret"}

    talk(tmp_path, say_where, scenario)


def test_a_server_below_a_path_is_asked_there(tmp_path: Path) -> None:
    async def scenario(client: Client, server: Server) -> None:
        assert await client.get("/api/v1/x") == {"target": "/clusters/one/api/v1/x"}

    talk(tmp_path, say_where, scenario, "/clusters/one")


def test_many_at_once_each_get_their_own_answer(tmp_path: Path) -> None:
    async def answer(request: dict[str, str], writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.02)
        await say_where(request, writer)

    async def scenario(client: Client, server: Server) -> None:
        for _ in range(2):
            paths = [f"/api/v1/{number}" for number in range(3 * kept_alive.MAX_CONNECTIONS)]
            found = await asyncio.gather(*(client.get(path) for path in paths))
            assert [each["target"] for each in found] == paths

    talk(tmp_path, answer, scenario)


def test_a_long_answer_in_chunks_is_read_whole(tmp_path: Path) -> None:
    data = json.dumps({"x": "y" * 300_000}).encode()

    async def answer(request: dict[str, str], writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for start in range(0, len(data), 7000):
            chunk = data[start : start + 7000]
            writer.write(b"%x\r\n%b\r\n" % (len(chunk), chunk))
            await asyncio.sleep(0)
        writer.write(b"0\r\n\r\n")

    async def scenario(client: Client, server: Server) -> None:
        for _ in range(2):
            assert len((await client.get(PATH))["x"]) == 300_000
        assert server.connections == 1

    talk(tmp_path, answer, scenario)


def test_a_server_that_comes_back_is_asked_again(tmp_path: Path) -> None:
    async def scenario(client: Client, server: Server) -> None:
        await client.get(PATH)
        await server.stop()
        with pytest.raises(Unavailable):
            await client.get(PATH)
        await server.start()
        assert await client.get(PATH) == {"target": PATH}

    talk(tmp_path, say_where, scenario)


def cut_before(writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()


def cut_within(writer: asyncio.StreamWriter) -> None:
    writer.write(response({"half": "x" * 100})[:-50])
    writer.close()


def cut_after(writer: asyncio.StreamWriter) -> None:
    writer.write(response({"ok": 1}))
    writer.close()


def say_close(writer: asyncio.StreamWriter) -> None:
    writer.write(response({"ok": 1}, "200 OK", "Connection: close"))
    writer.close()


def say_too_much(writer: asyncio.StreamWriter) -> None:
    writer.write(response({"ok": 1}) + response({"nobody": "asked"}))


def say_nonsense(writer: asyncio.StreamWriter) -> None:
    writer.write(b"SSH-2.0-x\r\n\r\n")
    writer.close()


@pytest.mark.parametrize("misbehave", [cut_before, cut_within, cut_after, say_close, say_too_much, say_nonsense])
def test_a_connection_that_went_wrong_costs_no_request(
    tmp_path: Path, misbehave: Callable[[asyncio.StreamWriter], None]
) -> None:
    count = 0

    async def answer(request: dict[str, str], writer: asyncio.StreamWriter) -> None:
        nonlocal count
        count += 1
        if count == 2:
            misbehave(writer)
        else:
            writer.write(response({"ok": 1}))

    async def scenario(client: Client, server: Server) -> None:
        for _ in range(4):
            assert await client.get(PATH) == {"ok": 1}

    talk(tmp_path, answer, scenario)


def test_a_redirect_is_followed(tmp_path: Path) -> None:
    async def answer(request: dict[str, str], writer: asyncio.StreamWriter) -> None:
        if request["target"] == PATH:
            writer.write(response({}, "307 Temporary Redirect", "Location: /there"))
        else:
            await say_where(request, writer)

    async def scenario(client: Client, server: Server) -> None:
        assert await client.get(PATH) == {"target": "/there"}

    talk(tmp_path, answer, scenario)


def test_a_refusal_is_one_request_and_says_when_to_come_again(tmp_path: Path) -> None:
    async def answer(request: dict[str, str], writer: asyncio.StreamWriter) -> None:
        if request["target"] == PATH:
            writer.write(response({"message": "not now"}, "429 Too Many Requests", "Retry-After: 7"))
        else:
            writer.write(response({"message": "no such thing", "reason": "NotFound"}, "404 Not Found"))

    async def scenario(client: Client, server: Server) -> None:
        with pytest.raises(TooManyRequests, match="not now") as caught:
            await client.get(PATH)
        assert caught.value.retry_after_s == 7.0
        with pytest.raises(NotFound, match=r"GET /api/v1/z: no such thing \(404\)"):
            await client.get("/api/v1/z")
        assert len(server.requests) == 2
        assert server.connections == 1

    talk(tmp_path, answer, scenario)


def test_a_server_that_hangs_is_given_up_at_the_time_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "REQUEST_TIMEOUT_S", 0.3)
    hang = asyncio.Event()

    async def answer(request: dict[str, str], writer: asyncio.StreamWriter) -> None:
        if request["target"] == "/hang":
            await hang.wait()
        await say_where(request, writer)

    async def scenario(client: Client, server: Server) -> None:
        await client.get(PATH)
        with pytest.raises(Unavailable, match="TimeoutError"):
            await client.get("/hang")
        hang.set()
        assert await client.get(PATH) == {"target": PATH}  # and not the answer that came too late
        assert [request["target"] for request in server.requests] == [PATH, "/hang", PATH]

    talk(tmp_path, answer, scenario)


def test_connections_that_died_in_silence_cost_one_request_in_vain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a failover of the API server: nothing is answered on them, and new ones work."""
    monkeypatch.setattr(kept_alive, "REUSED_TIMEOUT_S", 0.5)
    monkeypatch.setattr(client_module, "REQUEST_TIMEOUT_S", 5.0)
    writers: set[asyncio.StreamWriter] = set()
    dead: set[asyncio.StreamWriter] = set()
    over = asyncio.Event()

    async def answer(request: dict[str, str], writer: asyncio.StreamWriter) -> None:
        writers.add(writer)
        if writer in dead:
            await over.wait()
            return
        await asyncio.sleep(0.02)
        await say_where(request, writer)

    async def scenario(client: Client, server: Server) -> None:
        await asyncio.gather(*(client.get(PATH) for _ in range(kept_alive.MAX_CONNECTIONS)))
        dead.update(writers)
        for number in range(5):
            assert await client.get(f"/{number}") == {"target": f"/{number}"}
        asked = [request["target"] for request in server.requests[kept_alive.MAX_CONNECTIONS :]]
        assert asked == ["/0", "/0", "/1", "/2", "/3", "/4"]
        assert server.connections == kept_alive.MAX_CONNECTIONS + 1
        over.set()

    talk(tmp_path, answer, scenario)


def test_who_gives_up_gets_nobody_elses_answer(tmp_path: Path) -> None:
    async def answer(request: dict[str, str], writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.05)
        await say_where(request, writer)

    async def scenario(client: Client, server: Server) -> None:
        await client.get(PATH)
        impatient = asyncio.ensure_future(client.get("/first"))
        await asyncio.sleep(0.02)
        impatient.cancel()
        assert await client.get("/second") == {"target": "/second"}

    talk(tmp_path, answer, scenario)


def test_a_connection_that_idled_too_long_is_not_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(client: Client, server: Server) -> None:
        await client.get(PATH)
        monkeypatch.setattr(kept_alive, "IDLE_S", 0.0)
        await client.get(PATH)
        assert server.connections == 2

    talk(tmp_path, say_where, scenario)


def test_a_token_that_was_renewed_on_disk_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "_RELOAD_INTERVAL_S", -1.0)
    token = tmp_path / "token"
    token.write_text("old")

    async def answer(request: dict[str, str], writer: asyncio.StreamWriter) -> None:
        if request["authorization"] == "Bearer new":
            await say_where(request, writer)
        else:
            writer.write(response({"reason": "Unauthorized", "message": "expired"}, "401 Unauthorized"))

    async def scenario(client: Client, server: Server) -> None:
        temporary = tmp_path / "next"
        temporary.write_text("new")
        temporary.replace(token)
        with pytest.raises(Unauthorized):
            await client.get(PATH)
        assert await client.get(PATH) == {"target": PATH}

    talk(tmp_path, answer, scenario, tokenFile=str(token))


def test_a_path_never_makes_two_requests(tmp_path: Path) -> None:
    async def scenario(client: Client, server: Server) -> None:
        await client.get("/a HTTP/1.1\r\nHost: x\r\n\r\nGET /b")
        assert len(server.requests) == 1

    talk(tmp_path, say_where, scenario)
