"""One node with a plugin under a real kubelet: the handful of things that its tests do again and again."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from tests.support.cluster import Cluster, Object, path, wait_until
from tests.support.hardware import Simulator
from tests.support.manifests import claim_template, gpu_request, mig_request, pod
from tests.support.plugin import NodePlugin

RETRY_S = 120.0
RESOURCE_API = "resource.k8s.io/v1"


@dataclass
class Bench:
    """Pods and claims of one namespace on one node, and what they leave there."""

    cluster: Cluster
    plugin: NodePlugin
    simulator: Simulator
    namespace: str

    @property
    def node(self) -> str:
        return self.plugin.node

    def pods(self, name: str = "") -> str:
        return path("v1", "pods", namespace=self.namespace, name=name or None)

    def claims(self, name: str = "") -> str:
        return path(RESOURCE_API, "resourceclaims", namespace=self.namespace, name=name or None)

    # Pods

    def start_mig_pod(self, *names: str, profile: str = "1g.10gb", **options: Any) -> None:
        """Pods on the node, each with a claim of its own for one MIG slice."""
        template = f"mig-{profile.replace('.', '-').replace('+', '-')}"
        self.start(claim_template(template, self.namespace, mig_request(profile)), template, *names, **options)

    def start_gpu_pod(self, *names: str, **options: Any) -> None:
        """Pods on the node, each with a claim of its own for a full GPU."""
        self.start(claim_template("whole", self.namespace, gpu_request()), "whole", *names, **options)

    def start(self, template: Object, template_name: str, *names: str, **options: Any) -> None:
        pods = [
            pod(name, self.namespace, templates=(template_name,), node=self.node, **options)
            for name in names or ("user",)
        ]
        self.cluster.apply([template, *pods])

    def wait_running(self, *names: str, patience_s: float = RETRY_S) -> None:
        for name in names or ("user",):
            self.cluster.wait(
                self.pods(name), f"{name} runs", lambda seen: seen["status"].get("phase") == "Running", patience_s
            )

    def wait_bound(self, name: str = "user") -> None:
        self.cluster.wait(self.pods(name), f"{name} is bound", lambda seen: seen["spec"].get("nodeName"))

    def ask_to_delete(self, *names: str, **options: Any) -> None:
        for name in names:
            self.cluster.delete(self.pods(name), **options)

    def wait_gone(self, *names: str) -> None:
        for name in names:
            self.cluster.wait_gone(self.pods(name), RETRY_S)

    def delete_pod(self, *names: str, **options: Any) -> None:
        self.ask_to_delete(*names, **options)
        self.wait_gone(*names)

    def see(self, name: str = "user", container: str = "c0") -> str:
        """What `nvidia-smi -L` shows in there."""
        return self.cluster.in_pod(name, "nvidia-smi", "-L", namespace=self.namespace, container=container)

    def events(self, name: str) -> list[str]:
        """Messages of the Events of an object in the namespace."""
        events = self.cluster.list(path("v1", "events", namespace=self.namespace))
        return [event.get("message", "") for event in events if event["involvedObject"]["name"] == name]

    def wait_event(self, name: str, *texts: str, patience_s: float = 60.0) -> str:
        """The first message that has all of these texts."""

        def seen() -> str | None:
            found = [message for message in self.events(name) if all(text in message for text in texts)]
            return found[0] if found else None

        try:
            return wait_until(f"an event of {name} says {texts}", seen, patience_s)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.events(name)}") from error

    def allocated(self, claim: str) -> list[Object]:
        results: list[Object] = self.cluster.get(self.claims(claim))["status"]["allocation"]["devices"]["results"]
        return results

    def claim_of(self, pod_name: str = "user") -> str:
        statuses = self.cluster.get(self.pods(pod_name))["status"]["resourceClaimStatuses"]
        name: str = statuses[0]["resourceClaimName"]
        return name

    def pod_names(self) -> list[str]:
        return [each["metadata"]["name"] for each in self.cluster.list(self.pods())]

    def restart_kubelet(self, meanwhile: Callable[[], object] = lambda: None) -> None:
        """Kill it, do something, and start it again."""
        with self.cluster.without(self.node, "kubelet"):
            meanwhile()

    # Slices

    def slices(self, node: str = "") -> list[Object]:
        where = path(RESOURCE_API, "resourceslices")
        return self.cluster.list(where, fieldSelector=f"spec.nodeName={node or self.node},spec.driver=gpu.nvidia.com")

    def slice_identities(self) -> list[tuple[str, str]]:
        return sorted((each["metadata"]["name"], each["metadata"]["resourceVersion"]) for each in self.slices())

    def devices(self) -> dict[str, Object]:
        return {device["name"]: device for each in self.slices() for device in each["spec"].get("devices") or ()}

    def wait_published(self) -> None:
        def complete() -> bool:
            found = self.slices()
            return bool(found) and len(found) == found[0]["spec"]["pool"]["resourceSliceCount"]

        wait_until("the node's slices are complete", complete)

    # What is on the node

    @property
    def data_directory(self) -> Path:
        return self.cluster.state / "nodes" / self.node / "var/lib/kubelet/plugins/gpu.nvidia.com"

    @property
    def journal(self) -> Path:
        return self.data_directory / "claims.journal"

    def records(self) -> dict[str, str]:
        """State of each claim in the plugin's journal, by UID."""
        held: dict[str, str] = {}
        for line in self.journal.read_text().splitlines() if self.journal.exists() else ():
            entry = json.loads(line.split(" ", 2)[2])
            if "set" in entry:
                held[entry["set"]["uid"]] = entry["set"]["state"]
            held.pop(entry.get("remove"), None)
        return held

    def cdi_files(self) -> list[str]:
        return self.cluster.in_node(self.node, "sh", "-c", "ls /var/run/cdi 2>/dev/null || true").split()

    def held_now(self) -> dict[str, object]:
        """Everything that claims hold on the node."""
        return {"instances": self.simulator.instances(), "CDI files": self.cdi_files(), "records": self.records()}

    def holdings(self) -> dict[str, object]:
        """The same without what is empty: nothing, when nothing is left of any claim."""
        return {what: held for what, held in self.held_now().items() if held}

    def wait_clean(self) -> None:
        left: dict[str, object] = {}

        def nothing() -> bool:
            left.clear()
            left.update(self.holdings())
            return not left

        try:
            wait_until("nothing is left of any claim", nothing, 90.0)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{left}") from error

    def sweep(self) -> None:
        """Afterwards: every pod gone, with a plugin that works, and nothing of any claim left on the node."""
        self.simulator.mend()
        self.cluster.wait_node(self.node)
        names = self.pod_names()
        if names or self.holdings():
            self.plugin.ensure()
            self.delete_pod(*names)
            self.wait_clean()
        self.cluster.delete(path("v1", "namespaces", name=self.namespace))


def open_bench(cluster: Cluster, plugin: NodePlugin, simulator: Simulator) -> Bench:
    """In a fresh namespace; end it with `sweep`."""
    name = f"test-{uuid4().hex[:8]}"
    cluster.create(path("v1", "namespaces"), {"metadata": {"name": name}})
    account = path("v1", "serviceaccounts", namespace=name, name="default")
    wait_until(f"{name} has its service account", lambda: cluster.find(account))
    return Bench(cluster, plugin, simulator, name)


def stays(what: str, holds: Callable[[], bool], for_s: float) -> None:
    """Fails as soon as it does not hold."""
    until = time.monotonic() + for_s
    while time.monotonic() < until:
        assert holds(), f"did not stay: {what}"
        time.sleep(0.5)
