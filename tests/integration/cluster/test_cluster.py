"""`hack/cluster` keeps its promises: real nodes, a network between pods, Services, and nothing left afterwards."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cluster import ROOT, Cluster, Object, path, run, wait_until
from tests.support.fixtures import session_cluster

PODS = path("v1", "pods", namespace="default")
SERVICES = path("v1", "services", namespace="default")


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[Cluster]:
    yield from session_cluster("test-two", "--nodes", "2", "--provider", "local")


def busybox(name: str, node: str, command: str, **spec: object) -> Object:
    container = {
        "name": "main",
        "image": "docker.io/library/busybox:dev",
        "imagePullPolicy": "Never",
        "command": ["sh", "-c", command],
    }
    pinned = {"nodeName": node, "terminationGracePeriodSeconds": 1, "containers": [container]}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": pinned | spec,
    }


def test_pods_on_different_nodes_reach_each_other_and_a_service_reaches_its_pod(two_nodes: Cluster) -> None:
    two_nodes.create(PODS, busybox("server", "n1", "while true; do echo hello | nc -l -p 8000; done"))
    two_nodes.create(PODS, busybox("client", "n2", "exec sleep 1000000"))
    port = {"port": 80, "targetPort": 8000}
    spec = {"selector": {"app": "server"}, "ports": [port]}
    address = two_nodes.create(SERVICES, {"metadata": {"name": "server"}, "spec": spec})["spec"]["clusterIP"]
    server = two_nodes.wait_pod("server")
    two_nodes.wait_pod("client")
    assert "hello" in two_nodes.in_pod("client", "nc", "-w", "5", server["status"]["podIP"], "8000")
    answer = wait_until("the Service answers", lambda: two_nodes.in_pod("client", "nc", "-w", "5", address, "80"))
    assert "hello" in answer
    # The API server calls webhooks and reads logs the same way.
    assert two_nodes.kubectl("exec", "client", "--", "hostname").strip() == "client"


def test_a_node_sees_its_own_devices_and_processes_only(two_nodes: Cluster) -> None:
    two_nodes.in_node("n1", "mknod", "-m", "666", "/dev/trial0", "c", "1", "3")
    assert "trial0" in two_nodes.in_node("n1", "ls", "/dev")
    assert "trial0" not in two_nodes.in_node("n2", "ls", "/dev")
    assert not Path("/dev/trial0").exists()
    assert int(two_nodes.in_node("n2", "sh", "-c", "ls -d /proc/[0-9]* | wc -l")) < 40


def test_a_node_that_lost_power_comes_back_with_a_new_boot_id_and_its_pods(two_nodes: Cluster) -> None:
    two_nodes.create(PODS, busybox("survivor", "n2", "exec sleep 1000000"))
    two_nodes.wait_pod("survivor")
    boot = two_nodes.wait_node("n2")["status"]["nodeInfo"]["bootID"]
    two_nodes.run("poweroff", "n2")
    two_nodes.run("poweron", "n2")
    node = path("v1", "nodes", name="n2")
    two_nodes.wait(node, "a new boot id", lambda seen: seen["status"]["nodeInfo"]["bootID"] != boot)
    pod = path("v1", "pods", namespace="default", name="survivor")
    restarted = two_nodes.wait(pod, "the pod runs again", lambda seen: _restarts(seen) == 1 and _ready(seen))
    assert restarted["spec"]["nodeName"] == "n2"


def _restarts(pod: Object) -> int:
    return sum(each["restartCount"] for each in pod["status"].get("containerStatuses", ()))


def _ready(pod: Object) -> bool:
    return all(each["ready"] for each in pod["status"].get("containerStatuses", ()))


def test_kubelet_and_api_server_come_back_after_being_killed(two_nodes: Cluster) -> None:
    two_nodes.run("kill", "n1", "kubelet")
    two_nodes.run("kill", "control-plane", "apiserver")
    two_nodes.run("start", "control-plane", "apiserver")
    two_nodes.run("start", "n1", "kubelet")
    wait_until("the API server answers", lambda: two_nodes.get("/version"))
    two_nodes.create(PODS, busybox("after-faults", "n1", "exec sleep 1000000"))
    two_nodes.wait_pod("after-faults")


def test_a_second_cluster_works_beside_the_first_and_leaves_it_alone(two_nodes: Cluster) -> None:
    other = Cluster("test-beside")
    try:
        other.start("--nodes", "1", "--provider", "local")
        assert {node["metadata"]["name"] for node in other.list(path("v1", "nodes"))} == {"n1"}
        other.create(PODS, busybox("only-here", "n1", "exec sleep 1000000"))
        other.wait_pod("only-here")
        other.run("freeze", "n1")  # what is frozen has to go as well
    finally:
        other.stop()
    assert traces("test-beside", other.state) == []
    assert two_nodes.find(f"{PODS}/only-here") is None
    two_nodes.create(PODS, busybox("still-works", "n2", "exec sleep 1000000"))
    two_nodes.wait_pod("still-works")


@pytest.mark.parametrize("killed_after_s", [0.8, 2.0, 4.0])
def test_down_leaves_nothing_even_after_up_was_killed(killed_after_s: float) -> None:
    cluster = Cluster("test-killed")
    up = subprocess.Popen(cluster.command("up", "--nodes", "2", "--provider", "local"), stderr=subprocess.DEVNULL)
    time.sleep(killed_after_s)
    up.kill()
    up.wait()
    cluster.stop()
    assert traces("test-killed", cluster.state) == []


def traces(name: str, state: Path) -> list[str]:
    """What of a cluster can be seen on the machine: processes, mounts, links, namespaces, routes, control groups."""
    found = [f"process: {text}" for text in command_lines() if str(state) in text]
    found += [line for line in Path("/proc/mounts").read_text().splitlines() if f"clusters/{name}" in line]
    identity = _identity(state)
    for command in (["ip", "link"], ["ip", "netns"], ["ip", "route"]):
        found += [line for line in run(command).splitlines() if identity in line]
    found += [str(folder) for folder in Path("/sys/fs/cgroup").glob(f"**/{identity}*")]
    return found + ([str(state)] if state.exists() else [])


def command_lines() -> Iterator[str]:
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            yield process.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended meanwhile


def _identity(state: Path) -> str:
    """What the names of the cluster's links, namespaces and control groups begin with."""
    program = "import sys, pathlib; from cluster.shape import identity; print(identity(pathlib.Path(sys.argv[1])))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "hack" / "lib")}
    return run([sys.executable, "-c", program, state], environment=environment).strip()
