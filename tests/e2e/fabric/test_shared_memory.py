"""Who can share GPU memory over NVLink with whom, as jobs find it from inside their containers."""

import pytest

from tests.support.cluster import Cluster, CommandFailed, Object, path, wait_until
from tests.support.computedomain import build_domain
from tests.support.hardware import Simulator

PLUGIN = "/var/lib/kubelet/plugins/compute-domain.nvidia.com"
DAEMON_LABEL = "resource.nvidia.com/computeDomain"


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
            "terminationGracePeriodSeconds": 1,
            "containers": [container],
            "volumes": [{"name": "tools", "hostPath": {"path": "/run/nvidia/driver/usr/bin"}}],
            "resourceClaims": [{"name": "channel", "resourceClaimTemplateName": template}],
        },
    }


class Job:
    """One ComputeDomain and its pods."""

    def __init__(self, cluster: Cluster, namespace: str, name: str) -> None:
        self.cluster, self.namespace, self.name = cluster, namespace, name
        collection = path("resource.nvidia.com/v1beta1", "computedomains", namespace=namespace)
        self.uid = str(cluster.create(collection, build_domain(name, 0))["metadata"]["uid"])
        template = path("resource.k8s.io/v1", "resourceclaimtemplates", namespace=namespace, name=f"{name}-channel")
        wait_until("the template is there", lambda: cluster.find(template))

    def start(self, name: str, node: str) -> None:
        pod = build_peer(name, f"{self.name}-channel", node)
        self.cluster.create(path("v1", "pods", namespace=self.namespace), pod)

    def run(self, **nodes: str) -> None:
        """Pod name to node; returns when all run."""
        for name, node in nodes.items():
            self.start(name, node)
        for name in nodes:
            self.cluster.wait_pod(name, namespace=self.namespace)

    def share(self, one: str, other: str, wait_s: int = 0) -> str:
        """What the rank in `one` says about memory of the rank in `other`. Raises CommandFailed."""
        pod = self.cluster.get(path("v1", "pods", namespace=self.namespace, name=other))
        command = ("/tools/fabric-test", "-wait", f"{wait_s}s", "connect", pod["status"]["podIP"])
        return self.cluster.in_pod(one, *command, namespace=self.namespace)

    def waits_for(self, pod: str) -> str:
        """The kubelet's words about a pod that does not start."""
        events = self.cluster.list(path("v1", "events", namespace=self.namespace))
        return " ".join(each["message"] for each in events if each["involvedObject"]["name"] == pod)


def test_memory_is_shared_in_one_clique_only_and_by_any_number_of_pods_a_node(cluster: Cluster, namespace: str) -> None:
    job = Job(cluster, namespace, "train")
    job.run(a="n1", b="n2", c="n1", far="n3")
    assert "share memory" in job.share("a", "b", wait_s=10)
    assert "share memory" in job.share("b", "a")
    assert "share memory" in job.share("c", "b")
    assert "share memory" in job.share("a", "c")
    with pytest.raises(CommandFailed, match="is in clique"):
        job.share("far", "a")


def test_another_namespace_gets_no_channel_and_is_told_so(cluster: Cluster, namespace: str) -> None:
    job = Job(cluster, namespace, "train")
    job.run(a="n1")
    evil = f"{namespace}-evil"
    cluster.create(path("v1", "namespaces"), {"metadata": {"name": evil}})
    try:
        source = path("resource.k8s.io/v1", "resourceclaimtemplates", namespace=namespace, name="train-channel")
        template = {"metadata": {"name": "stolen"}, "spec": cluster.get(source)["spec"]}
        cluster.create(path("resource.k8s.io/v1", "resourceclaimtemplates", namespace=evil), template)
        cluster.create(path("v1", "pods", namespace=evil), build_peer("thief", "stolen", "n1"))
        thief = Job.__new__(Job)
        thief.cluster, thief.namespace = cluster, evil
        wait_until("the thief is refused", lambda: "in another namespace" in thief.waits_for("thief"))
        pod = cluster.get(path("v1", "pods", namespace=evil, name="thief"))
        assert pod["status"]["phase"] == "Pending"
        specs = cluster.in_node("n1", "sh", "-c", "grep -l compute-domain /var/run/cdi/*.json | wc -l")
        assert int(specs) == 2  # of the job's pod and of its daemon
    finally:
        cluster.delete(path("v1", "pods", namespace=evil, name="thief"), gracePeriodSeconds=0)
        cluster.delete(path("v1", "namespaces", name=evil))


def test_an_imex_daemon_that_hangs_is_noticed_inside_the_job_and_mended(cluster: Cluster, namespace: str) -> None:
    job = Job(cluster, namespace, "train")
    job.run(a="n1", b="n2")
    assert "share memory" in job.share("a", "b", wait_s=10)
    hardware = Simulator(cluster, "n2")
    hardware.inject("imex", "hang")
    try:

        def broken() -> bool:
            try:
                job.share("a", "b")
            except CommandFailed:
                return True
            return False

        wait_until("the ranks lose each other", broken)
    finally:
        hardware.inject("imex", "hang", "--off")
    assert "share memory" in job.share("a", "b", wait_s=60)


def test_a_second_domain_on_a_node_is_told_who_is_there_and_gets_its_turn(cluster: Cluster, namespace: str) -> None:
    first, second = Job(cluster, namespace, "first"), Job(cluster, namespace, "second")
    first.run(a="n1")
    second.start("b", "n1")
    wait_until("it is told why", lambda: f"{namespace}/first" in second.waits_for("b"))
    cluster.delete(path("v1", "pods", namespace=namespace, name="a"), gracePeriodSeconds=1)
    cluster.wait_pod("b", namespace=namespace)


def test_nothing_remains_on_the_nodes_when_the_pods_are_gone(cluster: Cluster, namespace: str) -> None:
    job = Job(cluster, namespace, "train")
    job.run(a="n1", b="n2")
    for name in ("a", "b"):
        cluster.delete(path("v1", "pods", namespace=namespace, name=name), gracePeriodSeconds=1)
    daemons = path("v1", "pods", namespace="partita-system")
    selector = f"{DAEMON_LABEL}={job.uid}"
    wait_until("the daemons are gone", lambda: not cluster.list(daemons, labelSelector=selector))

    def left(node: str) -> str:
        script = f"ls {PLUGIN}/domains; ls /var/run/cdi | grep compute-domain || true"
        return cluster.in_node(node, "sh", "-c", script).strip()

    for node in ("n1", "n2"):
        wait_until(f"{node} is clean", lambda node=node: left(node) == "")  # type: ignore[misc]
