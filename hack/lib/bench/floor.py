"""The least that preparing a claim must cost: one GET of the claim, two durable appends, one empty gRPC call."""

import base64
import json
import os
import re
import socket
import ssl
import tempfile
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import yaml

_RECORD = b"x" * 500


class RawApi:
    """One HTTP/1.1 connection over TLS, written and read by hand: nothing that a client library would add."""

    def __init__(self, kubeconfig: Path, token: str | None) -> None:
        config = yaml.safe_load(kubeconfig.read_text())
        cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
        address = urlsplit(cluster["server"])
        context = ssl.create_default_context(cadata=_read(cluster, "certificate-authority", kubeconfig).decode())
        if token is None:
            with tempfile.TemporaryDirectory() as scratch:
                certificate, key = Path(scratch, "crt"), Path(scratch, "key")
                certificate.write_bytes(_read(user, "client-certificate", kubeconfig))
                key.write_bytes(_read(user, "client-key", kubeconfig))
                context.load_cert_chain(certificate, key)
        plain = socket.create_connection((address.hostname, address.port))
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = context.wrap_socket(plain, server_hostname=address.hostname)
        authorization = f"Authorization: Bearer {token}\r\n" if token else ""
        self._head = f"Host: {address.netloc}\r\nAccept: application/json\r\n{authorization}\r\n"

    def get(self, path: str) -> Any:
        self._socket.sendall(f"GET {path} HTTP/1.1\r\n{self._head}".encode())
        data = self._socket.recv(65536)
        while b"\r\n\r\n" not in data:
            data += self._socket.recv(65536)
        head, _, body = data.partition(b"\r\n\r\n")
        length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
        if length is None:
            return json.loads(self._read_chunks(body))
        while len(body) < int(length[1]):
            body += self._socket.recv(65536)
        return json.loads(body)

    def _read_chunks(self, data: bytes) -> bytes:
        """The body of a response in chunks (RFC 9112 section 7.1), which the API server prefers for longer ones."""
        body = b""
        while True:
            while b"\r\n" not in data:
                data += self._socket.recv(65536)
            size, _, data = data.partition(b"\r\n")
            length = int(size, 16)
            while len(data) < length + 2:
                data += self._socket.recv(65536)
            body, data = body + data[:length], data[length + 2 :]
            if length == 0:
                return body

    def close(self) -> None:
        self._socket.close()


def _read(section: dict[str, str], name: str, kubeconfig: Path) -> bytes:
    if f"{name}-data" in section:
        return base64.b64decode(section[f"{name}-data"])
    return (kubeconfig.parent / section[name]).read_bytes()


class DurableFile:
    """An append-only file where the plugin keeps its own."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "floor.journal"
        self._fd = os.open(self._path, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)

    def append(self) -> None:
        os.write(self._fd, _RECORD)
        os.fdatasync(self._fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)
        self._path.unlink()
