"""A control plane prepared for ComputeDomains: the chart's objects, nodes without kubelets, and the controller itself.

`Kubelets` does to pods what kubelets and node plugins would do: it gives them addresses, says that they run, and lets
them end. Everything else (API server, scheduler, controller manager, our controller) is real.
"""

import base64
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from api.clique import KEY_ATTRIBUTE
from kubeletplugin.model.channels import Attached, NoFabric, build_domain_devices
from kubeletplugin.model.devices import Features
from tests.support.cluster import ROOT, ApiError, Cluster, Object, path, wait_until
from tests.support.playing import play

CHART = ROOT / "deployments" / "helm" / "partita"
NAMESPACE = "cd-system"
RELEASE = "cd"
UID_LABEL = "resource.nvidia.com/computeDomain"
DOMAINS = "resource.nvidia.com/v1beta1"
WRITING_VERBS = ("create", "update", "patch", "delete", "deletecollection")
FABRIC = "11111111-2222-3333-4444-555555555555"


def install(cluster: Cluster, namespace: str = NAMESPACE) -> None:
    """CRDs, DeviceClasses and the rights of our programs, as the chart has them; no workloads."""
    for file in sorted((CHART / "crds").glob("computedomain*.yaml")):
        cluster.apply(file.read_text())
    policies = ("admission-configs", "admission-daemons", "admission-daemonpods")
    names = ("controller-rbac", "controller-imexdaemon", "deviceclasses", *policies)
    shown = [word for name in names for word in ("--show-only", f"templates/{name}.yaml")]
    enabled = [
        "resources.computeDomains.enabled=true",
        "resources.computeDomains.bindingConditions=true",
        "resources.computeDomains.gpuCliqueLabelEnabled=true",
        "resources.amd.enabled=true",
        "controller.enabled=true",
    ]
    flags = [word for value in enabled for word in ("--set", value)]
    rendered = cluster.helm("template", RELEASE, str(CHART), "--namespace", namespace, *shown, *flags)
    cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})
    cluster.apply(rendered)


