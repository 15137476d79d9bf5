"""What the tests of ComputeDomains work with: the installed driver, a namespace, and jobs in it."""

import io
import re
import tarfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from uuid import uuid4

from tests.support.chart import Release
from tests.support.cluster import CACHE, ROOT, ApiError, Cluster, CommandFailed, Object, path, wait_until
from tests.support.computedomain import DOMAINS, RELEASE, UID_LABEL, build_domain

CLIQUES = {"n1": 1, "n2": 1, "n3": 2, "n4": 2}
NAMESPACE = "nvidia-dra-driver-gpu"
CONTROLLER = f"{RELEASE}-partita-controller"  # Deployment and Lease
PLUGIN = "/var/lib/kubelet/plugins/compute-domain.nvidia.com"
SETTINGS = {
    "nvidiaDriverRoot": "/run/nvidia/driver",
    "resources.computeDomains.enabled": "true",
    "resources.gpus.extendedResourceName": "nvidia.com/gpu",
    "controller.enabled": "true",
    "controller.replicas": "1",  # the tests say themselves when there is a standby
}
FORCE = {"metadata": {"annotations": {"resource.nvidia.com/force-delete": "true"}}}
PATIENCE_S = 90.0  # others use the machine, too
RETRY_S = 180.0  # a kubelet whose call has ended asks again only after a minute or more


@dataclass
class Driver:
    """The chart on the cluster, in one namespace at a time."""

    cluster: Cluster
    namespace: str = NAMESPACE
    nodes: tuple[str, ...] = tuple(CLIQUES)

    def install(self, **settings: str) -> None:
        """Install, or upgrade; returns when every node offers channels."""
        flags = [word for each in {**SETTINGS, **settings}.items() for word in ("--set", "=".join(each))]
        chart = str(ROOT / "deployments/helm/partita")
        upgrade = ("upgrade", "--install", RELEASE, chart, "--create-namespace", "--wait")
        self.cluster.helm(*upgrade, "--namespace", self.namespace, *flags)
        wait_until("every node offers channels", lambda: self.offering() == set(self.nodes), PATIENCE_S)

    def uninstall(self) -> None:
        Release(self.cluster, RELEASE, self.namespace).uninstall()

    def load_as(self, tag: str) -> None:
        """Bring the image onto every node under another tag too."""
        images = CACHE / "images"
        renamed = images / f"partita-{tag}.tar"
        with tarfile.open(images / "partita.tar") as archive, tarfile.open(renamed, "w") as copy:
            for entry in archive:
                content = archive.extractfile(entry)
                if content and entry.name == "index.json":
                    data = content.read().replace(b"partita:dev", f"partita:{tag}".encode())
                    content, entry.size = io.BytesIO(data), len(data)
                copy.addfile(entry, content)
        self.cluster.run("load", renamed)
        renamed.unlink()

    def offering(self) -> set[str]:
        """The nodes with channels."""
        return set(self.cliques())

    def cliques(self) -> dict[str, str]:
        """What each node with channels says about its clique; "": it has no fabric."""
        slices = path("resource.k8s.io/v1", "resourceslices")
        found = self.cluster.list(slices, fieldSelector="spec.driver=compute-domain.nvidia.com")
        devices = {each["spec"]["pool"]["name"]: each["spec"]["devices"][0] for each in found}
        return {node: device["attributes"].get("cliqueID", {}).get("string", "") for node, device in devices.items()}

    def plugin_starts(self, node: str) -> int:
        """How often the node's plugin was started again; -1 while it is not ready."""
        pods = path("v1", "pods", namespace=self.namespace)
        selected = {
            "labelSelector": "app.kubernetes.io/component=kubelet-plugin",
            "fieldSelector": f"spec.nodeName={node}",
        }
        states = [each["status"].get("containerStatuses", [{}])[0] for each in self.cluster.list(pods, **selected)]
        return next((each["restartCount"] for each in states if each.get("ready")), -1)

    def controllers(self) -> list[Object]:
        """Their pods."""
        pods = path("v1", "pods", namespace=self.namespace)
        return self.cluster.list(pods, labelSelector="app.kubernetes.io/component=controller")

    def scale_controller(self, replicas: int) -> None:
        """Returns when so many run."""
        where = ("--namespace", self.namespace, f"deployment/{CONTROLLER}")
        self.cluster.kubectl("scale", *where, f"--replicas={replicas}")
        self.cluster.kubectl("rollout", "status", *where, "--timeout=120s")
        wait_until("the others are gone", lambda: len(self.controllers()) == replicas, PATIENCE_S)

    def move_controller(self, away_from: str) -> None:
        """Returns when one runs on another node."""
        if self.controllers()[0]["spec"]["nodeName"] != away_from:
            return
        node = path("v1", "nodes", name=away_from)
        self.cluster.patch(node, {"spec": {"unschedulable": True}})
        try:
            self.scale_controller(0)
            self.scale_controller(1)
        finally:
            self.cluster.patch(node, {"spec": {"unschedulable": None}})

    def leftovers(self) -> list[str]:
        """Everything in the cluster and on the nodes that is there for a ComputeDomain."""
        made = {
            "v1": ("pods",),
            "resource.k8s.io/v1": ("resourceclaims", "resourceclaimtemplates"),
            DOMAINS: ("computedomaincliques",),
        }
        found = [
            f"{kind} {each['metadata']['name']}"
            for api, kinds in made.items()
            for kind in kinds
            for each in self.cluster.list(path(api, kind), labelSelector=UID_LABEL)
        ]
        if found:
            return found
        script = f"ls {PLUGIN}/domains 2>/dev/null; ls /var/run/cdi | grep compute-domain; true"
        with ThreadPoolExecutor() as pool:
            on_nodes = pool.map(lambda node: self.cluster.in_node(node, "sh", "-c", script).split(), self.nodes)
        return [f"{node}: {each}" for node, left in zip(self.nodes, on_nodes, strict=True) for each in left]

    def is_clean(self) -> bool:
        left = self.leftovers()
        if left:
            raise ApiError("leftovers", 0, {"message": ", ".join(left)})
        return True


