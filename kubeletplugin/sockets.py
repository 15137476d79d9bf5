"""Unix sockets that the kubelet finds: names within the kernel's limit, and never touching somebody else's file."""

import base64
import contextlib
import hashlib
import os
import secrets
import stat
from pathlib import Path
from typing import Any, Final

import grpc.aio

from api.errors import InvalidObject

MAX_SOCKET_PATH_BYTES: Final = 107  # sun_path of struct sockaddr_un (108) less its terminating zero


def _digest(text: str, length: int) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()[:length]).decode().rstrip("=")


def registration_socket_names(driver: str, pod_uid: str) -> tuple[str, ...]:
    """From the plainest to the shortest; the shortened forms are those of Kubernetes 1.37's kubeletplugin helper."""
    if not pod_uid:
        return (f"{driver}-reg.sock", f"dra-{_digest(driver, 16)}-reg.sock")
    return (
        f"{driver}-{pod_uid}-reg.sock",
        f"{driver}-{_digest(pod_uid, 8)}-reg.sock",
        f"dra-{_digest(chr(0).join((driver, pod_uid)), 16)}-reg.sock",
    )


def dra_socket_names(pod_uid: str) -> tuple[str, ...]:
    if not pod_uid:
        return ("dra.sock",)
    return (f"dra-{pod_uid}.sock", f"dra-{_digest(pod_uid, 8)}.sock")


def choose_socket_path(directory: Path, names: tuple[str, ...]) -> Path:
    """The first that fits. Raises InvalidObject."""
    for name in names:
        path = directory / name
        if len(os.fsencode(path)) <= MAX_SOCKET_PATH_BYTES:
            return path
    raise InvalidObject(
        f"{directory / names[-1]}: a socket path has at most {MAX_SOCKET_PATH_BYTES} bytes; use a shorter directory"
    )


class SocketServer:
    """A gRPC server on one socket path.

    gRPC unlinks the path that it bound when it stops, whoever owns it by then. So it binds a hidden name of its own,
    which is then renamed: the socket appears when it already answers, and what others put in its place stays.
    """

    def __init__(self, path: Path, handlers: "tuple[grpc.GenericRpcHandler[Any, Any], ...]") -> None:
        self.path = path
        self._handlers = handlers
        self._server: Any = None
        self._inode: int | None = None

    async def start(self) -> None:
        """Raises OSError."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # The kubelet's watcher passes over names that begin with a dot.
        hidden = self.path.parent / f".{secrets.token_hex(4)}"
        server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        server.add_generic_rpc_handlers(self._handlers)
        # The form `unix:///path` would take two bytes of the path's limit.
        if not server.add_insecure_port(f"unix:{hidden}"):
            raise OSError(f"cannot listen on {hidden}")
        await server.start()
        self._inode = hidden.stat().st_ino
        hidden.rename(self.path)
        self._server = server

    def is_present(self) -> bool:
        """Whether a socket is there: ours, or that of whoever replaced it."""
        try:
            return stat.S_ISSOCK(self.path.stat().st_mode)
        except OSError:
            return False

    async def restart(self) -> None:
        """Listen again under the same name, after somebody removed it."""
        old, self._server = self._server, None
        await self.start()
        if old is not None:
            await old.stop(1.0)

    async def stop(self, grace_s: float) -> None:
        """Take the name away where it is still ours, then end calls in flight after `grace_s`."""
        with contextlib.suppress(FileNotFoundError):
            if self.path.stat().st_ino == self._inode:
                self.path.unlink()
        if self._server is not None:
            await self._server.stop(grace_s)
            self._server = None
