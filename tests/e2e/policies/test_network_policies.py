"""The chart's NetworkPolicies, enforced: the domain forms all the same, and nobody else comes through."""

import pytest

from tests.e2e.computedomain.jobs import Job, Space
from tests.support.cluster import CommandFailed, Object, path, wait_until

IMEX_PORTS = (50000, 50005)
PROBED = 8097
RANK = 7070  # where a rank of the stand-in's job listens: open to all
CONNECT = """
import socket, sys
try:
    socket.create_connection((sys.argv[1], int(sys.argv[2])), 3).close()
    print("open")
except ConnectionRefusedError:
    print("closed")
except OSError:
    print("blocked")
"""


@pytest.fixture(scope="module")
def job(shared: Space) -> Job:
    """A domain over both nodes, formed while everything is enforced."""
    job = shared.job("train", 2)
    job.run(a="n1", b="n2")
    job.wait_ready(2)
    return job


def address(pod: Object) -> str:
    return str(pod["status"]["podIP"])


def from_daemon(job: Job, node: str, host: str, port: int) -> str:
    """ "open" where a connection from the node's daemon is taken."""
    daemon, namespace = job.daemons()[node]["metadata"]["name"], job.space.driver.namespace
    return job.cluster.in_pod(daemon, "python3", "-c", CONNECT, host, str(port), namespace=namespace).strip()


def from_user(job: Job, host: str, port: int) -> str:
    """The same from a pod of the job."""
    try:
        job.cluster.in_pod("a", "nc", "-w", "3", host, str(port), "-e", "true", namespace=job.space.name)
        return "open"
    except CommandFailed:
        return "not open"


def test_a_domain_forms_and_shares_memory_with_all_policies_in_force(job: Job) -> None:
    job.share_all_ways("a", "b")


@pytest.mark.parametrize("port", IMEX_PORTS)
def test_imex_ports_are_open_to_the_daemons_and_closed_to_pods_of_users(job: Job, port: int) -> None:
    other = address(job.daemons()["n2"])
    wait_until("a user's pod cannot connect", lambda: from_user(job, other, port) != "open")
    assert from_user(job, other, PROBED) == "open", "the daemon is there, and its other port is open to all"
    assert from_daemon(job, "n1", other, port) == "open"


@pytest.mark.parametrize("component", ["controller", "kubelet-plugin"])
def test_our_programs_show_their_metrics_and_reach_the_api_server_and_no_pod(job: Job, component: str) -> None:
    """That they reach the API server shows in the domain, which they have formed."""
    pods = path("v1", "pods", namespace=job.space.driver.namespace)
    pod = job.cluster.list(pods, labelSelector=f"app.kubernetes.io/component={component}")[0]
    (metrics,) = {each["containerPort"] for container in pod["spec"]["containers"] for each in container["ports"]}
    assert from_user(job, address(pod), metrics) == "open"
    rank = address(job.cluster.get(job.space.where("v1", "pods", "b")))
    assert from_user(job, rank, RANK) == from_daemon(job, "n1", rank, RANK) == "open"
    script = ("python3", "-c", CONNECT, rank, str(RANK))
    told = job.cluster.in_pod(pod["metadata"]["name"], *script, namespace=job.space.driver.namespace)
    assert told.strip() in ("closed", "blocked")