def make_node(cluster: Cluster, name: str, clique: str | None, *, binding: bool = False) -> None:
    """A Node with what the plugin of `compute-domain.nvidia.com` publishes for it; None: no NVLink fabric."""
    node = {"metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}}}
    if cluster.find(path("v1", "nodes", name=name)) is None:
        cluster.create(path("v1", "nodes"), node)
    resources = {"cpu": "64", "memory": "512Gi", "pods": "110"}
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    ready = {"type": "Ready", "status": "True", "reason": "KubeletReady", "lastHeartbeatTime": now}
    status = {"capacity": resources, "allocatable": resources, "conditions": [ready]}
    cluster.patch(path("v1", "nodes", name=name) + "/status", {"status": status})
    publish(cluster, name, clique, binding=binding)


def make_public_key() -> str:
    """As a node publishes it. Nobody needs the private half: the daemons of these nodes are played."""
    x962, compressed = serialization.Encoding.X962, serialization.PublicFormat.CompressedPoint
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    return base64.b64encode(key.public_bytes(x962, compressed)).decode()


def publish(cluster: Cluster, node: str, clique: str | None, *, binding: bool = False, key: str | None = None) -> None:
    """Replace the node's ResourceSlice; with another public key, unless that is given. An empty one is none."""
    fabric = Attached(clique, FABRIC) if clique else NoFabric()
    offered = build_domain_devices(fabric, Features(), binding=binding)
    devices = [device for group in offered.groups for device in group.devices]
    public = make_public_key() if key is None else key
    if clique and public:
        (daemon,) = [device for device in devices if device["name"] == "daemon-0"]
        daemon["attributes"][KEY_ATTRIBUTE] = {"string": public}
    body = {
        "apiVersion": "resource.k8s.io/v1",
        "kind": "ResourceSlice",
        "metadata": {"name": f"{node}-compute-domain"},
        "spec": {
            "driver": "compute-domain.nvidia.com",
            "nodeName": node,
            "pool": {"name": node, "generation": 1, "resourceSliceCount": 1},
            "devices": devices,
        },
    }
    where = path("resource.k8s.io/v1", "resourceslices", name=f"{node}-compute-domain")
    stored = cluster.find(where)
    if stored is None:
        cluster.create(path("resource.k8s.io/v1", "resourceslices"), body)
    else:
        body["spec"]["pool"]["generation"] = stored["spec"]["pool"]["generation"] + 1  # type: ignore[index]
        body["metadata"]["resourceVersion"] = stored["metadata"]["resourceVersion"]  # type: ignore[index]
        cluster.request("PUT", where, body)


def build_domain(name: str, nodes: int, **channel: Any) -> Object:
    template = {"resourceClaimTemplate": {"name": f"{name}-channel"}}
    return {
        "apiVersion": DOMAINS,
        "kind": "ComputeDomain",
        "metadata": {"name": name},
        "spec": {"numNodes": nodes, "channel": {**template, **channel}},
    }


def build_worker(name: str, domain: str, node: str) -> Object:
    container = {"name": "main", "image": "busybox:dev", "resources": {"claims": [{"name": "channel"}]}}
    return {
        "metadata": {"name": name},
        "spec": {
            "nodeSelector": {"kubernetes.io/hostname": node},
            "tolerations": [{"operator": "Exists"}],
            "terminationGracePeriodSeconds": 1,
            "containers": [container],
            "resourceClaims": [{"name": "channel", "resourceClaimTemplateName": f"{domain}-channel"}],
        },
    }


@dataclass
class Kubelets:
    """Plays every kubelet of the cluster, from a thread. Pods in `frozen` get no attention."""

    cluster: Cluster
    frozen: set[str] = field(default_factory=set)
    ready: bool = True
    """Whether daemons become ready (connected to their peers)."""
    _stop: threading.Event = field(default_factory=threading.Event)
    _serial: int = 0

    def run(self) -> None:
        while not self._stop.wait(0.05):
            try:
                for pod in self.cluster.list(path("v1", "pods")):
                    if pod["metadata"]["name"] not in self.frozen:
                        self._attend(pod)
            except (ApiError, OSError):
                continue  # conflicts with deletions, and API servers that are killed, are part of the play

    def stop(self) -> None:
        self._stop.set()

    def _attend(self, pod: Object) -> None:
        metadata, status = pod["metadata"], pod.get("status", {})
        where = path("v1", "pods", namespace=metadata["namespace"], name=metadata["name"])
        if "nodeName" not in pod["spec"]:
            return
        if "deletionTimestamp" in metadata:
            self.cluster.delete(where, gracePeriodSeconds=0)
            return
        is_daemon = UID_LABEL in metadata.get("labels", {})
        wanted_ready = self.ready or not is_daemon
        conditions = {each["type"]: each["status"] for each in status.get("conditions", ())}
        if status.get("phase") == "Running" and (conditions.get("Ready") == "True") == wanted_ready:
            return
        self._serial += 1
        address = status.get("podIP") or f"10.244.{self._serial // 250}.{self._serial % 250 + 1}"
        container = pod["spec"]["containers"][0]
        state = {
            "name": container["name"],
            "image": container["image"],
            "imageID": "",
            "ready": wanted_ready,
            "restartCount": 0,
            "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}},
        }
        first = status.get("phase") != "Running"
        ready = wanted_ready and not first
        changed = {
            "phase": "Running",
            "podIP": address,
            "podIPs": [{"ip": address}],
            "containerStatuses": [{**state, "ready": ready}],
            "conditions": [
                {"type": "PodScheduled", "status": "True"},
                {"type": "Ready", "status": "True" if ready else "False"},
            ],
        }
        self.cluster.patch(where + "/status", {"status": changed})


def playing_kubelets(cluster: Cluster) -> AbstractContextManager[Kubelets]:
    return play(Kubelets(cluster))


def write_kubeconfig(cluster: Cluster, account: str, namespace: str, file: Path) -> None:
    """For the identity of a service account."""
    token = cluster.kubectl("create", "token", account, "--namespace", namespace).strip()
    config = yaml.safe_load(cluster.kubeconfig.read_text())
    config["users"][0]["user"] = {"token": token}
    file.write_text(yaml.safe_dump(config))


@dataclass(frozen=True)
class Write:
    """One request, as the API server logged it."""

    verb: str
    uri: str
    code: int
    text: str


@dataclass
class Controller:
    """`partita-controller` as a process, with the rights that the chart gives it and no others."""

    cluster: Cluster
    log: Path
    namespace: str = NAMESPACE
    options: dict[str, str] = field(default_factory=dict)
    _process: subprocess.Popen[bytes] | None = None

    def start(self) -> "Controller":
        kubeconfig = self.log.with_suffix(".kubeconfig")
        write_kubeconfig(self.cluster, f"{RELEASE}-partita-controller", self.namespace, kubeconfig)
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "KUBECONFIG": str(kubeconfig),
            "POD_NAME": f"controller-{uuid4().hex[:6]}",
            "POD_NAMESPACE": self.namespace,
            "LEASE_NAME": f"{RELEASE}-partita-controller",
            "DAEMON_SERVICE_ACCOUNT": f"{RELEASE}-partita-imex-daemon",
            "HTTP_ENDPOINT": "127.0.0.1:0",
            **self.options,
        }
        with self.log.open("ab") as log:
            command = [sys.executable, "-m", "controller"]
            self._process = subprocess.Popen(command, env=environment, stderr=log, cwd=ROOT)
        return self

    @contextmanager
    def leading(self) -> Iterator["Controller"]:
        """While it leads; it must end well, and ends in any case: one that is left over would keep the Lease."""
        try:
            self.start().wait_leading()
            yield self
            assert self.stop() == 0
        finally:
            self.stop(signal.SIGKILL)

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        """Its exit status."""
        self.signal(how)
        return self.wait()

    def signal(self, how: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(how)

    def wait(self) -> int:
        """Its exit status."""
        if self._process is None:
            return 0
        status = self._process.wait(30)
        self._process = None
        return status

    def writes(self) -> list[Write]:
        """What the API server's audit log has of this controller's account: every write, the oldest first."""
        account = f"system:serviceaccount:{self.namespace}:{RELEASE}-partita-controller"
        found = []
        for line in (self.cluster.state / "logs" / "audit.log").read_text().splitlines():
            entry = json.loads(line)
            if entry["user"]["username"] != account or entry["stage"] != "ResponseComplete":
                continue
            if entry["verb"] in WRITING_VERBS and entry["objectRef"]["resource"] not in ("events", "leases"):
                found.append(Write(entry["verb"], entry["requestURI"], entry["responseStatus"]["code"], line))
        return found

    def wait_standing_by(self) -> None:
        wait_until("the controller has seen who leads", lambda: '"standing_by"' in self.log.read_text())

    def wait_leading(self) -> None:
        wait_until("the controller leads", lambda: '"caches_filled"' in self.log.read_text())
