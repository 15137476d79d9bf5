"""A control plane prepared for node partitioning: the chart's objects, and Nodes without kubelets.

`Plugins` plays what runs on the nodes: it says that they live, shows their GPUs, and answers targets.
"""

import json
import threading
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime

from api.kaiwo import (
    CONFIG_MAP_NAME,
    CONFIG_MAP_NAMESPACE,
    REPORT_ANNOTATION,
    TARGET_ANNOTATION,
)
from tests.support.cluster import ApiError, Cluster, Object, path
from tests.support.computedomain import CHART, NAMESPACE, RELEASE
from tests.support.kaiwo_node import KaiwoNode
from tests.support.playing import play

CRD = (CHART / "crds" / "kaiwonodes.kaiwo.silogen.ai.yaml").read_text()
MODES = ("spx_nps1", "cpx_nps4")
GPUS = ("0000:05:00.0", "0000:27:00.0")
SLICES = path("resource.k8s.io/v1", "resourceslices")
_BEAT_EVERY = 100  # looks; the control plane forgets a node after 40 s


def install(cluster: Cluster) -> None:
    """The CRD, the controller's rights and what holds them, as the chart has them; profiles for any number of GPUs."""
    cluster.apply(CRD)
    names = ("controller-rbac", "controller-nodepartitioning", "controller-admission-workloads")
    shown = [word for name in names for word in ("--show-only", f"templates/{name}.yaml")]
    enabled = ["resources.amd.enabled=true", "controller.enabled=true", "controller.nodePartitioning.enabled=true"]
    flags = [word for value in enabled for word in ("--set", value)]
    cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
    cluster.apply(cluster.helm("template", RELEASE, str(CHART), "--namespace", NAMESPACE, *shown, *flags))
    choices = {"spx": ("SPX", "NPS1"), "cpx": ("CPX", "NPS4")}
    profiles = {
        name: {"profiles": [{"computePartition": compute, "memoryPartition": memory}]}
        for name, (compute, memory) in choices.items()
    }
    config = json.dumps({"gpu-config-profiles": profiles})
    metadata = {"name": CONFIG_MAP_NAME, "namespace": CONFIG_MAP_NAMESPACE}
    cluster.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"config.json": config}})


class Node(KaiwoNode):
    def labels(self) -> dict[str, str]:
        found: dict[str, str] = self.cluster.get(self.where)["metadata"].get("labels", {})
        return found

    def annotations(self) -> dict[str, str]:
        found: dict[str, str] = self.cluster.get(self.where)["metadata"].get("annotations", {})
        return found


@dataclass
class Plugins:
    cluster: Cluster
    modes: dict[str, str] = field(default_factory=dict)
    """By node; both GPUs are in it. A node that is not here shows no GPUs."""
    on_claim: set[str] = field(default_factory=set)
    silent: set[str] = field(default_factory=set)
    """Nodes whose targets are not answered."""
    _looks: int = 0
    _stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        while not self._stop.wait(0.1):
            try:
                for node in self.cluster.list(path("v1", "nodes")):
                    self._attend(node)
            except (ApiError, OSError):
                continue  # somebody else wrote first
            self._looks += 1

    def stop(self) -> None:
        self._stop.set()

    def _attend(self, node: Object) -> None:
        name, annotations = node["metadata"]["name"], node["metadata"].get("annotations", {})
        if self._looks % _BEAT_EVERY == 0:
            self._beat(name)
        target = json.loads(annotations.get(TARGET_ANNOTATION, "null"))
        if target and name in self.modes and name not in self.silent:
            self.modes[name] = target["modes"][0]
        if name in self.modes:
            self._publish(name, MODES if name in self.on_claim and not target else (self.modes[name],))
        report = json.loads(annotations.get(REPORT_ANNOTATION, "null"))
        if target and name not in self.silent and (report is None or report["id"] != target["id"]):
            answer = {"id": target["id"], "state": "success", "modes": [self.modes[name]] * len(GPUS)}
            body = {"metadata": {"annotations": {REPORT_ANNOTATION: json.dumps(answer)}}}
            self.cluster.patch(path("v1", "nodes", name=name), body)

    def _beat(self, name: str) -> None:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        ready = {"type": "Ready", "status": "True", "reason": "KubeletReady", "lastHeartbeatTime": now}
        resources = {"cpu": "64", "memory": "512Gi", "pods": "110"}
        status = {"capacity": resources, "allocatable": resources, "conditions": [ready]}
        self.cluster.patch(path("v1", "nodes", name=name) + "/status", {"status": status})

    def _publish(self, name: str, modes: tuple[str, ...]) -> None:
        devices = [
            {
                "name": f"gpu-{number}-{mode.replace('_', '-')}",
                "attributes": {
                    "partitionProfile": {"string": mode},
                    "resource.kubernetes.io/pciBusID": {"string": gpu},
                    **({"isPresent": {"bool": True}} if len(modes) > 1 and mode == self.modes[name] else {}),
                },
                "capacity": {"memory": {"value": "192Gi"}},
            }
            for number, gpu in enumerate(GPUS)
            for mode in modes
        ]
        where = f"{SLICES}/{name}-amd"
        stored = self.cluster.find(where)
        if stored is not None and stored["spec"]["devices"] == devices:
            return
        generation = stored["spec"]["pool"]["generation"] + 1 if stored else 1
        pool = {"name": name, "generation": generation, "resourceSliceCount": 1}
        spec = {"driver": "gpu.amd.com", "nodeName": name, "pool": pool, "devices": devices}
        body: Object = {"apiVersion": "resource.k8s.io/v1", "kind": "ResourceSlice", "metadata": {}, "spec": spec}
        body["metadata"] = {"name": f"{name}-amd"}
        if stored is None:
            self.cluster.create(SLICES, body)
        else:
            body["metadata"]["resourceVersion"] = stored["metadata"]["resourceVersion"]
            self.cluster.request("PUT", where, body)


def playing_plugins(cluster: Cluster) -> AbstractContextManager[Plugins]:
    return play(Plugins(cluster))
