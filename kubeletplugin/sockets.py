"""Unix sockets that the kubelet finds: names within the kernel's limit, and never touching somebody else's file."""

import base64
import contextlib
import hashlib
import os
import secrets
import socket
import stat
from pathlib import Path
from typing import Any, Final

import grpc.aio

from api.errors import InvalidObject

MAX_SOCKET_PATH_BYTES: Final = 107  # sun_path of struct sockaddr_un (108) less its terminating zero
_REGISTRATION_SUFFIX: Final = "-reg.sock"  # as the kubeletplugin helper's
_DRA_PREFIX: Final = "dra-"
_DRA_SUFFIX: Final = ".sock"


def _digest(text: str, length: int) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()[:length]).decode().rstrip("=")


def registration_socket_names(driver: str, pod_uid: str, start: str) -> tuple[str, ...]:
    """From the plainest to the shortest. `start` differs at every start of the process.

    After a failure the kubelet waits for up to two minutes before it tries the same path again; a process that was
    killed leaves its socket behind, which fails, and the next one must not inherit the wait.
    """
    instance = f"{pod_uid}-{start}" if pod_uid else start
    prefix, short_prefix = _registration_prefixes(driver)
    return (
        f"{prefix}{instance}{_REGISTRATION_SUFFIX}",
        f"{prefix}{_digest(instance, 8)}{_REGISTRATION_SUFFIX}",
        f"{short_prefix}{_digest(instance, 8)}{_REGISTRATION_SUFFIX}",
    )


def _registration_prefixes(driver: str) -> tuple[str, str]:
    return f"{driver}-", f"dra-{_digest(driver, 6)}-"


def remove_stale_registrations(registry: Path, driver: str) -> tuple[str, ...]:
    """Unlink this driver's registration sockets to which nobody answers; their names.

    A socket with a living listener stays: that is another instance, in a rolling update.
    """
    return _remove_abandoned(registry, _registration_prefixes(driver), _REGISTRATION_SUFFIX)


def remove_stale_dra_sockets(directory: Path) -> tuple[str, ...]:
    """The same for what pods that were killed left in the driver's own directory, each under a name of its own."""
    return _remove_abandoned(directory, (_DRA_PREFIX,), _DRA_SUFFIX)


def _remove_abandoned(directory: Path, prefixes: tuple[str, ...], suffix: str) -> tuple[str, ...]:
    if not directory.is_dir():
        return ()
    mine = [
        path for path in sorted(directory.iterdir()) if path.name.startswith(prefixes) and path.name.endswith(suffix)
    ]
    stale = [path for path in mine if path.is_socket() and _is_abandoned(path)]
    for path in stale:
        path.unlink(missing_ok=True)
    return tuple(path.name for path in stale)


def _is_abandoned(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)  # a listener that is stopped, its queue full, would hold us for ever
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            return True
        except OSError:
            return False  # its queue is full, it is not ours to open, or it is gone
    return False


def dra_socket_names(pod_uid: str) -> tuple[str, ...]:
    if not pod_uid:
        return ("dra.sock",)
    return tuple(f"{_DRA_PREFIX}{each}{_DRA_SUFFIX}" for each in (pod_uid, _digest(pod_uid, 8)))


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