@dataclass
class Space:
    """A user's namespace."""

    driver: Driver
    name: str

    @property
    def cluster(self) -> Cluster:
        return self.driver.cluster

    def where(self, api: str, plural: str, name: str | None = None) -> str:
        return path(api, plural, namespace=self.name, name=name)

    def job(self, name: str, nodes: int = 0, **channel: str) -> "Job":
        """A ComputeDomain that exists, with its template."""
        job = self.declare(name, nodes, **channel)
        template = self.where("resource.k8s.io/v1", "resourceclaimtemplates", job.template)
        wait_until("the template is there", lambda: self.cluster.find(template), PATIENCE_S)
        return job

    def declare(self, name: str, nodes: int = 0, **channel: str) -> "Job":
        """A ComputeDomain that nobody has looked at yet."""
        self.cluster.create(self.where(DOMAINS, "computedomains"), build_domain(name, nodes, **channel))
        return Job(self, name)

    def told(self, name: str) -> str:
        """All that Events say about the object of this name."""
        events = self.cluster.list(self.where("v1", "events"))
        return "\n".join(
            f"{each['reason']}: {each['message']}" for each in events if each["involvedObject"]["name"] == name
        )

    def wait_told(self, name: str, words: str) -> str:
        """Until an Event about it matches this pattern."""

        def told() -> str | None:
            said = self.told(name)
            return said if re.search(words, said) else None

        return wait_until(f"{name} is told {words!r}", told, PATIENCE_S)

    def phase(self, pod: str) -> str:
        return str(self.cluster.get(self.where("v1", "pods", pod))["status"]["phase"])

    def end(self, *pods: str) -> None:
        """Delete pods and wait until they are gone."""
        for pod in pods:
            self.cluster.delete(self.where("v1", "pods", pod), gracePeriodSeconds=1)
        for pod in pods:
            self.cluster.wait_gone(self.where("v1", "pods", pod), PATIENCE_S)


