"""The chart on a cluster: installing it, and what belongs to it."""

from dataclasses import dataclass
from pathlib import Path

from tests.support.cluster import ROOT, Cluster, Object, path, wait_until

CHART: Path = ROOT / "deployments/helm/partita"
SIMULATED = {
    "simulator.profile": "h100",
    "resources.gpus.extendedResourceName": "nvidia.com/gpu",
    "resources.gpus.migClasses": "{1g.10gb}",
}
# What a release may leave behind in the cluster's own scope or in its namespace.
KINDS = (
    "clusterroles,clusterrolebindings,validatingadmissionpolicies,validatingadmissionpolicybindings,deviceclasses,"
    "daemonsets,deployments,jobs,pods,serviceaccounts,roles,rolebindings,networkpolicies"
)


@dataclass
class Release:
    cluster: Cluster
    name: str = "partita"
    namespace: str = "partita-system"

    def install(self, **settings: str) -> None:
        """Install, or upgrade to exactly these settings on top of simulated hardware; all plugins are then ready."""
        flags = [word for each in {**SIMULATED, **settings}.items() for word in ("--set", "=".join(each))]
        self.helm("upgrade", "--install", self.name, str(CHART), "--create-namespace", "--wait", *flags)
        wait_until("every node has published", lambda: len(self.pools()) == len(self.nodes()))

    def uninstall(self) -> None:
        self.helm("uninstall", self.name, "--ignore-not-found", "--wait")

    def helm(self, *arguments: str) -> str:
        return self.cluster.helm(*arguments, "--namespace", self.namespace)

    def nodes(self) -> list[str]:
        """Those that carry pods of users: a cluster of kind has one for its control plane, too."""
        nodes = self.cluster.list(path("v1", "nodes"), labelSelector="!node-role.kubernetes.io/control-plane")
        return [each["metadata"]["name"] for each in nodes]

    def slices(self) -> list[Object]:
        return self.cluster.list(path("resource.k8s.io/v1", "resourceslices"))

    def pools(self) -> set[str]:
        return {each["spec"]["pool"]["name"] for each in self.slices()}

    def pods(self) -> dict[str, Object]:
        """Node -> the plugin's pod on it, of those that are not about to end."""
        pods = self.cluster.list(path("v1", "pods", namespace=self.namespace))
        return {
            each["spec"]["nodeName"]: each
            for each in pods
            if "nodeName" in each["spec"]
            and "deletionTimestamp" not in each["metadata"]
            and each["metadata"]["labels"].get("app.kubernetes.io/component") == "kubelet-plugin"
        }

    def left(self) -> list[str]:
        """Names of all objects that carry the release's label."""
        selector = f"app.kubernetes.io/instance={self.name}"
        found = self.cluster.kubectl("get", KINDS, "--all-namespaces", "--selector", selector, "--output", "name")
        return found.split()
