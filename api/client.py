"""The one way to the API server: JSON in and out as plain dicts, and one list-watch for everybody.

Bodies stay dicts because typed models drop the fields that they do not know, and cost tens of MiB.
"""

import asyncio
import json
import logging
import random
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, Literal, Self

from api.api_errors import (
    ApiError,
    Conflict,
    Forbidden,
    Gone,
    Invalid,
    NotFound,
    TooManyRequests,
    Unauthorized,
    Unavailable,
    error_of_status,
)
from api.connection import Connection, ConnectionUnknown, without_system_certificates
from api.identity import ServiceAccount, parse_service_account
from api.kept_alive import Answer, KeptAlive
from api.lines import split_lines
from api.names import FIELD_MANAGER

with without_system_certificates():
    import aiohttp
    from yarl import URL

__all__ = (
    "APPLY_PATCH",
    "MERGE_PATCH",
    "ApiError",
    "Client",
    "Conflict",
    "Forbidden",
    "Gone",
    "Invalid",
    "Json",
    "NotFound",
    "TooManyRequests",
    "Unauthorized",
    "Unavailable",
    "back_off_s",
    "path",
)

log = logging.getLogger(__name__)

Json = dict[str, Any]
Objects = list[Json]
_Kept = list[Any]
EventType = Literal["SYNC", "ADDED", "MODIFIED", "DELETED"]

REQUEST_TIMEOUT_S: Final = 30.0
SILENCE_S: Final = 90.0  # bookmarks come every minute (kube-apiserver), so a longer silence is a dead connection
PAGE_SIZE: Final = 50  # of claims with all the configuration that they may have, client-go's 500 take 460 MiB
BACK_OFF_S: Final = (0.5, 30.0)
APPLY_PATCH: Final = "application/apply-patch+yaml"
MERGE_PATCH: Final = "application/merge-patch+json"
_JSON: Final = "application/json"
# Of a list and of a watch, KEP-2334.
_METADATA_ONLY: Final = (
    "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1",
    "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1",
)


def path(
    api_version: str,
    plural: str,
    *,
    namespace: str | None = None,
    name: str | None = None,
    subresource: str | None = None,
) -> str:
    """`path("v1", "pods", namespace="x", name="y")` is `/api/v1/namespaces/x/pods/y`; groups go under `/apis`."""
    parts = ["/api" if "/" not in api_version else "/apis", api_version]
    if namespace:
        parts += ["namespaces", namespace]
    parts.append(plural)
    if name:
        parts.append(name)
    if subresource:
        parts.append(subresource)
    return "/".join(parts)


def _whole(obj: Json) -> Json:
    return obj


def _parse(raw: bytes) -> Json:
    """Raises ValueError."""
    try:
        obj = json.loads(raw)
    except ValueError:
        obj = None
    if not isinstance(obj, dict):
        raise ValueError(f"the answer is no JSON object: {raw[:200].decode(errors='replace').strip()}")
    return obj


@contextmanager
def _unavailable(what: str) -> Iterator[None]:
    """Whatever keeps an answer from us, callers know it by one name. `what` was asked for."""
    try:
        yield
    except (aiohttp.ClientError, ConnectionUnknown, OSError, ValueError) as error:
        raise Unavailable(f"{what}: {str(error) or type(error).__name__}") from error


