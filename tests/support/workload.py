"""Pods that use devices, as tests see them: started together, what each container sees, what their claims got."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from uuid import uuid4

from tests.support.cluster import Cluster, Object, path, wait_until
from tests.support.manifests import IDLE

RESOURCE = "resource.k8s.io/v1"
ADMIN_NAMESPACE = {"resource.kubernetes.io/admin-access": "true"}
PREFIX = "test-"  # of namespaces
START_S = 120.0  # many pods start at once on few processors
# What a container sees of the hardware, told in its log, then idling.
LOOK = f"nvidia-smi -L; find /dev -type c; echo seen; {IDLE}"


@dataclass(frozen=True)
class View:
    """The GPUs and MIG devices that one container sees."""

    gpus: frozenset[str]
    """UUIDs, parents of MIG devices among them."""
    slices: frozenset[str]
    """UUIDs of MIG devices."""
    profiles: tuple[tuple[str, int], ...]
    """Of the MIG devices: `("1g.10gb", 2)`, sorted."""
    gpu_nodes: int
    """/dev/nvidia<minor>"""
    capability_nodes: int
    """/dev/nvidia-caps/*"""


def parse_view(text: str) -> View:
    """What `LOOK` prints."""
    profiles = Counter(re.findall(r"^  MIG (\S+)", text, re.MULTILINE))
    return View(
        gpus=frozenset(re.findall(r"^GPU .*\(UUID: (GPU-\S+)\)", text, re.MULTILINE)),
        slices=frozenset(re.findall(r"\(UUID: (MIG-\S+)\)", text)),
        profiles=tuple(sorted(profiles.items())),
        gpu_nodes=len(re.findall(r"^/dev/nvidia\d+$", text, re.MULTILINE)),
        capability_nodes=len(re.findall(r"^/dev/nvidia-caps/", text, re.MULTILINE)),
    )


@dataclass(frozen=True)
class Device:
    """One allocation result, with the attributes that its slice publishes."""

    request: str
    node: str
    name: str
    attributes: Object

    def text(self, attribute: str) -> str:
        return str(self.attributes[attribute]["string"])

    def find(self, attribute: str) -> str | None:
        """None where the device has no such attribute."""
        return self.text(attribute) if attribute in self.attributes else None

    @property
    def gpu(self) -> str:
        """UUID of the GPU that it is, or is a part of."""
        return self.text("parentUUID" if self.text("type") == "mig" else "uuid")


@dataclass(frozen=True)
class Workspace:
    """A namespace of a test, and what runs in it."""

    cluster: Cluster
    namespace: str

    def pods(self, name: str | None = None) -> str:
        return path("v1", "pods", namespace=self.namespace, name=name)

    def claims(self, name: str | None = None) -> str:
        return path(RESOURCE, "resourceclaims", namespace=self.namespace, name=name)

    def apply(self, *manifests: Object) -> None:
        self.cluster.apply(manifests)

    def wait_running(self, *names: str, patience_s: float = START_S) -> None:
        for name in names:
            self.cluster.wait(
                self.pods(name), f"{name} runs", lambda pod: pod["status"].get("phase") == "Running", patience_s
            )

    def wait_unschedulable(self, name: str) -> None:
        def refused(pod: Object) -> bool:
            conditions = pod["status"].get("conditions", ())
            return any(c["type"] == "PodScheduled" and c.get("reason") == "Unschedulable" for c in conditions)

        self.cluster.wait(self.pods(name), f"{name} is unschedulable", refused)

    def phase(self, name: str) -> str:
        return str(self.cluster.get(self.pods(name))["status"].get("phase"))

    def wait_event(self, name: str, text: str) -> None:
        """Of the pod or claim of that name."""

        def told() -> bool:
            events = self.cluster.list(path("v1", "events", namespace=self.namespace))
            return any(text in event.get("message", "") and event["involvedObject"]["name"] == name for event in events)

        wait_until(f"an event of {name} says {text!r}", told, START_S)

    def delete(self, *pods: str, **options: object) -> None:
        """All at once; they are gone afterwards."""
        for name in pods:
            self.cluster.delete(self.pods(name), **options)
        for name in pods:
            self.cluster.wait_gone(self.pods(name), START_S)

    def view(self, pod: str, container: str = "c0") -> View:
        """What the container saw when it began; it ran `LOOK`."""

        def told() -> str | None:
            text = str(self.cluster.get(f"{self.pods(pod)}/log?container={container}").get("message", ""))
            return text if "seen" in text.splitlines() else None

        return parse_view(wait_until(f"{pod}/{container} has told what it sees", told))

    def claim_of(self, pod: str, entry: str) -> str:
        """Name of the claim that was made for an entry of the pod's `resourceClaims`."""
        statuses = self.cluster.get(self.pods(pod))["status"]["resourceClaimStatuses"]
        return str(next(each["resourceClaimName"] for each in statuses if each["name"] == entry))

    def devices(self, claim: str) -> list[Device]:
        """What is allocated to a claim, when all of it is published: a pool is not written all at once."""
        allocation = self.cluster.get(self.claims(claim))["status"]["allocation"]["devices"]["results"]
        wanted = {(each["pool"], each["device"]) for each in allocation}

        def published() -> dict[tuple[str, str], Object] | None:
            found = {
                (piece["spec"]["pool"]["name"], device["name"]): device["attributes"]
                for piece in self.cluster.list(path(RESOURCE, "resourceslices"))
                for device in piece["spec"].get("devices", ())
            }
            return found if wanted <= found.keys() else None

        attributes = wait_until(f"the devices of {claim} are published", published)
        return [
            Device(each["request"], each["pool"], each["device"], attributes[each["pool"], each["device"]])
            for each in allocation
        ]

    def wait_released(self, claim: str) -> None:
        """Until nobody has reserved it and nothing is allocated to it."""
        self.cluster.wait(self.claims(claim), f"{claim} is deallocated", lambda seen: not seen.get("status"), START_S)


@contextmanager
def workspace(cluster: Cluster, labels: Object | None = None) -> Iterator[Workspace]:
    """A fresh namespace, deleted afterwards; `wait_empty` is what waits for the end of all that ran in it."""
    name = f"{PREFIX}{uuid4().hex[:8]}"
    cluster.create(path("v1", "namespaces"), {"metadata": {"name": name, "labels": labels or {}}})
    account = path("v1", "serviceaccounts", namespace=name, name="default")
    wait_until(f"{name} has its service account", lambda: cluster.find(account))
    try:
        yield Workspace(cluster, name)
    finally:
        cluster.delete(path("v1", "namespaces", name=name))


def wait_empty(cluster: Cluster) -> None:
    """Until every workspace is gone."""

    def left() -> list[str]:
        names = (each["metadata"]["name"] for each in cluster.list(path("v1", "namespaces")))
        return [name for name in names if name.startswith(PREFIX)]

    wait_until("every namespace of a test is gone", lambda: not left(), 180.0)


def claims_of(pod: Object, container: Object) -> list[tuple[str, str | None]]:
    """(claim, request or None for all) of a container, those for its extended resources among them."""
    names = {each["name"]: each["resourceClaimName"] for each in pod["status"].get("resourceClaimStatuses", ())}
    names |= {
        each["name"]: each["resourceClaimName"]
        for each in pod["spec"].get("resourceClaims", ())
        if "resourceClaimName" in each
    }
    wanted = container.get("resources", {}).get("claims", ())
    found: list[tuple[str, str | None]] = [(names[each["name"]], each.get("request")) for each in wanted]
    implicit = pod["status"].get("extendedResourceClaimStatus", {})
    for mapping in implicit.get("requestMappings", ()):
        if mapping["containerName"] == container["name"]:
            found.append((implicit["resourceClaimName"], mapping["requestName"]))
    return found


def sees_exactly(view: View, devices: Iterable[Device]) -> None:
    """Asserts that a container's view is these devices, and that it has device files for them and for no others."""
    found = tuple(devices)
    slices = [each for each in found if each.text("type") == "mig"]
    assert view.gpus == {each.gpu for each in found}
    assert view.profiles == tuple(sorted(Counter(each.text("profile") for each in slices).items()))
    assert view.gpu_nodes == len(view.gpus)
    # A MIG device is opened through two capability nodes: its GPU instance's and its compute instance's.
    assert view.capability_nodes == 2 * len(slices)