@dataclass
class Job:
    """A ComputeDomain and its pods, which are named by who runs them."""

    space: Space
    name: str

    @property
    def cluster(self) -> Cluster:
        return self.space.cluster

    @property
    def template(self) -> str:
        return f"{self.name}-channel"

    @property
    def place(self) -> str:
        return self.space.where(DOMAINS, "computedomains", self.name)

    def domain(self) -> Object:
        return self.cluster.get(self.place)

    def uid(self) -> str:
        return str(self.domain()["metadata"]["uid"])

    # Pods

    def start(self, **nodes: str) -> None:
        """Pod name to node."""
        for pod, node in nodes.items():
            self.cluster.create(self.space.where("v1", "pods"), build_peer(pod, self.template, node))

    def wait_running(self, *pods: str, patience_s: float = PATIENCE_S) -> None:
        for pod in pods:
            where = self.space.where("v1", "pods", pod)
            self.cluster.wait(where, f"{pod} runs", lambda found: found["status"]["phase"] == "Running", patience_s)

    def run(self, **nodes: str) -> None:
        self.start(**nodes)
        self.wait_running(*nodes)

    def restore(self, **nodes: str) -> None:
        """These pods and no others run in the namespace, and are connected, whatever a test before has left."""
        for node in nodes.values():
            self.cluster.wait_node(node)
        found = self.cluster.list(self.space.where("v1", "pods"))
        kept = {pod["metadata"]["name"] for pod in found if is_kept(pod, nodes) and self._answers(pod)}
        missing = {pod: node for pod, node in nodes.items() if pod not in kept}
        self.space.end(*(pod["metadata"]["name"] for pod in found if pod["metadata"]["name"] not in kept))
        self.start(**missing)
        self.wait_running(*missing, patience_s=RETRY_S)
        self.wait_ready(len(nodes))

    def _answers(self, pod: Object) -> bool:
        """Its node may have died and come back: then the pod is said to run for a while, and does not."""
        try:
            self.cluster.in_pod(pod["metadata"]["name"], "true", namespace=self.space.name)
        except CommandFailed:
            return False
        return True

    # What the containers find

    def share(self, one: str, other: str, wait_s: int = 60, among: "Job | None" = None) -> str:
        """What the rank in `one` says about memory of the rank in `other`. Raises CommandFailed when it has none.

        `among`: the job that the other one is of.
        """
        address = self.cluster.get((among or self).space.where("v1", "pods", other))["status"]["podIP"]
        command = ("/tools/fabric-test", "-wait", f"{wait_s}s", "connect", address)
        return self.cluster.in_pod(one, *command, namespace=self.space.name)

    def share_all_ways(self, one: str, other: str) -> None:
        assert "share memory" in self.share(one, other)
        assert "share memory" in self.share(other, one)

    def check(self, pod: str) -> str:
        """What the rank finds in its own container; an error's words where something is missing."""
        try:
            return self.cluster.in_pod(pod, "/tools/fabric-test", "check", namespace=self.space.name)
        except CommandFailed as error:
            return str(error)

    def channels(self, pod: str) -> list[str]:
        """Channel nodes in the pod's container."""
        folder = "/dev/nvidia-caps-imex-channels"
        script = f"cd {folder} 2>/dev/null && find . -type c || true"
        found = self.cluster.in_pod(pod, "sh", "-c", script, namespace=self.space.name)
        return sorted(each.removeprefix("./") for each in found.split())

    # What the cluster says

    def wait(self, what: str, holds: Callable[[Object], object]) -> Object:
        return self.cluster.wait(self.place, what, holds, PATIENCE_S)

    def wait_ready(self, nodes: int) -> Object:
        """Ready, with so many members, all of them connected."""

        def there(domain: Object) -> bool:
            status = domain.get("status", {})
            counts = (status.get("readyNodes"), status.get("memberNodes"))
            return status.get("status") == "Ready" and counts == (nodes, nodes)

        return self.wait(f"{self.name} is Ready with {nodes} nodes", there)

    def wait_condition(self, kind: str, status: str, reason: str = "", words: str = "") -> str:
        """The condition's message, which has these words."""

        def there(domain: Object) -> bool:
            found = condition(domain, kind)
            return found["status"] == status and found["reason"].startswith(reason) and words in found["message"]

        return str(condition(self.wait(f"{kind} is {status} {reason} {words}", there), kind)["message"])

    def indexes(self) -> dict[str, int]:
        """Index by node."""
        return {each["name"]: each["index"] for each in self.domain()["status"].get("nodes", ())}

    def daemons(self) -> dict[str, Object]:
        """The daemons' pods by node."""
        pods = path("v1", "pods", namespace=self.space.driver.namespace)
        found = self.cluster.list(pods, labelSelector=f"{UID_LABEL}={self.uid()}")
        return {each["spec"].get("nodeName", "?"): each for each in found}

    def restarts(self) -> dict[str, int]:
        """How often each daemon was started again, by its pod's UID."""
        pods = self.daemons().values()
        return {pod["metadata"]["uid"]: pod["status"]["containerStatuses"][0]["restartCount"] for pod in pods}

    def delete(self) -> None:
        self.cluster.delete(self.place)


