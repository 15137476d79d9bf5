"""One node with the real plugin on simulated hardware: its directories and its process."""

import asyncio
import base64
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

import yaml
from paths import ROOT

from bench.process import cpu_s, memory_mib

DRIVER = "gpu.nvidia.com"
_MEMORY = Path("/dev/shm")  # /run may be on a disk
_SECRETS = "/var/run/secrets/kubernetes.io/serviceaccount"


@dataclass(frozen=True, slots=True)
class ServiceAccount:
    """What a pod has: the plugin then reads token and CA as it does in a cluster."""

    token: str
    kubeconfig: Path

    def write(self, directory: Path) -> dict[str, str]:
        """Put the files there; the environment that goes with them."""
        directory.mkdir(parents=True, exist_ok=True)
        cluster = yaml.safe_load(self.kubeconfig.read_text())["clusters"][0]["cluster"]
        if "certificate-authority-data" in cluster:
            (directory / "ca.crt").write_bytes(base64.b64decode(cluster["certificate-authority-data"]))
        else:
            (directory / "ca.crt").write_bytes((self.kubeconfig.parent / cluster["certificate-authority"]).read_bytes())
        (directory / "token").write_text(self.token)
        address = urlsplit(cluster["server"])
        return {"KUBERNETES_SERVICE_HOST": address.hostname or "", "KUBERNETES_SERVICE_PORT": str(address.port)}


class Node:
    """`base` is a short directory with a name of its own, on a real disk: socket paths are limited, appends cost.

    What a real node has in memory lies in memory here: the CDI directory, and the driver's files below /proc and /dev.
    """

    def __init__(
        self,
        name: str,
        base: Path,
        profile: str,
        kubeconfig: Path,
        account: ServiceAccount | None,
        driver: str = DRIVER,
    ) -> None:
        self.name = name
        self.base = base
        self._memory = _MEMORY / base.name
        self.driver_root = self._memory / "driver"
        self.registry = base / "registry"
        self.plugins = base / "plugins"
        self.cdi = self._memory / "cdi"
        self.log = base / "plugin.log"
        self.http_port = _free_port()
        self.driver = driver
        self.kubeconfig = kubeconfig
        self._account = account
        self._process: subprocess.Popen[bytes] | None = None
        self._output: IO[bytes] | None = None
        self._stale: Path | None = None
        base.mkdir(parents=True, exist_ok=True)
        self._memory.mkdir(parents=True, exist_ok=True)
        install = [sys.executable, "-m", "simulator", "install", "--root", str(self.driver_root)]
        subprocess.run([*install, "--profile", profile, "--node", name], check=True, stdout=subprocess.DEVNULL)

    @property
    def registration_socket(self) -> Path:
        return self.find_registration(self.driver)

    def find_registration(self, driver: str) -> Path:
        """The newest socket, whose name differs at every start; where there is none, a path that does not exist."""
        found: list[tuple[int, Path]] = []
        for path in self.registry.glob(f"{driver}-*reg.sock"):
            with contextlib.suppress(FileNotFoundError):  # a starting plugin removes what a killed one left
                found.append((path.stat().st_ctime_ns, path))
        return max(found)[1] if found else self.registry / f"{driver}-reg.sock"

    @property
    def journal(self) -> Path:
        return self.plugins / self.driver / "claims.journal"

    def start(self, **environment: str) -> None:
        """Start the plugin; returns at once."""
        self._stale = self.registration_socket
        for directory in (self.registry, self.plugins, self.cdi):
            directory.mkdir(parents=True, exist_ok=True)
        own = {
            "NODE_NAME": self.name,
            "DRIVER_ROOT": str(self.driver_root),
            "CDI_ROOT": str(self.cdi),
            "KUBELET_REGISTRAR_DIRECTORY_PATH": str(self.registry),
            "KUBELET_PLUGINS_DIRECTORY_PATH": str(self.plugins),
            "HTTP_ENDPOINT": f"127.0.0.1:{self.http_port}",
            "DRIVERS": self.driver,
            "PYTHONPATH": str(ROOT),
        }
        command = [sys.executable, "-m", "kubeletplugin"]
        if self._account is None:
            own["KUBECONFIG"] = str(self.kubeconfig)
        else:
            own |= self._account.write(self.base / "account")
            command = _with_secrets(self.base / "account", command)
        self._output = self.log.open("ab")
        self._process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**_plain_environment(), **own, **environment},
            stdout=self._output,
            stderr=self._output,
        )

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    async def wait_until_registered(self, timeout_s: float = 20.0) -> None:
        """Until the registration socket is there, which means that the plugin serves."""
        deadline_s = time.monotonic() + timeout_s
        while self.registration_socket == self._stale or not self.registration_socket.exists():
            if self._process is not None and self._process.poll() is not None:
                raise RuntimeError(f"the plugin ended with {self._process.returncode}:\n{self.tail()}")
            if time.monotonic() > deadline_s:
                raise TimeoutError(f"no socket after {timeout_s} s:\n{self.tail()}")
            await asyncio.sleep(0.005)

    def end(self, number: int = signal.SIGTERM, timeout_s: float = 15.0) -> int:
        """Signal the plugin and wait; its exit code."""
        assert self._process is not None
        if self._process.poll() is None:
            self._process.send_signal(number)
        return self.wait(timeout_s)

    def wait(self, timeout_s: float = 15.0) -> int:
        """Until the plugin has ended by itself; its exit code."""
        assert self._process is not None
        try:
            return self._process.wait(timeout_s)
        finally:
            if self._output is not None:
                self._output.close()

    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def tail(self, lines: int = 15) -> str:
        return "\n".join(self.log.read_text().splitlines()[-lines:])

    def cpu_s(self) -> float:
        return cpu_s(self.pid)

    def rss_mib(self) -> float:
        return memory_mib(self.pid)

    def threads(self) -> int:
        return len(list(Path(f"/proc/{self.pid}/task").iterdir()))

    def remove(self) -> None:
        if self.is_running():
            self.end(signal.SIGKILL)
        shutil.rmtree(self.base, ignore_errors=True)
        shutil.rmtree(self._memory, ignore_errors=True)


def _with_secrets(account: Path, command: list[str]) -> list[str]:
    """In a mount namespace of its own, where the service account's files lie where pods have them."""
    Path(_SECRETS).mkdir(parents=True, exist_ok=True)
    script = f'mount --bind "$1" {_SECRETS} && shift && exec "$@"'
    return ["unshare", "--mount", "sh", "-c", script, "sh", str(account), *command]


def _plain_environment() -> Mapping[str, str]:
    kept = ("PATH", "HOME", "LANG", "TMPDIR")
    return {name: os.environ[name] for name in kept if name in os.environ}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
