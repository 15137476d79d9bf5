"""One namespace of a control plane where kubelets are played and `partita-controller` runs as a process.

The control plane is the fixture `prepared` of tests/integration/controller.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from tests.support.cluster import Cluster, Object, path, wait_until
from tests.support.computedomain import (
    DOMAINS,
    FABRIC,
    NAMESPACE,
    UID_LABEL,
    Controller,
    Kubelets,
    build_domain,
    build_worker,
    playing_kubelets,
)

NODES = {"cd-a": f"{FABRIC}.0", "cd-b": f"{FABRIC}.0", "cd-c": f"{FABRIC}.1", "cd-plain": None}


@pytest.fixture
def kubelets(prepared: Cluster) -> Iterator[Kubelets]:
    with playing_kubelets(prepared) as kubelets:
        yield kubelets


@pytest.fixture
def controller(prepared: Cluster, tmp_path: Path) -> Iterator[Controller]:
    controller = Controller(prepared, tmp_path / "controller.log")
    with controller.leading():
        yield controller
    assert '"level": "error"' not in controller.log.read_text()


class World:
    """What a test looks at, in one namespace."""

    def __init__(self, cluster: Cluster, namespace: str) -> None:
        self.cluster, self.namespace = cluster, namespace
        self.domains = path(DOMAINS, "computedomains", namespace=namespace)
        self.pods = path("v1", "pods", namespace=namespace)
        self.uid = ""

    def create(self, domain: Object) -> None:
        made = self.cluster.create(self.domains, domain)
        self.uid = made["metadata"]["uid"]
        self.name = made["metadata"]["name"]
        template = path("resource.k8s.io/v1", "resourceclaimtemplates", namespace=self.namespace)
        wait_until("the template is there", lambda: self.cluster.find(f"{template}/{self.name}-channel"))

    def start_workers(self, *nodes: str) -> None:
        for node in nodes:
            self.cluster.create(self.pods, build_worker(f"{self.name}-{node}", self.name, node))

    def form(self, name: str, *nodes: str) -> None:
        """A domain with a worker on each of these nodes, ready."""
        self.create(build_domain(name, len(nodes)))
        self.start_workers(*nodes)
        self.wait_ready(len(nodes))

    def end_workers(self) -> None:
        for pod in self.cluster.list(self.pods):
            self.cluster.delete(f"{self.pods}/{pod['metadata']['name']}")

    def wait(self, what: str, holds: Callable[[Object], object]) -> Object:
        return self.cluster.wait(f"{self.domains}/{self.name}", what, holds)

    def wait_ready(self, nodes: int) -> Object:
        def there(domain: Object) -> bool:
            status = domain.get("status", {})
            return status.get("status") == "Ready" and status["readyNodes"] == nodes

        return self.wait("Ready", there)

    def wait_reason(self, reason: str) -> Object:
        return self.wait(reason, lambda d: condition(d, "Ready")["reason"] == reason)

    def mine(self, api: str, plural: str) -> list[Object]:
        where = path(api, plural, namespace=NAMESPACE)
        return self.cluster.list(where, labelSelector=f"{UID_LABEL}={self.uid}")

    def daemons(self) -> list[Object]:
        return self.mine("v1", "pods")

    def leftovers(self) -> list[str]:
        kinds = (("v1", "pods"), ("resource.k8s.io/v1", "resourceclaims"))
        found = [item for kind in (*kinds, (DOMAINS, "computedomaincliques")) for item in self.mine(*kind)]
        return [f"{item.get('kind', '')} {item['metadata']['name']}" for item in found]


def condition(domain: Object, kind: str) -> Object:
    found = [each for each in domain.get("status", {}).get("conditions", ()) if each["type"] == kind]
    return found[0] if found else {"status": "", "reason": "", "message": ""}


@pytest.fixture
def world(prepared: Cluster) -> Iterator[World]:
    """A fresh namespace; whatever a test leaves in it is removed before the next one needs the nodes."""
    name = f"test-{uuid4().hex[:8]}"
    prepared.create(path("v1", "namespaces"), {"metadata": {"name": name}})
    world = World(prepared, name)
    yield world
    world.end_workers()
    prepared.delete(path("v1", "namespaces", name=name))
