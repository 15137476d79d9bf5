"""Whose the channels of a node are when a daemon, or a whole domain, went away under running pods."""

from tests.e2e.computedomain.jobs import FORCE, PATIENCE_S, RETRY_S, Space, namespace
from tests.support.cluster import Cluster, wait_until

NODE = "n3"  # its kubelet asks again soon


def find_claim(space: Space, pod: str) -> str:
    status = space.cluster.get(space.where("v1", "pods", pod))["status"]
    return str(status["resourceClaimStatuses"][0]["resourceClaimName"])


def test_a_pod_that_outlives_its_domain_keeps_the_node_from_the_next_one_until_it_ends(here: Space) -> None:
    """It still has channel 0, which would be a channel of the next domain."""
    elsewhere = Space(here.driver, f"{here.name}-next")
    with namespace(here.cluster, elsewhere.name):
        first, second = here.job("train", 1), elsewhere.job("train", 1)
        first.run(a=NODE)
        first.wait_ready(1)
        first.delete()
        first.wait_condition("Draining", "True", "ClaimsInUse")
        here.cluster.patch(first.place, FORCE)
        here.cluster.wait_gone(first.place, PATIENCE_S)
        second.start(b=NODE)
        claim = f"claim {here.name}/{find_claim(here, 'a')}"
        elsewhere.wait_told("b", rf"{claim} \(channel\)")
        second.wait_condition("Ready", "False", "WaitingForDaemons", f"{claim} on {NODE} is of a ComputeDomain")
        assert (here.phase("a"), elsewhere.phase("b")) == ("Running", "Pending")
        assert first.channels("a") == ["channel0"]
        here.end("a")
        second.wait_running("b", patience_s=RETRY_S)
        second.wait_ready(1)
        assert "OK" in second.check("b")
        elsewhere.end("b")


def kill_daemon(cluster: Cluster) -> None:
    """SIGKILL to the program, which ends its nvidia-imex too."""
    script = "for p in /proc/[0-9]*; do grep -qs '[p]artita-imex-daemon' $p/cmdline && kill -9 ${p#/proc/}; done; true"
    cluster.in_node(NODE, "sh", "-c", script)


def test_after_its_daemon_was_killed_a_node_gives_no_channel_out_before_that_is_connected_again(here: Space) -> None:
    job = here.job("train", 1)
    job.run(a=NODE)
    for restarts in (1, 2):  # the kubelet lets ten seconds pass before the second
        job.wait_ready(1)
        kill_daemon(here.cluster)
        if restarts == 1:
            wait_until("it was started again", lambda: list(job.restarts().values()) == [1], PATIENCE_S)
    job.start(b=NODE)
    job.wait_running("b", patience_s=RETRY_S)
    assert list(job.restarts().values()) == [2]
    daemon, pod = job.daemons()[NODE], here.cluster.get(here.where("v1", "pods", "b"))
    began = [each["status"]["containerStatuses"][0]["state"]["running"]["startedAt"] for each in (daemon, pod)]
    assert began == sorted(began)
    assert "OK" in job.check("b")
    here.end("a", "b")
