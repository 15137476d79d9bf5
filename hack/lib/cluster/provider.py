"""What every kind of cluster can do, and which kind a name stands for."""

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cluster.report import ClusterError
from cluster.shape import Shape

SERVICES = ("containerd", "kubelet", "kube-proxy")
COMPONENTS = ("etcd", "apiserver", "scheduler", "controller-manager")
SERVICE_FAULTS = {
    "kill": "SIGKILL a service of a node or a component of the control plane",
    "start": "start it again",
    "pause": "SIGSTOP a service of a node",
    "resume": "SIGCONT it",
}
NODE_FAULTS = {
    "cut": "unplug a node's network",
    "heal": "plug it in again",
    "freeze": "stop every process of a node",
    "thaw": "let them run again",
    "poweroff": "everything in the node dies at once, its disk stays",
    "poweron": "boot it again",
}


@dataclass(frozen=True, slots=True)
class Fault:
    """`verb` is a key of NODE_FAULTS, or of SERVICE_FAULTS: then `what` names the service or component.

    `where` is a node, or control-plane.
    """

    verb: str
    where: str
    what: str = ""


class Provider(Protocol):
    """`state` is the cluster's folder; its kubeconfig lies there under that name."""

    def up(self, state: Path, shape: Shape) -> None: ...
    def down(self, state: Path) -> None: ...
    def status(self, state: Path) -> str: ...
    def log(self, state: Path, where: str, what: str) -> str: ...
    def command_in(self, state: Path, node: str, command: Sequence[str]) -> list[str]: ...
    def load(self, state: Path, archive: Path) -> None: ...
    def disturb(self, state: Path, fault: Fault) -> None: ...


def check_known(what: str, known: Sequence[str]) -> None:
    if what not in known:
        raise ClusterError(f"there is no {what!r} there; known: {', '.join(known)}")


def docker_answers() -> bool:
    try:
        return subprocess.run(["docker", "info"], capture_output=True, timeout=10, check=False).returncode == 0
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return False


def read_provider(state: Path) -> str | None:
    """The provider of the cluster that lies there; None: there is none."""
    try:
        return (state / "provider").read_text()
    except FileNotFoundError:
        return None


def write_provider(state: Path, name: str) -> None:
    state.mkdir(parents=True, exist_ok=True)
    (state / "provider").write_text(name)


def run(command: Sequence[str | Path], text: str | None = None) -> str:
    """Its standard output; a failure says what it said."""
    try:
        done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise ClusterError(f"this needs the command {command[0]!r}") from error
    if done.returncode != 0:
        said = done.stderr.strip() or done.stdout.strip()
        raise ClusterError(f"`{' '.join(map(str, command))}` failed: {said}")
    return done.stdout
