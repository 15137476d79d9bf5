"""The CDI files of prepared claims, in the directory that container runtimes read."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kubeletplugin.disk import disk_error, disk_errors, replace_whole


class CdiFiles:
    """The CDI specs of one vendor. Not made durable: the directory lives in memory and is filled again after a boot."""

    def __init__(self, directory: Path, vendor: str) -> None:
        self._directory = str(directory)
        self._vendor = vendor
        self._prefix = f"{vendor}-claim_"

    @property
    def directory(self) -> Path:
        return Path(self._directory)

    def path(self, name: str) -> Path:
        return Path(self._directory, name)

    def exists(self, name: str) -> bool:
        return os.path.lexists(f"{self._directory}/{name}")

    def write(self, name: str, spec: dict[str, Any] | bytes) -> None:
        """`spec` as a value or as JSON. Appears whole or not at all. Raises DiskFull, DiskFailed."""
        final = f"{self._directory}/{name}"
        data = spec if isinstance(spec, bytes) else json.dumps(spec, separators=(",", ":")).encode()
        # Runtimes read every *.json here at any time; the unfinished file has another ending.
        with disk_errors(final):
            try:
                replace_whole(final, data, durable=False)
            except FileNotFoundError:
                Path(self._directory).mkdir(parents=True, exist_ok=True)
                replace_whole(final, data, durable=False)

    def ensure(self, name: str, data: bytes) -> None:
        """Write it unless it says so already. Raises DiskFull, DiskFailed."""
        with contextlib.suppress(OSError):  # absent, or unreadable: writing says what is wrong
            if self.path(name).read_bytes() == data:
                return
        self.write(name, data)

    def remove(self, name: str) -> None:
        """Absent is success. Raises DiskFailed."""
        file = self.path(name)
        with disk_errors(file):
            file.unlink(missing_ok=True)

    def set_aside(self, name: str) -> Path:
        """Keep it where neither runtimes nor `read_all` look. Raises OSError."""
        return self.path(name).rename(f"{self._directory}/{name}.unreadable")

    def read_all(self) -> Iterator[tuple[str, dict[str, Any] | None]]:
        """Claim UID and spec of every file of ours; None for one that cannot be parsed. Raises DiskFailed.

        A file that cannot be read says nothing about its claim, least of all that there is none.
        """
        try:
            paths = sorted(self.directory.iterdir())
        except FileNotFoundError:
            return
        except OSError as error:
            raise disk_error(error, self.directory) from error
        for path in paths:
            if not path.name.startswith(self._prefix) or path.suffix != ".json":
                continue
            try:
                spec = json.loads(path.read_bytes())
            except FileNotFoundError:
                continue  # it was given back meanwhile
            except OSError as error:
                raise disk_error(error, path) from error
            except ValueError:
                spec = None
            yield path.stem.removeprefix(self._prefix), spec if isinstance(spec, dict) else None
