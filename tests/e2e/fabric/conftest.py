"""A cluster whose nodes are in two NVLink cliques, with the chart and compute domains on it."""

from collections.abc import Iterator
from uuid import uuid4

import pytest

from tests.support.cluster import CACHE, ROOT, Cluster, path, wait_until
from tests.support.fixtures import session_cluster

CLIQUES = {"n1": 1, "n2": 1, "n3": 2}
NAMESPACE = "partita-system"


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    profiles = ",".join(f"gb200:clique={clique}" for clique in CLIQUES.values())
    for cluster in session_cluster("fabric", "--nodes", str(len(CLIQUES)), "--profile", profiles):
        for name in ("partita", "busybox"):
            cluster.run("load", CACHE / "images" / f"{name}.tar")
        install(cluster)
        yield cluster


def install(cluster: Cluster) -> None:
    """The chart with compute domains; returns when every node offers channels."""
    settings = {
        "resources.computeDomains.enabled": "true",
        "controller.enabled": "true",
        "nvidiaDriverRoot": "/run/nvidia/driver",
    }
    flags = [word for each in settings.items() for word in ("--set", "=".join(each))]
    chart = str(ROOT / "deployments/helm/partita")
    release = ("upgrade", "--install", "partita", chart, "--namespace", NAMESPACE, "--create-namespace", "--wait")
    cluster.helm(*release, *flags)
    slices = path("resource.k8s.io/v1", "resourceslices")
    selector = "spec.driver=compute-domain.nvidia.com"

    def offered() -> bool:
        return len(cluster.list(slices, fieldSelector=selector)) == len(CLIQUES)

    wait_until("every node offers channels", offered, 120.0)


@pytest.fixture
def namespace(cluster: Cluster) -> Iterator[str]:
    name = f"test-{uuid4().hex[:6]}"
    cluster.create(path("v1", "namespaces"), {"metadata": {"name": name}})
    yield name
    for each in ("pods", "computedomains.resource.nvidia.com"):
        cluster.kubectl("delete", each, "--all", "--namespace", name, "--grace-period=0", "--timeout=120s")
    cluster.delete(path("v1", "namespaces", name=name))