class Client:
    """One connection pool to one API server."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._host = connection.host
        self._extra: dict[str, Any] = {}
        if connection.proxy:
            self._extra["proxy"] = connection.proxy
        if connection.server_hostname:
            self._extra["server_hostname"] = connection.server_hostname
        self._session: aiohttp.ClientSession | None = None
        self._kept_alive: KeptAlive | None = None

    @classmethod
    async def connect(cls, kubeconfig: str | None) -> Self:
        """By that kubeconfig, else by the pod's service account. Sends nothing yet. Raises ConnectionUnknown."""
        return cls(await Connection.load(kubeconfig))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        if self._kept_alive is not None:
            self._kept_alive.close()
            self._kept_alive = None
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def service_account(self) -> ServiceAccount | None:
        """Whose token we use; None where it is no service account's. Raises Unavailable."""
        with _unavailable("token"):
            return parse_service_account(await self._connection.authorization())

    async def get(self, path: str, **query: str) -> Json:
        """Raises NotFound, Forbidden, Unavailable."""
        what = f"GET {path}"
        with _unavailable(what):
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                answer: Answer | None = None
                if not self._connection.proxy and not query:
                    token = await self._connection.authorization()
                    answer = await self._kept().get(path, token)
                if answer is None:
                    return await self._request("GET", path, query=query)
                if answer.status != 200:
                    raise await self._error(what, answer.status, answer.body, answer.retry_after)
                return _parse(answer.body)

    async def list(self, path: str, **query: str) -> Objects:
        """All items, page by page, each with `apiVersion` and `kind`."""
        items, _ = await self._list_pages(path, query)
        return items

    async def create(self, path: str, body: Json, **query: str) -> Json:
        """POST to a collection. Raises Conflict (`already_exists`), Invalid."""
        query.setdefault("fieldManager", FIELD_MANAGER)
        return await self._request("POST", path, body=body, query=query)

    async def update(self, path: str, body: Json, **query: str) -> Json:
        """PUT; `metadata.resourceVersion` makes it conditional. Raises Conflict, NotFound, Invalid."""
        query.setdefault("fieldManager", FIELD_MANAGER)
        return await self._request("PUT", path, body=body, query=query)

    async def patch(self, path: str, body: Any, content_type: str = MERGE_PATCH, **query: str) -> Json:
        """PATCH with one of the `*_PATCH` types."""
        query.setdefault("fieldManager", FIELD_MANAGER)
        return await self._request("PATCH", path, body=body, query=query, content_type=content_type)

    async def apply(self, path: str, body: Json, **query: str) -> Json:
        """Server-side apply: create or bring our fields in line; the body must carry apiVersion, kind and name."""
        query.setdefault("fieldManager", FIELD_MANAGER)
        query["force"] = "true"
        return await self._request("PATCH", path, body=body, query=query, content_type=APPLY_PATCH)

    async def delete(
        self, path: str, *, uid: str | None = None, resource_version: str | None = None, **options: Any
    ) -> Json:
        """DELETE, conditional on `uid` and `resource_version`; `options` are DeleteOptions fields.

        Raises NotFound (it is gone: usually success), Conflict (it is another object by now).
        """
        preconditions = {"uid": uid, "resourceVersion": resource_version}
        body: Json = {"apiVersion": "v1", "kind": "DeleteOptions", **options}
        if uid or resource_version:
            body["preconditions"] = {key: value for key, value in preconditions.items() if value}
        return await self._request("DELETE", path, body=body)

    async def list_watch(
        self,
        path: str,
        *,
        field_selector: str | None = None,
        label_selector: str | None = None,
        metadata_only: bool = False,
        keep: Callable[[Json], Any] = _whole,
        most_back_off_s: float = BACK_OFF_S[1],
    ) -> AsyncIterator[tuple[EventType, Any]]:
        """Yield `("SYNC", [objects])` after every full list, then `("ADDED"|"MODIFIED"|"DELETED", object)`, for ever.

        Resumes where it was cut; after "too old" comes another SYNC, whose list replaces what the caller knew.
        `keep`: what SYNC has for each object, which is dropped before the next page is read.
        `metadata_only`: the server sends nothing but `metadata` of each object. `most_back_off_s`: between attempts to
        reach a server that is away, give or take a half.
        Raises only what waiting cannot cure: Forbidden, NotFound (no such resource), Invalid.
        """
        query = {"fieldSelector": field_selector, "labelSelector": label_selector}
        selectors = {key: value for key, value in query.items() if value}
        listed, watched = _METADATA_ONLY if metadata_only else (_JSON, _JSON)
        version: str | None = None
        delays = back_off_s(most_s=most_back_off_s)
        delivered = False
        while True:
            try:
                if version is None:
                    items, version = await self._list_pages(path, selectors, listed, keep)
                    yield "SYNC", items
                    del items  # or it lives as long as the watch
                async for kind, obj in self._watch(path, selectors, version, watched):
                    version = obj["metadata"]["resourceVersion"]
                    delays, delivered = back_off_s(most_s=most_back_off_s), True
                    if kind != "BOOKMARK":
                        yield kind, obj
                # The server ends a healthy watch after some time; a server that ends it at once must not be hammered.
                delay_s = next(delays)
            except Gone:
                # The same holds for one that calls too old what it has just listed.
                version, delay_s, delivered = None, 0.0 if delivered else next(delays), False
                log.info("watch_too_old", extra={"path": path, "retry_in_s": delay_s})
            except Unavailable as error:
                delay_s = max(next(delays), error.retry_after_s or 0.0)
                log.info("watch_interrupted", extra={"path": path, "error": str(error), "retry_in_s": delay_s})
            await asyncio.sleep(delay_s)

    async def _watch(
        self, path: str, selectors: Mapping[str, str], version: str, accept: str
    ) -> AsyncIterator[tuple[Any, Json]]:
        query = {**selectors, "watch": "1", "allowWatchBookmarks": "true", "resourceVersion": version}
        limits = aiohttp.ClientTimeout(total=None, sock_connect=REQUEST_TIMEOUT_S, sock_read=SILENCE_S)
        what = f"watch {path}"
        with _unavailable(what):
            async with await self._send("GET", path, query=query, limits=limits, accept=accept) as response:
                if response.status != 200:
                    raise await self._error_of(response, what)
                async for line in split_lines(response.content.iter_any()):
                    event = _parse(line)
                    if event["type"] == "ERROR":
                        raise error_of_status(event["object"], what)
                    yield event["type"], event["object"]

    async def _list_pages(
        self, path: str, selectors: Mapping[str, str], accept: str = _JSON, keep: Callable[[Json], Any] = _whole
    ) -> tuple[_Kept, str]:
        """What is kept of all objects, and the list's version."""
        kept: _Kept = []
        query = {"limit": str(PAGE_SIZE), **selectors}
        while True:
            try:
                page, metadata = await self._read_page(path, query, accept, keep)
            except Gone:
                if "continue" not in query:
                    raise
                # The continue token outlived the server's history: begin again, in one piece.
                kept, query = [], dict(selectors)
                continue
            kept += page
            if not metadata.get("continue"):
                return kept, metadata["resourceVersion"]
            query = {**query, "continue": metadata["continue"]}

    async def _read_page(
        self, path: str, query: Mapping[str, str], accept: str, keep: Callable[[Json], Any]
    ) -> tuple[_Kept, Json]:
        """What is kept of its objects, and the list's metadata; here all else of a page ends before the next comes."""
        page = await self._request("GET", path, query=query, accept=accept)
        kept: _Kept = []
        kind = str(page.get("kind", "")).removesuffix("List")
        for item in page.get("items") or []:
            item.setdefault("apiVersion", page.get("apiVersion"))
            item.setdefault("kind", kind)
            kept.append(keep(item))
        return kept, page["metadata"]

    async def _request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        content_type: str = _JSON,
        accept: str = _JSON,
    ) -> Json:
        data = None if body is None else json.dumps(body, separators=(",", ":")).encode()
        what = f"{method} {path}"
        with _unavailable(what):
            async with await self._send(
                method, path, query=query, data=data, content_type=content_type, accept=accept
            ) as response:
                if response.status >= 300:
                    raise await self._error_of(response, what)
                return _parse(await response.read())

    async def _send(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        data: bytes | None = None,
        content_type: str = _JSON,
        accept: str = _JSON,
        limits: aiohttp.ClientTimeout | None = None,
    ) -> aiohttp.ClientResponse:
        session = self._session or self._open()
        headers = {"Accept": accept}
        if data is not None:
            headers["Content-Type"] = content_type
        token = await self._connection.authorization()
        if token:
            headers["Authorization"] = token
        url = URL(self._host + path, encoded=True)
        if query:
            url = url.with_query(query)
        return await session.request(
            method,
            url,
            data=data,
            headers=headers,
            timeout=limits or session.timeout,
            ssl=self._connection.tls(),
            **self._extra,
        )

    def _kept(self) -> KeptAlive:
        """Made with the certificates of now; who has asked on connections with older ones still gets an answer."""
        tls = self._connection.tls()
        if self._kept_alive is None or self._kept_alive.tls is not tls:
            if self._kept_alive is not None:
                self._kept_alive.close()
            self._kept_alive = KeptAlive(self._host, tls, self._connection.server_hostname)
        return self._kept_alive

    def _open(self) -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=60.0)
        timeout = aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_S)
        self._session = aiohttp.ClientSession(
            connector=connector, timeout=timeout, cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=True
        )
        return self._session

    async def _error_of(self, response: aiohttp.ClientResponse, what: str) -> ApiError:
        return await self._error(what, response.status, await response.read(), response.headers.get("Retry-After"))

    async def _error(self, what: str, code: int, raw: bytes, retry_after: str | None) -> ApiError:
        if code == 401:
            await self._connection.renew()
        try:
            status = json.loads(raw)
        except ValueError:
            status = {"message": raw[:200].decode(errors="replace").strip()}
        status = {**status, "code": code} if isinstance(status, dict) else {"code": code}
        return error_of_status(status, what, retry_after)


def back_off_s(first_s: float = BACK_OFF_S[0], most_s: float = BACK_OFF_S[1]) -> Iterator[float]:
    """Endless delays in seconds: doubling from `first_s` to `most_s`, each with +-50 % jitter."""
    delay_s = first_s
    while True:
        yield delay_s * random.uniform(0.5, 1.5)
        delay_s = min(delay_s * 2, most_s)
