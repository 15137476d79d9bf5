"""The HTTP endpoint of a program: its metrics, and whether it lives and is ready."""

import asyncio
import logging
from collections.abc import Callable

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from api.options import Endpoint

log = logging.getLogger(__name__)


class HttpServer:
    """GET /metrics, /healthz and /readyz, and nothing else: too little to load a web framework for."""

    def __init__(
        self, endpoint: Endpoint, registry: CollectorRegistry, ready: Callable[[], bool], unready: str
    ) -> None:
        """`unready`: what /readyz says where it is not `ready`."""
        self._host, self._port = endpoint
        self._registry = registry
        self._ready = ready
        self._unready = f"{unready}\n".encode()

    async def run(self) -> None:
        """Serve until cancelled. Raises OSError where the port is taken."""
        server = await asyncio.start_server(self._answer, self._host, self._port, limit=8192)
        async with server:
            await server.serve_forever()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(5.0):
                request = await reader.readuntil(b"\r\n\r\n")
                writer.write(self._response(request))
                await writer.drain()
        except (TimeoutError, ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
            log.debug("http_request_failed", extra={"error": str(error)})
        finally:
            writer.close()

    def _response(self, request: bytes) -> bytes:
        method, _, rest = request.partition(b" ")
        target = rest.partition(b" ")[0].partition(b"?")[0].decode("latin-1")
        kind, status, body = "text/plain; charset=utf-8", "200 OK", b"ok\n"
        if method not in (b"GET", b"HEAD"):
            status, body = "405 Method Not Allowed", b"only GET\n"
        elif target == "/metrics":
            kind, body = CONTENT_TYPE_LATEST, generate_latest(self._registry)
        elif target == "/readyz" and not self._ready():
            status, body = "503 Service Unavailable", self._unready
        elif target not in ("/healthz", "/readyz"):
            status, body = "404 Not Found", b"/metrics, /healthz, /readyz\n"
        head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        return head.encode() + (b"" if method == b"HEAD" else body)
