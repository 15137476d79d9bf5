"""The HTTP endpoint of a program, asked over loopback."""

import asyncio
import socket

import pytest
from prometheus_client import CollectorRegistry, Gauge

from api.http import HttpServer


def ask(request: str, *, ready: bool = True) -> tuple[str, str]:
    """Status and body."""
    registry = CollectorRegistry()
    Gauge("queue", "Objects that wait.", registry=registry).set(3)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]

    async def main() -> bytes:
        server = asyncio.create_task(HttpServer(("127.0.0.1", port), registry, lambda: ready, "nothing read").run())
        while True:
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                break
            except ConnectionRefusedError:
                await asyncio.sleep(0)
        writer.write(request.encode())
        answer = await reader.read()
        writer.close()
        server.cancel()
        await asyncio.wait((server,))
        return answer

    head, _, body = asyncio.run(main()).decode().partition("\r\n\r\n")
    return head.split("\r\n")[0].partition(" ")[2], body


@pytest.mark.parametrize(
    ("request_line", "ready", "answer"),
    [
        ("GET /healthz HTTP/1.1", False, ("200 OK", "ok\n")),
        ("GET /readyz HTTP/1.1", True, ("200 OK", "ok\n")),
        ("GET /readyz?verbose HTTP/1.1", False, ("503 Service Unavailable", "nothing read\n")),
        ("HEAD /healthz HTTP/1.1", True, ("200 OK", "")),
        ("POST /metrics HTTP/1.1", True, ("405 Method Not Allowed", "only GET\n")),
        ("GET /debug HTTP/1.1", True, ("404 Not Found", "/metrics, /healthz, /readyz\n")),
    ],
)
def test_it_tells_whether_the_program_lives_and_is_ready_and_nothing_else(
    request_line: str, ready: bool, answer: tuple[str, str]
) -> None:
    assert ask(f"{request_line}\r\nHost: x\r\n\r\n", ready=ready) == answer


def test_metrics_are_those_of_the_registry() -> None:
    status, body = ask("GET /metrics HTTP/1.1\r\n\r\n")
    assert status == "200 OK" and "\nqueue 3.0\n" in body
