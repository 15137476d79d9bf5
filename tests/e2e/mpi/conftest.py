"""Four nodes in two NVLink cliques with the chart, Kubeflow's MPI Operator and a DNS server: what an MPIJob relies on.

Not part of a plain `hack/test`, because the operator and the DNS server take minutes to build: `hack/test e2e mpi`.
"""

from collections.abc import Iterator

import pytest
from cluster.tools import build

from tests.e2e.computedomain.jobs import CLIQUES, Driver, Space, space
from tests.support.cluster import CACHE, Cluster, Object, path
from tests.support.fixtures import resync_soon, session_cluster

DNS = "10.96.0.10"  # in the network of Services of `hack/cluster`
DNS_NAME = "kube-dns"  # as every cluster calls it, whoever serves it
CONFIGURATION = """\
.:5353 {
    errors
    ready
    kubernetes cluster.local
}
"""
IMAGES = ("partita", "openmpi", "mpi-operator", "coredns")


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    profiles = ",".join(f"gb200:clique={clique}" for clique in CLIQUES.values())
    for cluster in session_cluster("mpi", "--nodes", str(len(CLIQUES)), "--profile", profiles):
        for name in IMAGES:
            cluster.run("load", CACHE / "images" / f"{name}.tar")
        serve_names(cluster)
        yield cluster


def serve_names(cluster: Cluster) -> None:
    """DNS for Services, where the cluster has none: a local one."""
    service = path("v1", "services", namespace="kube-system", name=DNS_NAME)
    if cluster.find(service) is None:
        for node in CLIQUES:
            resync_soon(cluster, node, clusterDNS=[DNS], clusterDomain="cluster.local")
        cluster.apply(build_dns())
        rollout(cluster, "kube-system", "coredns")


def build_dns() -> list[Object]:
    """CoreDNS as a Deployment, with the rights to read what it serves, and its Service."""
    labels = {"k8s-app": DNS_NAME}
    where = {"name": "coredns", "namespace": "kube-system"}
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": where}
    rules = [
        {"apiGroups": [""], "resources": ["services", "pods", "namespaces"], "verbs": ["list", "watch"]},
        {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]},
    ]
    rights = {"apiVersion": "rbac.authorization.k8s.io/v1", "metadata": {"name": "coredns"}}
    binding = {
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "coredns"},
        "subjects": [{"kind": "ServiceAccount", **where}],
    }
    container = {
        "name": "coredns",
        "image": "docker.io/library/coredns:dev",
        "imagePullPolicy": "IfNotPresent",
        "args": ["-conf", "/etc/coredns/Corefile"],
        "readinessProbe": {"httpGet": {"path": "/ready", "port": 8181}, "periodSeconds": 1},
        "volumeMounts": [{"name": "configuration", "mountPath": "/etc/coredns"}],
    }
    pod = {
        "serviceAccountName": "coredns",
        "dnsPolicy": "Default",
        "containers": [container],
        "volumes": [{"name": "configuration", "configMap": {"name": "coredns"}}],
    }
    spec = {
        "selector": {"matchLabels": labels},
        "template": {"metadata": {"labels": labels}, "spec": pod},
    }
    ports = [{"name": kind, "protocol": kind.upper(), "port": 53, "targetPort": 5353} for kind in ("udp", "tcp")]
    return [
        account,
        {**rights, "kind": "ClusterRole", "rules": rules},
        {**rights, "kind": "ClusterRoleBinding", **binding},
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": where, "data": {"Corefile": CONFIGURATION}},
        {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": where, "spec": spec},
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {**where, "name": DNS_NAME},
            "spec": {"clusterIP": DNS, "selector": labels, "ports": ports},
        },
    ]


def rollout(cluster: Cluster, namespace: str, deployment: str) -> None:
    where = ("--namespace", namespace, f"deployment/{deployment}")
    cluster.kubectl("rollout", "status", *where, "--timeout=120s")


@pytest.fixture(scope="session")
def operator(cluster: Cluster) -> None:
    """As its own release has it, from its own manifest."""
    cluster.apply((build("mpi-operator") / "mpi-operator.yaml").read_text())
    rollout(cluster, "mpi-operator", "mpi-operator")


@pytest.fixture(scope="session")
def driver(cluster: Cluster) -> Driver:
    """The chart, which labels the nodes with their cliques, as the sample says."""
    driver = Driver(cluster)
    driver.uninstall()  # an earlier session's, whose pods have an earlier image
    driver.install(**{"resources.computeDomains.gpuCliqueLabelEnabled": "true"})
    return driver


@pytest.fixture
def here(driver: Driver, operator: None) -> Iterator[Space]:
    """A namespace of its own. Afterwards the nodes must be as they were: no domain leaves anything."""
    with space(driver) as here:
        yield here
