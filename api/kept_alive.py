"""GETs over a few connections of our own: a quarter of what a claim took was reading it through the HTTP client.

This knows the plain case alone. Whatever else happens has no answer here (None), and is for the ordinary client to do.
"""

import asyncio
import ssl
import time
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

import httptools

MAX_CONNECTIONS: Final = 4  # claims mostly come one by one
IDLE_S: Final = 60.0  # the API server closes them after 90; what has died in silence meanwhile is not asked
REUSED_TIMEOUT_S: Final = 4.0  # more than an answer takes; a new connection has the rest of the caller's time


@dataclass(frozen=True, slots=True)
class Answer:
    """`status` is 200, or that of a refusal, 400 and more."""

    status: int
    body: bytes
    retry_after: str | None


class _Connection(asyncio.Protocol):
    """One request at a time."""

    def __init__(self) -> None:
        self.is_reusable = False
        self.last_used_s = 0.0
        self._answer: asyncio.Future[Answer | None] | None = None

    async def get(self, request: bytes) -> Answer | None:
        """None where the connection ends before the answer does, or where the answer is none of those we know."""
        self._parser = httptools.HttpResponseParser(self)
        self._body: list[bytes] = []
        self._retry_after: str | None = None
        self._answer = asyncio.get_running_loop().create_future()
        self.is_reusable = False
        self._transport.write(request)
        return await self._answer

    def close(self) -> None:
        self.is_reusable = False
        self._transport.abort()

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        if self._answer is None or self._answer.done():
            self.close()  # nobody has asked for that
            return
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self.close()

    def connection_lost(self, error: Exception | None) -> None:
        self.is_reusable = False
        self._tell(None)

    def _tell(self, answer: Answer | None) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(answer)

    # Called by the parser

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"retry-after":
            self._retry_after = value.decode("latin-1")

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()
        if status == 200 or status >= 400:
            self.is_reusable = self._parser.should_keep_alive()
            self.last_used_s = time.monotonic()
            self._tell(Answer(status, b"".join(self._body), self._retry_after))
        else:
            self._tell(None)


class KeptAlive:
    """Connections to one server."""

    def __init__(self, host: str, tls: ssl.SSLContext, server_hostname: str | None) -> None:
        """As `api.connection.Connection` has them. Connects when first asked."""
        self.tls = tls
        address = urlsplit(host)
        secure = address.scheme == "https"
        self._where: dict[str, Any] = {
            "host": address.hostname,
            "port": address.port or (443 if secure else 80),
            "ssl": tls if secure else None,
            "server_hostname": (server_hostname or address.hostname) if secure else None,
            "happy_eyeballs_delay": 0.25,  # RFC 8305 section 5
        }
        self._base = address.path
        self._head = f"Host: {address.netloc}\r\nAccept: application/json\r\n"
        self._idle: list[_Connection] = []
        self._busy = 0
        self._closed = False

    async def get(self, path: str, authorization: str | None) -> Answer | None:
        """Call with a time limit. Whoever is cancelled takes the connection along."""
        credentials = f"Authorization: {authorization}\r\n" if authorization else ""
        if self._busy >= MAX_CONNECTIONS or not (path + (authorization or "")).isprintable() or " " in path:
            return None
        request = f"GET {self._base}{path} HTTP/1.1\r\n{self._head}{credentials}\r\n".encode()
        self._busy += 1
        try:
            connection = self._take()
            if connection is not None:
                try:
                    async with asyncio.timeout(REUSED_TIMEOUT_S):
                        return await self._ask(connection, request)
                except TimeoutError:
                    # A server that went without a word (a failover) has left all of them dead.
                    self._close_idle()
            _, connection = await asyncio.get_running_loop().create_connection(_Connection, **self._where)
            return await self._ask(connection, request)
        except OSError:
            return None  # the ordinary client says why it cannot connect, or can
        finally:
            self._busy -= 1

    async def _ask(self, connection: _Connection, request: bytes) -> Answer | None:
        try:
            return await connection.get(request)
        finally:
            if connection.is_reusable and not self._closed:
                self._idle.append(connection)
            else:
                connection.close()

    def close(self) -> None:
        """Whoever has asked still gets an answer."""
        self._closed = True
        self._close_idle()

    def _close_idle(self) -> None:
        while self._idle:
            self._idle.pop().close()

    def _take(self) -> _Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.is_reusable and time.monotonic() < connection.last_used_s + IDLE_S:
                return connection
            connection.close()
        return None