def is_kept(pod: Object, nodes: Mapping[str, str]) -> bool:
    """Whether it is one of these (pod name to node), and runs there."""
    runs = pod["status"]["phase"] == "Running" and "deletionTimestamp" not in pod["metadata"]
    return runs and nodes.get(pod["metadata"]["name"]) == pod["spec"]["nodeName"]


def condition(domain: Object, kind: str) -> Object:
    found = [each for each in domain.get("status", {}).get("conditions") or () if each["type"] == kind]
    return found[0] if found else {"status": "", "reason": "", "message": ""}


def build_peer(name: str, template: str, node: str) -> Object:
    """A pod that answers other peers; the stand-in of a job's rank comes from the node's driver root."""
    container = {
        "name": "main",
        "image": "docker.io/library/busybox:dev",
        "imagePullPolicy": "IfNotPresent",
        "command": ["/tools/fabric-test", "serve"],
        "resources": {"claims": [{"name": "channel"}]},
        "volumeMounts": [{"name": "tools", "mountPath": "/tools"}],
    }
    return {
        "metadata": {"name": name},
        "spec": {
            "nodeSelector": {"kubernetes.io/hostname": node},
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 1,
            "containers": [container],
            "volumes": [{"name": "tools", "hostPath": {"path": "/run/nvidia/driver/usr/bin"}}],
            "resourceClaims": [{"name": "channel", "resourceClaimTemplateName": template}],
        },
    }


@contextmanager
def namespace(cluster: Cluster, name: str) -> Iterator[None]:
    cluster.create(path("v1", "namespaces"), {"metadata": {"name": name}})
    account = path("v1", "serviceaccounts", namespace=name, name="default")
    wait_until("the namespace has its service account", lambda: cluster.find(account), PATIENCE_S)
    try:
        yield
    finally:
        kinds = "pods,jobs,computedomains.resource.nvidia.com"
        cluster.kubectl("delete", kinds, "--all", "--namespace", name, "--grace-period=1", "--timeout=120s")
        cluster.delete(path("v1", "namespaces", name=name))


@contextmanager
def space(driver: Driver) -> Iterator[Space]:
    """A namespace that is gone afterwards, with everything that was made for its domains."""
    name = f"test-{uuid4().hex[:6]}"
    with namespace(driver.cluster, name):
        yield Space(driver, name)
    wait_until("nothing is left of any domain", driver.is_clean, PATIENCE_S)
