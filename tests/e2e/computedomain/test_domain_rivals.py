"""Domains whose pods the scheduler has put onto the same nodes."""

from tests.e2e.computedomain.jobs import PATIENCE_S, RETRY_S, Job, Space, condition
from tests.support.cluster import wait_until


def test_of_two_domains_whose_pods_came_to_the_same_nodes_one_gets_both_and_the_other_its_turn(here: Space) -> None:
    """Each has a node first, and neither lets a pod start before both of its nodes are connected."""
    one, other = (here.job(name, 2, releasePolicy="AllNodes") for name in ("one", "other"))
    one.start(a="n1")
    other.start(b="n2")
    one.start(c="n2")
    other.start(d="n1")
    pods = {"one": ("a", "c"), "other": ("b", "d")}

    def reason(job: Job) -> str:
        return str(condition(job.domain(), "Ready")["reason"])

    wait_until("one has both", lambda: sorted(map(reason, (one, other))) == ["Connected", "NodeOccupied"], PATIENCE_S)
    first, second = sorted((one, other), key=reason)
    first.wait_running(*pods[first.name])
    first.share_all_ways(*pods[first.name])
    here.wait_told(
        pods[second.name][0], f"WaitingForComputeDomain: .*is used by ComputeDomain {here.name}/{first.name}"
    )
    assert [here.phase(pod) for pod in pods[second.name]] == ["Pending", "Pending"]
    here.end(*pods[first.name])
    second.wait_running(*pods[second.name], patience_s=RETRY_S)  # on a busy machine they have waited in vain once
    second.share_all_ways(*pods[second.name])
