"""`hack/cluster --provider kind` keeps the promises of a local cluster. Needs a Docker engine."""

from collections.abc import Iterator

import pytest
from cluster.provider import docker_answers

from tests.integration.cluster.test_cluster import PODS, SERVICES, busybox
from tests.support.cluster import CACHE, ROOT, Cluster, CommandFailed, run, wait_until
from tests.support.fixtures import session_cluster
from tests.support.hardware import Simulator

OPTIONS = ("--nodes", "2", "--profile", "h100x2", "--provider", "kind")
RESTART_S = 120.0  # kubelets wait longer each time before they start again what ended soon after its start

pytestmark = pytest.mark.skipif(not docker_answers(), reason="kind needs a Docker engine: `docker info` fails here")


@pytest.fixture(scope="module")
def kind() -> Iterator[Cluster]:
    run([ROOT / "hack" / "image", "busybox"])
    for cluster in session_cluster("test-kind", *OPTIONS):
        cluster.run("load", CACHE / "images" / "busybox.tar")
        yield cluster


@pytest.fixture(scope="module")
def server(kind: Cluster) -> str:
    """Serves the word hello on port 8000 of n1; `client`, a pod on n2, can ask. Its address."""
    kind.create(PODS, busybox("server", "n1", "while true; do echo hello | nc -l -p 8000; done"))
    kind.create(PODS, busybox("client", "n2", "exec sleep 1000000"))
    kind.wait_pod("client")
    address: str = kind.wait_pod("server")["status"]["podIP"]
    return address


def ask(kind: Cluster, address: str, port: int = 8000) -> str:
    # nc itself would wait without end for a server that is frozen.
    return kind.in_pod("client", "timeout", "5", "nc", "-w", "3", address, str(port))


def is_ready(kind: Cluster) -> bool:
    try:
        kind.kubectl("get", "--raw", "/readyz", "--request-timeout=5s")
    except CommandFailed:
        return False
    return True


def restarts(kind: Cluster, pod: str) -> int:
    count: int = kind.wait_pod(pod)["status"]["containerStatuses"][0]["restartCount"]
    return count


def test_pods_on_different_nodes_reach_each_other_and_a_service_reaches_its_pod(kind: Cluster, server: str) -> None:
    spec = {"selector": {"app": "server"}, "ports": [{"port": 80, "targetPort": 8000}]}
    service = kind.create(SERVICES, {"metadata": {"name": "server"}, "spec": spec})["spec"]["clusterIP"]
    assert "hello" in ask(kind, server)
    assert "hello" in wait_until("the Service answers", lambda: ask(kind, service, 80))


def test_a_second_up_changes_nothing_and_one_of_another_shape_is_refused(kind: Cluster) -> None:
    kind.start(*OPTIONS)
    with pytest.raises(CommandFailed, match="nodes 2, not 3"):
        kind.start("--nodes", "3", "--profile", "h100x2")


def test_logs_are_those_of_services_components_and_kube_proxy(kind: Cluster) -> None:
    for where, what in (("n1", "kubelet"), ("n1", "kube-proxy"), ("control-plane", "etcd")):
        assert kind.run("logs", where, what)


def test_a_node_that_is_cut_off_reaches_nobody_and_neither_do_its_pods(kind: Cluster, server: str) -> None:
    kind.run("cut", "n1")
    with pytest.raises(CommandFailed):
        ask(kind, server)
    kind.run("heal", "n1")
    assert "hello" in wait_until("the pod is reached again", lambda: ask(kind, server))


def test_a_frozen_node_goes_on_where_it_was(kind: Cluster, server: str) -> None:
    before = restarts(kind, "server")
    kind.run("freeze", "n1")
    with pytest.raises(CommandFailed):
        ask(kind, server)
    kind.run("thaw", "n1")
    assert "hello" in wait_until("the pod is reached again", lambda: ask(kind, server))
    assert restarts(kind, "server") == before


def test_pods_outlive_the_services_of_their_node(kind: Cluster, server: str) -> None:
    before = restarts(kind, "server")
    for service in ("kubelet", "containerd"):
        kind.run("kill", "n1", service)
        assert "hello" in ask(kind, server)
        kind.run("start", "n1", service)
    kind.wait_node("n1")
    assert restarts(kind, "server") == before


@pytest.mark.parametrize("component", ["apiserver", "etcd"])
def test_a_component_that_was_killed_stays_dead_until_it_is_started(kind: Cluster, component: str) -> None:
    kind.run("kill", "control-plane", component)
    try:
        wait_until("the API server is not ready", lambda: not is_ready(kind))
    finally:
        kind.run("start", "control-plane", component)
    wait_until("it is ready again", lambda: is_ready(kind), RESTART_S)


def test_a_power_cut_takes_the_slices_and_the_pods_come_back(kind: Cluster, server: str) -> None:
    before, simulator = restarts(kind, "server"), Simulator(kind, "n1")
    simulator.smi("-i", "0", "-mig", "1")
    simulator.smi("mig", "-i", "0", "-cgi", "19", "-C")
    assert len(simulator.instances()) == 1
    kind.run("poweroff", "n1")
    assert simulator.instances() == []
    kind.run("poweron", "n1")
    assert "H100" in simulator.smi("-L")
    assert kind.in_node("n1", "ls", "/proc/driver/nvidia/gpus").split()
    wait_until("the pod was restarted", lambda: restarts(kind, "server") > before, RESTART_S)
