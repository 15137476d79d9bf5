"""A host with a simulated IMEX daemon on it: a network namespace, a configuration and a process."""

import ctypes
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simulator.layout import LAYOUT, MAGIC, State, write_new

CONFIG = {
    "LOG_LEVEL": "4",
    "DAEMONIZE": "0",
    "SERVER_PORT": "50000",
    "IMEX_WAIT_FOR_QUORUM": "RECOVERY",
    "IMEX_ENABLE_AUTH_ENCRYPTION": "0",
    "IMEX_CMD_ENABLED": "1",
    "IMEX_CMD_PORT": "50005",
    "IMEX_NODE_DISCONNECTED_GRACE_TIME": "-1",
}


def wait_until(condition: Callable[[], bool], limit_s: float = 60.0) -> None:
    """Wait for the world to become so; a generous limit, since nothing here measures time."""
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {limit_s} s"
        time.sleep(0.05)


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


@dataclass
class Host:
    """One host: a namespace `name` with `address` on the bridge, and a daemon at most."""

    name: str
    address: str
    folder: Path
    programs: Path
    daemon: subprocess.Popen[bytes] | None = None

    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "IMEX_SIMULATOR_HOSTS": str(self.folder / "hosts"),
            "IMEX_SIMULATOR_STATE": str(self.folder / "state"),
        }

    def write(self, file: str, text: str) -> None:
        (self.folder / file).write_text(text)

    def inject(self, **delays_ms: int) -> None:
        """Exactly these faults from now on: `inject(hang=0)`, `inject(slow=5000)`, `inject()`."""
        state = State()
        state.magic, state.layout, state.size = MAGIC, LAYOUT, ctypes.sizeof(State)
        for fault, (name, delay_ms) in zip(state.faults, delays_ms.items(), strict=False):
            fault.function, fault.delay_us = f"imex-{name.replace('_', '-')}".encode(), delay_ms * 1000
        write_new(self.folder / "state", b"", state)

    def configure(self, nodes: list[str], **settings: str) -> None:
        self.write("nodes.cfg", "".join(f"{node}\n" for node in nodes))
        files = {"IMEX_NODE_CONFIG_FILE": str(self.folder / "nodes.cfg"), "IMEX_CMD_BIND_INTERFACE_IP": self.address}
        config = {**CONFIG, **files, **settings}
        self.write("imexd.cfg", "".join(f"{key}={value}\n" for key, value in config.items()))

    def command(self, program: str, *arguments: str) -> list[str]:
        config = ["-c", str(self.folder / "imexd.cfg")]
        return ["ip", "netns", "exec", self.name, str(self.programs / program), *config, *arguments]

    def start(self) -> subprocess.Popen[bytes]:
        with (self.folder / "log").open("ab") as log:
            self.daemon = subprocess.Popen(self.command("nvidia-imex"), env=self.environment(), stderr=log)
        return self.daemon

    def signal(self, number: signal.Signals) -> None:
        assert self.daemon is not None
        self.daemon.send_signal(number)

    def stop(self) -> None:
        if self.daemon is not None and self.daemon.poll() is None:
            self.daemon.kill()
            self.daemon.wait()

    def ctl(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = self.command("nvidia-imex-ctl", *arguments)
        return subprocess.run(command, env=self.environment(), capture_output=True, text=True, check=False)

    def domain(self) -> dict[str, Any]:
        result: dict[str, Any] = json.loads(self.ctl("-N", "-j", "-H").stdout)
        return result

    def links(self) -> list[str]:
        """What this host's daemon says about its connections, by node index."""
        for index, node in self.domain()["nodes"].items():
            if node["status"] != "UNAVAILABLE" and node["connections"][index]["host"] == self.address:
                return [node["connections"][str(other)]["status"] for other in range(len(node["connections"]))]
        return []

    def log(self) -> str:
        return (self.folder / "log").read_text()
