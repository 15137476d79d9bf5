"""The node plugin as a plain process of one node: quick to kill, stop, start and look into, unlike a pod."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.cluster import CACHE, ROOT, Cluster, wait_until

BARE_NODE = "n1"
FABRIC_NODE = "n2"
SPARE_NODES = ("n3", "n4")
DRIVER_ROOT = "/run/nvidia/driver"
PYTHON = CACHE / "venv" / "bin" / "python"


@dataclass
class NodePlugin:
    """`python -m kubeletplugin` in a node of a local cluster, with the simulated driver root of that node."""

    cluster: Cluster
    node: str
    environment: dict[str, str] = field(default_factory=dict)
    _starts: int = 0
    _mark: int = 0
    _process: subprocess.Popen[bytes] | None = None

    @property
    def _pid_file(self) -> str:
        return f"/run/partita-{self.environment.get('POD_UID', 'plugin')}.pid"

    @property
    def log_file(self) -> Path:
        return self.cluster.state / f"plugin-{self.node}-{self.environment.get('POD_UID', 'plain')}-{self._starts}.log"

    def start(self, **environment: str) -> None:
        """Begin a run; its log is a file of its own. `environment` is added for this run only."""
        self._starts += 1
        self._mark = 0
        values = {
            "NODE_NAME": self.node,
            "DRIVER_ROOT": DRIVER_ROOT,
            "KUBECONFIG": str(self.cluster.kubeconfig),
            "PYTHONPATH": str(ROOT),
            "DRIVERS": "gpu.nvidia.com",
            "LOG_LEVEL": "INFO",
            **self.environment,
            **environment,
        }
        script = f"echo $$ > {self._pid_file}; exec {PYTHON} -m kubeletplugin"
        command = self.cluster.command(
            "exec", self.node, "--", "env", *(f"{key}={value}" for key, value in values.items()), "sh", "-c", script
        )
        with self.log_file.open("wb") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def signal(self, name: str) -> None:
        """`KILL`, `TERM`, `STOP`, `CONT`."""
        self.cluster.in_node(self.node, "sh", "-c", f"kill -{name} $(cat {self._pid_file})")
        if name in ("CONT", "KILL") and self._process is not None:
            # nsenter stops itself when its child is stopped, and must be woken to see that it goes on or has ended.
            os.killpg(self._process.pid, signal.SIGCONT)

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """It stands still (SIGSTOP) within, and goes on afterwards whatever fails."""
        self.signal("STOP")
        try:
            yield
        finally:
            self.signal("CONT")

    def wait_ended(self) -> int:
        assert self._process is not None
        code = self._process.wait(timeout=60)
        self._process = None
        return code

    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def ensure(self) -> None:
        """Running and registered, whatever happened to it."""
        if not self.is_running():
            self.kill()
            self.start()
            self.wait_registered()

    def restart(self, **environment: str) -> None:
        """Kill it, and start it with these variables for this run."""
        self.kill()
        self.start(**environment)

    def kill(self) -> None:
        """SIGKILL, wherever it is."""
        if self._process is None:
            return
        if self._process.poll() is None:
            self.signal("KILL")
        self.wait_ended()

    def stop(self) -> None:
        """SIGTERM, and wait for its end."""
        self.signal("TERM")
        self.wait_ended()

    def mark(self) -> None:
        """Forget what this run has logged so far."""
        self._mark = self.log_file.stat().st_size

    def lines(self) -> list[dict[str, Any]]:
        """The log of the latest run since `mark`, as far as it is JSON."""
        if not self.log_file.exists():
            return []
        text = self.log_file.read_bytes()[self._mark :].decode(errors="replace")
        return [json.loads(line) for line in text.splitlines() if line.startswith("{") and line.endswith("}")]

    def logged(self, message: str, **fields: Any) -> list[dict[str, Any]]:
        return [line for line in self.lines() if line.get("msg") == message and fields.items() <= line.items()]

    def wait_logged(self, message: str, patience_s: float = 60.0, count: int = 1, **fields: Any) -> dict[str, Any]:
        def found() -> dict[str, Any] | None:
            hits = self.logged(message, **fields)
            return hits[count - 1] if len(hits) >= count else None

        try:
            return wait_until(f"the plugin on {self.node} logs {message!r} {count} times", found, patience_s)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log_file.read_text(errors='replace')[-4000:]}") from error

    def wait_registered(self, count: int = 1) -> None:
        self.wait_logged("registered", count=count)

    @contextmanager
    def running(self, **environment: str) -> Iterator["NodePlugin"]:
        """Registered within; killed afterwards."""
        self.start(**environment)
        try:
            self.wait_registered()
            yield self
        finally:
            self.kill()
