"""The key by which this node's daemon is known to the others of its IMEX domain. It serves one domain, once.

The file says which domain has been given the key, and says so before that domain has it: whenever this program ends, no
key goes to two. When the last daemon of that domain on this node has ended, another key takes its place. Several
instances of the program (a rolling update) share the file: it is read whenever it is asked for, and written under a
lock.
"""

import asyncio
import base64
import json
import logging
import sys
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from api.errors import Retryable, StateUnreadable
from kubeletplugin.disk import disk_error, disk_errors, locked, replace_whole

log = logging.getLogger(__name__)

_MAKE_TIMEOUT_S: Final = 30.0
_POINT_BYTES: Final = 33  # of P-256, compressed (SEC 1, 2.3.3)

MakeKey = Callable[[], Awaitable[dict[str, str]]]
"""What `kubeletplugin.make_key` prints. Raises KeyNotMade."""


class KeyNotMade(Retryable):
    """The program that makes keys failed; the message has its last words."""

    reason = "KeyNotMade"


@dataclass(frozen=True, slots=True)
class _Key:
    public: str
    """As it is published."""
    private: str = field(repr=False)
    """PEM."""
    domain: str = ""
    """UID of the ComputeDomain whose daemon has been given it; "" for none yet."""


async def make_key_apart() -> dict[str, str]:
    """In a process of its own. Raises KeyNotMade."""
    command = (sys.executable, "-m", "kubeletplugin.make_key")
    null, pipe = asyncio.subprocess.DEVNULL, asyncio.subprocess.PIPE
    try:
        process = await asyncio.create_subprocess_exec(*command, stdin=null, stdout=pipe, stderr=pipe)
    except OSError as error:
        raise KeyNotMade(f"{' '.join(command)}: {error}") from error
    try:
        async with asyncio.timeout(_MAKE_TIMEOUT_S):
            output, words = await process.communicate()
    except TimeoutError as error:
        raise KeyNotMade(f"{' '.join(command)} has not ended after {_MAKE_TIMEOUT_S:.0f} s") from error
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        last = words.decode(errors="replace").strip().rpartition("\n")[2]
        raise KeyNotMade(f"{' '.join(command)} ended with status {process.returncode}: {last}")
    try:
        made: dict[str, str] = json.loads(output)
    except ValueError as error:
        raise KeyNotMade(f"{' '.join(command)} printed no key") from error
    return made


class NodeKey:
    """The node's key, in a file."""

    def __init__(self, path: Path, make: MakeKey, serving: Callable[[], Collection[str]]) -> None:
        """`serving`: UIDs of the domains that have a daemon prepared on this node now."""
        self._path = path
        self._lock_path = path.with_suffix(".lock")
        self._make = make
        self._serving = serving
        self._refusal = ""
        """What was logged last; "" since a key was handed out."""

    def read_public(self) -> str:
        """What to publish; "" while there is no key. Raises DiskFailed."""
        key = self._find()
        return key.public if key else ""

    async def renew(self) -> bool:
        """Where there is no key, or its domain has ended on this node, make another one; whether one was made.

        Raises KeyNotMade, DiskFull, DiskFailed.
        """
        if not self._is_due():
            return False
        made = await self._make()  # before anybody is locked out
        async with locked(self._lock_path):
            if not self._is_due():  # another instance was faster, or the domain has a daemon here again
                return False
            self._write(_Key(made["publicKey"], made["privateKey"]))
        log.info("key_made", extra={"public_key": made["publicKey"]})
        return True

    async def hand_out(self, domain_uid: str, public: str) -> str:
        """PEM of the private half for this domain's daemon; "" where `public` is of another, or it is another domain's.

        Raises DiskFull, DiskFailed.
        """
        async with locked(self._lock_path):
            key = self._find()
            refusal = self._refuse(key, domain_uid, public)
            if refusal and refusal != self._refusal:
                log.info("key_not_handed_out", extra={"domain": domain_uid, "public_key": public, "reason": refusal})
            self._refusal = refusal
            if key is None or refusal:
                return ""
            if not key.domain:
                self._write(replace(key, domain=domain_uid))
                log.info("key_handed_out", extra={"domain": domain_uid, "public_key": public})
            return key.private

    def _refuse(self, key: _Key | None, domain_uid: str, public: str) -> str:
        """Why the domain does not get the key; "" where it does. For a moment that is as it should be."""
        if key is None or key.public != public:
            return "its certificate is for another key than the one that this node has and publishes"
        if key.domain not in ("", domain_uid):
            return f"the key is that of ComputeDomain {key.domain}; another one is made for this domain"
        if domain_uid not in self._serving():
            return "it has no daemon on this node any more"
        return ""

    def _is_due(self) -> bool:
        key = self._find()
        return key is None or (key.domain != "" and key.domain not in self._serving())

    def _find(self) -> _Key | None:
        """None while there is none, also where the file says nothing: `renew` then makes one. Raises DiskFailed."""
        try:
            return _parse(self._path.read_bytes())
        except FileNotFoundError:
            return None
        except OSError as error:
            raise disk_error(error, self._path) from error
        except StateUnreadable as error:
            log.error("key_unreadable", extra={"path": str(self._path), "error": str(error)})
            return None

    def _write(self, key: _Key) -> None:
        content = {"publicKey": key.public, "privateKey": key.private, "domain": key.domain}
        with disk_errors(self._path):
            replace_whole(self._path, json.dumps(content).encode(), durable=True, private=True)


def _parse(data: bytes) -> _Key:
    """Raises StateUnreadable. One that is published must be right: the API server refuses a slice whole."""
    try:
        content = json.loads(data)
        key = _Key(content["publicKey"], content["privateKey"], content["domain"])
        if not all(isinstance(each, str) for each in (key.public, key.private, key.domain)):
            raise TypeError("it has something else than text")
        if len(base64.b64decode(key.public, validate=True)) != _POINT_BYTES:
            raise ValueError("its public key is no compressed point of P-256")
    except (ValueError, TypeError, KeyError) as error:
        raise StateUnreadable(f"{type(error).__name__}: {error}") from error
    return key
