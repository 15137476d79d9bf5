"""Watching one object on the API server with the standard library only.

`api.client` costs 15 MiB (aiohttp, kubernetes) and 100 ms of imports, too much for a program that runs once per
ComputeDomain and node, and reads one object. Rules are the same: list, watch with bookmarks, resume, 410 by listing
again, and a watch that has been silent for 90 s is dead.
"""

import asyncio
import json
import logging
import random
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode

from api.errors import Retryable

log = logging.getLogger(__name__)

Json = dict[str, Any]

CONNECT_TIMEOUT_S: Final = 10.0
SILENCE_S: Final = 90.0  # bookmarks come every minute (kube-apiserver)
BACK_OFF_S: Final = (0.2, 10.0)


class Unreachable(Retryable):
    """The API server did not answer as it should; the watch is begun again."""

    reason = "ApiUnavailable"


class Expired(Retryable):
    """The resource version is too old: list again."""

    reason = "Gone"


@dataclass(frozen=True, slots=True)
class ServiceAccount:
    """How to reach the API server from a pod. Token and authority are read at every connection, for both rotate."""

    directory: Path
    host: str
    port: int

    def tls(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.directory / "ca.crt"))

    def token(self) -> str:
        return (self.directory / "token").read_text().strip()


async def watch_object(account: ServiceAccount, collection: str, name: str) -> AsyncIterator[Json | None]:
    """Yield the object, and again at every change; None while there is no such object. For ever."""
    delay_s, most_s = BACK_OFF_S
    while True:
        try:
            obj, version = await _read(account, collection, name)
            yield obj
            delay_s = BACK_OFF_S[0]
            async for event in _events(account, collection, name, version):
                yield event
        except Expired:
            log.info("watch_expired", extra={"object": name})
        except (OSError, Unreachable, asyncio.IncompleteReadError, ValueError) as error:
            log.warning("watch_interrupted", extra={"object": name, "error": f"{type(error).__name__}: {error}"})
            await asyncio.sleep(delay_s * random.uniform(0.5, 1.5))
            delay_s = min(delay_s * 2, most_s)


async def _read(account: ServiceAccount, collection: str, name: str) -> tuple[Json | None, str]:
    """The object and the version from which to watch."""
    response = await _get(account, collection, {"fieldSelector": f"metadata.name={name}"})
    try:
        answer = json.loads(b"".join([chunk async for chunk in response]))
    finally:
        await response.aclose()
    items = answer.get("items") or []
    return (items[0] if items else None), answer["metadata"]["resourceVersion"]


async def _events(account: ServiceAccount, collection: str, name: str, version: str) -> AsyncIterator[Json | None]:
    """What the object becomes, from `version` on, until the server ends the watch."""
    query = {
        "fieldSelector": f"metadata.name={name}",
        "watch": "1",
        "allowWatchBookmarks": "true",
        "resourceVersion": version,
    }
    response = await _get(account, collection, query)
    pending = b""
    try:
        async for chunk in response:
            *lines, pending = (pending + chunk).split(b"\n")
            for line in lines:
                event = json.loads(line)
                if event["type"] == "ERROR":
                    raise _error(event["object"].get("code"), str(event["object"].get("message")))
                if event["type"] != "BOOKMARK":
                    yield None if event["type"] == "DELETED" else event["object"]
    finally:
        await response.aclose()


async def _get(account: ServiceAccount, path: str, query: dict[str, str]) -> "_Response":
    """Send one GET; the answer's body comes piece by piece."""
    connecting = asyncio.open_connection(account.host, account.port, ssl=account.tls())
    reader, writer = await asyncio.wait_for(connecting, CONNECT_TIMEOUT_S)
    response = _Response(reader, writer)
    try:
        host = f"[{account.host}]" if ":" in account.host else account.host
        lines = (
            f"GET {path}?{urlencode(query)} HTTP/1.1",
            f"Host: {host}:{account.port}",
            f"Authorization: Bearer {account.token()}",
            "Accept: application/json",
            "User-Agent: partita-imex-daemon",
            "Connection: close",
        )
        writer.write("\r\n".join([*lines, "", ""]).encode())
        await writer.drain()
        await response.read_head()
    except BaseException:
        await response.aclose()
        raise
    return response


class _Response:
    """One HTTP/1.1 answer (RFC 9112): its body by chunks, by length, or until the connection ends."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._length: int | None = None
        self._chunked = False

    async def read_head(self) -> None:
        """Raises Unreachable or Expired unless the answer is 200."""
        head = (await asyncio.wait_for(self._reader.readuntil(b"\r\n\r\n"), CONNECT_TIMEOUT_S)).decode("latin-1")
        status_line, *fields = head.split("\r\n")
        headers = {key.strip().lower(): value.strip() for key, _, value in (field.partition(":") for field in fields)}
        self._chunked = headers.get("transfer-encoding", "").lower() == "chunked"
        self._length = int(headers["content-length"]) if "content-length" in headers else None
        status = int(status_line.split(" ", 2)[1])
        if status != 200:
            raise _error(status, status_line)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        if not self._chunked:
            body = await self._wait(self._reader.read(-1 if self._length is None else self._length))
            yield body
            return
        while True:
            size = int((await self._wait(self._reader.readuntil(b"\r\n"))).split(b";")[0], 16)
            data = await self._wait(self._reader.readexactly(size + 2))
            if size == 0:
                return
            yield data[:-2]

    async def _wait(self, reading: Any) -> bytes:
        try:
            data: bytes = await asyncio.wait_for(reading, SILENCE_S)
        except TimeoutError as error:
            raise Unreachable(f"silent for {SILENCE_S:.0f} s") from error
        return data

    async def aclose(self) -> None:
        """End the connection; how the other end takes it does not matter any more."""
        self._writer.transport.abort()


def _error(code: Any, message: str) -> Retryable:
    if code == 410:
        return Expired(message)
    return Unreachable(f"{message} ({code})")
