"""A cluster for the figures of ComputeDomains: the chart's rights on it, the controller as a process, the audit log."""

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO, Any

import yaml
from paths import ROOT, state_dir

from bench.process import cpu_s, memory_mib

CHART = ROOT / "deployments/helm/partita"
NAMESPACE = "partita-system"
RELEASE = "partita"
CONTROLLER = f"system:serviceaccount:{NAMESPACE}:{RELEASE}-controller"
OURS = f"system:serviceaccount:{NAMESPACE}:"
WRITES = frozenset({"create", "update", "patch", "delete", "deletecollection"})
_COMPONENTS = ("etcd", "kube-apiserver", "kube-scheduler", "kube-controller-manager")
_RIGHTS = ("controller-rbac", "controller-imexdaemon", "deviceclasses", "admission-configs", "admission-daemons")


@dataclass(frozen=True, slots=True)
class Request:
    """One line of the audit log. `at` is when it was answered, in seconds since the epoch."""

    at: float
    user: str
    verb: str
    resource: str
    subresource: str
    namespace: str
    code: int

    @property
    def writes(self) -> bool:
        """Events and leases do not count: they come by the clock, not by the work."""
        return self.verb in WRITES and self.resource not in ("events", "leases")


class BenchCluster:
    """One of hack/cluster, by name."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.state = state_dir(name)
        self.kubeconfig = self.state / "kubeconfig"

    def run(self, *arguments: str, text: str | None = None) -> str:
        command = [str(ROOT / "hack/cluster"), "--name", self.name, *arguments]
        return subprocess.run(command, check=True, input=text, text=True, stdout=subprocess.PIPE).stdout

    def up(self, *options: str) -> None:
        self.run("up", "--audit", *options)

    def down(self) -> None:
        self.run("down")

    def apply(self, manifest: str) -> None:
        self.run("kubectl", "apply", "--server-side", "--force-conflicts", "-f", "-", text=manifest)

    def install_rights(self) -> None:
        """CRDs, classes and the accounts of our programs as the chart has them, without its workloads."""
        self.apply(yaml.safe_dump({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}))
        for file in sorted((CHART / "crds").glob("computedomain*.yaml")):
            self.apply(file.read_text())
        shown = [word for name in _RIGHTS for word in ("--show-only", f"templates/{name}.yaml")]
        enabled = ("--set", "resources.computeDomains.enabled=true,controller.enabled=true")
        self.apply(self.run("helm", "template", RELEASE, str(CHART), "--namespace", NAMESPACE, *shown, *enabled))

    def requests(self, offset: int) -> list[Request]:
        """What the audit log has from this offset on."""
        with self.audit_log.open("rb") as log:
            log.seek(offset)
            lines = log.read().split(b"\n")[:-1]
        return [_parse(json.loads(line)) for line in lines]

    def install_driver(self, root: Path) -> None:
        """A simulated driver root with IMEX."""
        install = [sys.executable, "-m", "simulator", "install", "--root", str(root), "--profile", "gb200"]
        subprocess.run(install, check=True, stdout=subprocess.DEVNULL)

    def cpu_s(self) -> dict[str, float]:
        """Of each component of the control plane, since it started."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                words = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
                if any(str(self.state) in word for word in words[1:]) and Path(words[0]).name in _COMPONENTS:
                    found[Path(words[0]).name] = cpu_s(int(folder.name))
        return found

    @property
    def audit_log(self) -> Path:
        return self.state / "logs/audit.log"

    def audit_offset(self) -> int:
        return self.audit_log.stat().st_size


def _parse(entry: dict[str, Any]) -> Request:
    about = entry.get("objectRef") or {}
    return Request(
        at=datetime.fromisoformat(entry["stageTimestamp"]).timestamp(),
        user=entry["user"].get("username", ""),
        verb=entry["verb"],
        resource=about.get("resource", ""),
        subresource=about.get("subresource", ""),
        namespace=about.get("namespace", ""),
        code=(entry.get("responseStatus") or {}).get("code", 0),
    )


def count_refused(requests: Sequence[Request]) -> dict[str, int]:
    """409 and 429 by who was refused."""
    refused = Counter(f"{each.code} {short_user(each.user)}" for each in requests if each.code in (409, 429))
    return dict(sorted(refused.items()))


def short_user(user: str) -> str:
    return user.removeprefix("system:serviceaccount:").removeprefix("system:")


class Controller:
    """`partita-controller` as a process, with the rights of the chart."""

    def __init__(self, cluster: BenchCluster, base: Path) -> None:
        self._cluster = cluster
        self._base = base
        self._process: subprocess.Popen[bytes] | None = None
        self._output: IO[bytes] | None = None
        self.log = base / "controller.log"

    def start(self) -> None:
        token = self._cluster.run(
            "kubectl", "create", "token", f"{RELEASE}-controller", "--namespace", NAMESPACE, "--duration", "4h"
        )
        config = yaml.safe_load(self._cluster.kubeconfig.read_text())
        config["users"][0]["user"] = {"token": token.strip()}
        kubeconfig = self._base / "controller.kubeconfig"
        kubeconfig.write_text(yaml.safe_dump(config))
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "KUBECONFIG": str(kubeconfig),
            "POD_NAME": "bench",
            "POD_NAMESPACE": NAMESPACE,
            "LEASE_NAME": f"{RELEASE}-controller",
            "DAEMON_SERVICE_ACCOUNT": f"{RELEASE}-imex-daemon",
            "HTTP_ENDPOINT": "127.0.0.1:0",
        }
        self._output = self.log.open("ab")
        command = [sys.executable, "-m", "controller"]
        self._process = subprocess.Popen(command, env=environment, stdout=self._output, stderr=self._output, cwd=ROOT)

    async def leads(self) -> bool:
        if self._process is not None and self._process.poll() is not None:
            raise RuntimeError(f"the controller ended:\n{self.log.read_text()[-2000:]}")
        return '"caches_filled"' in self.log.read_text()

    def cpu_s(self) -> float:
        return cpu_s(self._pid)

    def rss_mib(self) -> float:
        return memory_mib(self._pid)

    def peak_mib(self) -> float:
        return memory_mib(self._pid, "VmHWM")

    @property
    def _pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(30)
        if self._output is not None:
            self._output.close()
